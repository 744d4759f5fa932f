"""Rows that move without the teacher: out of live shards, and in from orphans. Whole shards are copied by row group.

Each returns a line about what it stored, as the teacher's step does, and `commit` takes them all together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipelines.scoring.units import ShardLine, line_of, no_shard
from pipelines.tolerances import Run
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.held_out import counts_to_bytes
from schemas.shards.reader import open_footer
from schemas.shards.rewrite import copy_rows
from schemas.shards.seal import SealedShard, Shard, parse_name
from schemas.spec import Header
from schemas.storage.storage import Storage, StoredFile
from schemas.versions.history import as_shard


def adopt(element: tuple[str, Iterable[bytes]], run: Run, row_group_tokens: int) -> ShardLine:
    """The chosen rows of an orphan: the shard as it is if they are all, else a copy of them."""
    storage, name = Storage.at(run.root), element[0]
    chosen = frozenset(element[1])
    opened = open_footer(storage, name)
    totals = opened.footer.totals
    work = {"adopted_examples": len(chosen)}
    if len(chosen) == totals.examples:
        line = ShardLine(opened.footer.unit, name, opened.size, asdict(totals), work, [])
        if opened.held_out is None:  # of an earlier release: its commit counts its ids
            return line
        examples = [group.examples for group in opened.footer.row_groups]
        return line._replace(counts=counts_to_bytes(examples, opened.held_out))
    source = as_shard(StoredFile(name, opened.size, 0.0), totals.examples)
    sealed = copy_rows(storage, run.header, [source], lambda rows: has_id(rows, chosen), row_group_tokens)
    assert sealed is not None, name
    return _stored(storage, sealed)._replace(work=work)


def rewrite(
    element: tuple[str, Iterable[tuple[bytes, bool]]],
    run: Run,
    row_group_tokens: int,
    prune_withheld: bool,
) -> ShardLine:
    """A live shard without the rows that leave: it is replaced by a copy of the others, or by nothing."""
    leaving = {example: pruned for example, pruned in element[1] if not (pruned and prune_withheld)}
    pruned = sum(leaving.values())
    work = {"pruned_examples": pruned, "replaced_examples": len(leaving) - pruned}
    if not leaving:
        return no_shard("", **work)
    storage = Storage.at(run.root)
    line = without_rows(storage, run.header, element[0], leaving.keys(), row_group_tokens)
    return line._replace(work=work)


def without_rows(
    storage: Storage, header: Header, name: str, leaving: Collection[bytes], row_group_tokens: int
) -> ShardLine:
    """The line that replaces a live shard by a copy of its rows that are not in `leaving`."""
    opened = open_footer(storage, name)
    totals = opened.footer.totals
    source = Shard(name, opened.size, totals.examples)
    sealed = copy_rows(storage, header, [source], lambda rows: ~has_id(rows, leaving), row_group_tokens)
    line = no_shard(f"{parse_name(name)[0]} left") if sealed is None else _stored(storage, sealed)
    return line._replace(replaces=(name, asdict(totals)))


def has_id(rows: Rows, ids: Collection[bytes]) -> Array:
    """Which rows have one of the ids."""
    return np.fromiter((row in ids for row in rows.example_ids), np.bool_, len(rows))


def _stored(storage: Storage, sealed: SealedShard) -> ShardLine:
    storage.put(sealed.name, sealed.data)
    return line_of(sealed)


def lines_of(values: Sequence[Any]) -> list[ShardLine]:
    """Lines as they were before Beam encoded them."""
    return [ShardLine(*value) for value in values]
