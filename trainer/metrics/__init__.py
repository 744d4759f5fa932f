"""Numbers of a model on the held-out part, summed over batches: of positions over a vocabulary, of classes, and of
texts that a model writes.

May import `batches`, `losses`, `models`. A metric that several tasks share goes here; one task's own into its file.
"""
