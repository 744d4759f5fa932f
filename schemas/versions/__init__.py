"""Which shards are live: Delta commits, their records, who holds a lease, and what is remembered beside the rows.

May import `shards`, `storage`. What a commit records, or a file beside the log goes here.
"""
