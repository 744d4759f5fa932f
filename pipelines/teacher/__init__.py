"""The teacher as a model: weights, head, batches, and the check that batching changes nothing.

May import `corpus`, `keep`, `engine`. An architecture's peculiarity, or how a batch is made goes here.
"""
