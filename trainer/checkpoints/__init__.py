"""Folders that are whole or not there: saving, signals, resuming.

May import `schemas`. What a checkpoint holds or refuses goes here.
"""
