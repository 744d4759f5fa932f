"""Verbs on a cache, and what all verbs of all three packages share: arguments, terminals, exit statuses, reports.

May import everything of `schemas`. A verb that needs neither teacher nor student goes here.
"""
