"""Opening a student and trying it before it is trained.

May import `batches`, `models`. A way to begin a student goes here.
"""
