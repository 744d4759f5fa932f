"""What can be saved of a shard whose seals hold and whose rows do not all keep the rules: the others.

Such a shard is no damage: an earlier release wrote a row that no reader takes, or a stranger did. One of which a byte,
a count or a hash is not what was sealed is left alone: nothing in it can be trusted.

Cost: the shard's rows in memory.
"""

from __future__ import annotations

import numpy as np

from schemas.errors import CorruptionError
from schemas.rows.rows import Rows
from schemas.shards.reader import open_shard, read_group
from schemas.shards.rewrite import ROW_GROUP_TOKENS, seal_rows
from schemas.shards.seal import SealedShard, Shard
from schemas.spec import Header
from schemas.storage.storage import Storage


def salvage(storage: Storage, header: Header, shard: Shard) -> SealedShard | None:
    """A new sealed shard, not yet stored, of the rows that keep the rules; None where none can be saved."""
    try:
        opened = open_shard(storage, header, shard)
        groups = range(len(opened.footer.row_groups))
        parts = [
            read_group(storage, shard.name, opened, place, header.spec, checked=False) for place in groups
        ]
        rows = _each_once(Rows.concatenate([_sound(part) for part in parts]))
        sealed = seal_rows(rows, header, ROW_GROUP_TOKENS) if len(rows) else None
    except CorruptionError:
        return None
    return None if sealed is None or sealed.name == shard.name else sealed


def _sound(rows: Rows) -> Rows:
    bad = rows.faults(deep=True)
    return rows.take(np.array([row for row in range(len(rows)) if row not in bad], np.int64))


def _each_once(rows: Rows) -> Rows:
    first = {example: row for row, example in reversed([*enumerate(rows.example_ids)])}
    return rows.take(np.array(sorted(first.values()), np.int64))
