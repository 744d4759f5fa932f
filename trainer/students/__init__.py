"""Opening a student and trying it before it is trained.

May import `tasks` and below, and of `checkpoints` the record of a run. A way to begin a student goes here.
"""
