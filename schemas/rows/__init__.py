"""Rows in memory and their encodings: flat arrays of codes, ids and counts, and the one list of columns.

May import the spec and `storage`'s floor downwards. A column, a codec, or a rule for values goes here.
"""
