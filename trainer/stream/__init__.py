"""The order of training and its replay: any ranks, any step.

May import `batches`. An order, a filter, or a lane goes here.
"""
