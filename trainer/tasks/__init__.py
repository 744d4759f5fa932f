"""Tasks: how a student is opened and run, what it gives at positions, and how it is measured.

May import `metrics` and below. A task is one file, a value of `StudentTask`, listed in `tasks.py` (its contract is in
`schemas/tasks.py`, its teachers' side in `pipelines/tasks/`).
"""
