"""Verbs that change a cache by a Beam job without the teacher: compact, forget, thin.

May import `job` and below. Another such verb goes here.
"""
