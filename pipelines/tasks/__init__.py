"""Tasks: how a document's tokens become examples with positions, and what of a teacher's forward scores them.

May import `keep`, `rejects`. A task is one file, a value of `TeacherTask`, listed in `tasks.py` (its contract is in
`schemas/tasks.py`, its students' side in `trainer/tasks/`).
"""
