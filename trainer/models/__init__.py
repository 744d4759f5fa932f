"""A model taken apart: its layers, its head, and the same with fewer layers.

May import `schemas`. A head or a layer layout of an architecture goes here.
"""
