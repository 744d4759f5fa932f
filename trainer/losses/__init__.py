"""Losses as entries of families, which a run has as a value, and the head fused with them.

May import `models`. A loss goes into its family's `LOSSES`; `loss.py` says what an entry is, `serving.py` what serves
one.
"""
