"""Which shards are live: Delta commits, their records, who holds a lease, what is remembered beside the
rows, and how many rows each row group has.

May import `shards`, `storage`. What a commit records, or a file beside the log goes here.
"""
