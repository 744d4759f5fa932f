"""Where a cache's bytes lie: a folder, or an object store; nothing below a cache is followed.

May import errors. Another store, or another rule for folders goes here.
"""
