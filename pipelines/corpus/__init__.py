"""Records in: files, lines, documents, labels, conversations, and their tokens.

May import `schemas`, and `config`, `rejects`. A corpus format, a field of a record, or a reject of one goes here.
"""
