"""What is done to a committed cache without its teacher: repair, vacuum, export.

May import `cache`, `verify` and below. Another verb that keeps a cache goes here.
"""
