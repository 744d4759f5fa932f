"""One run of `precompute` from plan to commit: what exists, what is reused, what is scored, what is said of it.

May import `scoring` and below. A step of the job goes here.
"""
