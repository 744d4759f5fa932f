"""New shards from rows that shards already hold: codes are copied, the teacher is not asked.

What leaves a cache (documents that are gone, rows to forget), what comes in from a crashed run, and the merging of
many small shards are all this: chosen rows of some shards, in id order, sealed as one new shard. What was sealed is
checked before it is copied.

Cost: a new shard is held in memory as rows and as bytes; of the sources only row groups that hold chosen rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from schemas.codec import CODE_MAX
from schemas.commits import Shard
from schemas.identity import unit_name
from schemas.ragged import Array
from schemas.rows import Rows
from schemas.shard_reader import OpenFooter, open_shard, read_group, read_identities
from schemas.shards import SealedShard, Totals, length_histogram, seal_shard
from schemas.spec import Header
from schemas.storage import Storage

ENTRIES_A_TOKEN = 64
"""A unit and a row group hold at most so many kept entries for each token of their size, so that `--keep all` over
thousands of classes makes smaller ones instead of filling the memory."""

Chosen = Callable[[Rows], Bool[np.ndarray, " R"]]
"""Which rows of a row group are copied, by their identity columns."""


def copy_rows(
    storage: Storage, header: Header, shards: Sequence[Shard], chosen: Chosen, row_group_tokens: int
) -> SealedShard | None:
    """A new sealed shard, not yet stored, of the chosen rows of some shards; None where none is chosen.

    Raises:
        CorruptionError: a source is missing or damaged.
    """
    parts = [part for shard in shards for part in _chosen_rows(storage, header, shard, chosen)]
    return seal_rows(Rows.concatenate(parts), header, row_group_tokens) if parts else None


def seal_rows(
    rows: Rows,
    header: Header,
    row_group_tokens: int,
    *,
    unit: str | None = None,
    totals: Totals | None = None,
) -> SealedShard:
    """Rows in id order, in row groups of about `row_group_tokens`, as one sealed shard.

    `totals` carries what only the teacher's pass knew (kept mass, clamps); None: as far as the codes tell it.
    """
    order = np.array(sorted(range(len(rows)), key=rows.example_ids.__getitem__), np.int64)
    return seal_shard(
        (rows.take(group) for group in _groups(order, _weights(rows), row_group_tokens)),
        spec=header.spec,
        fingerprint_hash=header.fingerprint.hash,
        unit=unit or unit_name(rows.example_ids, header.spec.hash),
        totals=totals_of(rows) if totals is None else totals,
    )


def totals_of(rows: Rows) -> Totals:
    """What the codes of some rows tell: kept mass within the rounding, entropy, clamps, lengths."""
    histogram = length_histogram(rows.input_ids.lengths)
    if rows.spec.score != "softmax":
        return Totals(length_histogram=histogram)
    return Totals(
        clamped_codes=int((rows.ragged("kept_codes").values == CODE_MAX).sum()),
        kept_mass_sum=float(np.exp(rows.kept_logprobs().astype(np.float64)).sum()),
        entropy_sum_nats=float(rows.ragged("entropy").values.sum(dtype=np.float64)),
        length_histogram=histogram,
    )


def _chosen_rows(storage: Storage, header: Header, shard: Shard, chosen: Chosen) -> Iterator[Rows]:
    """The chosen rows of each row group of one shard; groups without any are not read."""
    opened = open_shard(storage, header, shard)
    identities = read_identities(storage, shard.name, opened, header.spec)
    keep, start = chosen(identities), 0
    for place, group in enumerate(opened.footer.row_groups):
        picked = np.flatnonzero(keep[start : start + group.examples])
        start += group.examples
        if picked.size:
            yield _read(storage, header, shard, opened, place).take(picked)


def _read(storage: Storage, header: Header, shard: Shard, opened: OpenFooter, place: int) -> Rows:
    return read_group(storage, shard.name, opened, place, header.spec)


def _weights(rows: Rows) -> Array:
    """Tokens of each row; or, where that is more, its entries by `ENTRIES_A_TOKEN`."""
    entries = rows.ragged("kept_ids" if rows.spec.score == "softmax" else "logits").lengths
    weights: Array = np.maximum(rows.input_ids.lengths, entries // ENTRIES_A_TOKEN)
    return weights


def _groups(order: Array, weights: Array, row_group_tokens: int) -> list[Array]:
    """Cuts an order of rows into runs that weigh about `row_group_tokens` each."""
    total = np.cumsum(weights[order])
    group = (total - 1) // row_group_tokens
    return np.split(order, np.flatnonzero(np.diff(group)) + 1)
