"""Losses as pure functions, their weights as a value, and the head fused with them.

May import `models`. A loss goes here.
"""
