"""`evaluate`: a student on the held-out part, and the tables.

May import `training`'s floor downwards. How students are compared, and shown, goes here.
"""
