"""Pure functions on scores and rows: which entries are kept, drawn, or kept of what was kept.

May import `schemas`. How a keep policy selects goes here.
"""
