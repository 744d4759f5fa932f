"""`train`: arguments to a finished student.

May import `students`, `stream`, `checkpoints` and below. A setting, or a step of the loop goes here.
"""
