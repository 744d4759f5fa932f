"""A unit of examples becomes a sealed shard; and a sample is scored again.

May import `fingerprint` and below. A step between a teacher's answer and a shard goes here.
"""
