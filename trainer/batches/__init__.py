"""Rows become tensors: padded tokens, flat positions, what teacher and corpus say of them.

May import `losses`. Something a batch carries goes here.
"""
