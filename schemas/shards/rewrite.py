"""New shards from rows that shards already hold: codes are copied, the teacher is not asked.

What leaves a cache (documents that are gone, rows to forget), what comes in from a crashed run, and the merging of
many small shards are all this: chosen rows of some shards, in id order, sealed as one new shard. What was sealed is
checked before it is copied.

Cost: a new shard is held in memory as rows and as bytes; of the sources only row groups that hold chosen rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool

from schemas.errors import CorruptionError
from schemas.identity import unit_name, unit_number
from schemas.rows.codec import CODE_MAX
from schemas.rows.columns import CODES, IMAGE
from schemas.rows.layout import image_bytes
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.parquet_limits import check_counts
from schemas.shards.reader import OpenFooter, open_shard, read_group, read_identities
from schemas.shards.seal import SealedShard, Shard, Totals, length_histogram, ranking_of, seal_shard
from schemas.spec import Header
from schemas.storage.storage import Storage

ENTRIES_A_TOKEN = 64
"""A unit and a row group hold at most so many kept entries for each token of their size, so that `--keep all` over
thousands of classes makes smaller ones instead of filling the memory."""
IMAGE_BYTES_A_TOKEN = 128
"""And so many bytes of images: a shard of 128 MiB, of row groups of 4 MiB, where nothing else is said."""
UNIT_TOKENS, ROW_GROUP_TOKENS = 2**20, 2**15
"""Tokens of a shard and of a row group, where nothing else is said."""

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


def copy_range(
    storage: Storage,
    header: Header,
    shards: Sequence[Shard],
    *,
    unit: int,
    num_units: int,
    row_group_tokens: int,
) -> SealedShard | None:
    """A new sealed shard, not yet stored, of the rows of some shards that fall into one of equal ranges of id space.

    Raises:
        CorruptionError: a source is missing or damaged, or an id stands in two of them.
    """
    parts = [
        rows
        for shard in shards
        for rows in _rows_in_range(storage, header, shard, unit, num_units)
        if len(rows)
    ]
    if not parts:
        return None
    rows = Rows.concatenate(parts)
    if len(set(rows.example_ids)) < len(rows):
        raise CorruptionError(
            "example ids stand in the cache more than once",
            where=storage.root,
            do="Run `teachonce verify --repair` first",
        )
    return seal_rows(rows, header, row_group_tokens)


def units_of(metadata: pq.FileMetaData, place: int, num_units: int) -> range:
    """The ranges of id space that one row group's ids may fall into, by the statistics in a checked footer."""
    group = metadata.row_group(place)
    columns = (group.column(index) for index in range(group.num_columns))
    found = next(column.statistics for column in columns if column.path_in_schema == "example_id")
    if found is None or not found.has_min_max:
        return range(num_units)
    return range(unit_number(found.min, num_units), unit_number(found.max, num_units) + 1)


def _rows_in_range(
    storage: Storage, header: Header, shard: Shard, unit: int, num_units: int
) -> Iterator[Rows]:
    """Of each row group that the range overlaps, the rows in it."""
    opened = open_shard(storage, header, shard)
    for place in range(len(opened.footer.row_groups)):
        if unit in units_of(opened.metadata, place, num_units):
            rows = _read(storage, header, shard, opened, place)
            units = [unit_number(example, num_units) for example in rows.example_ids]
            yield rows.take(np.flatnonzero(np.array(units) == unit))


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

    Raises:
        CorruptionError: the rows are not such as a reader takes.
    """
    rows.check(f"unit {unit or 'of copied rows'}")
    order = np.array(sorted(range(len(rows)), key=rows.example_ids.__getitem__), np.int64)
    sealed = seal_shard(
        (rows.take(group) for group in _groups(order, _weights(rows), row_group_tokens)),
        spec=header.spec,
        fingerprint_hash=header.fingerprint.hash,
        unit=unit or unit_name(rows.example_ids, header.spec.hash),
        totals=totals_of(rows.take(order)) if totals is None else totals,  # sums of floats depend on order
        ranking=ranking_of([rows]),
    )
    for group in sealed.footer.row_groups:
        check_counts(group, header.spec, sealed.name)
    return sealed


def totals_of(rows: Rows) -> Totals:
    """What the codes of some rows tell: kept mass within the rounding, entropy, clamps, lengths."""
    histogram = length_histogram(rows.input_ids.lengths)
    if rows.spec.score != "softmax":
        return Totals(length_histogram=histogram)
    entropy = rows.entropy() if "entropy" in rows.spec.scalars else np.zeros(0)
    return Totals(
        clamped_codes=sum(int((rows.ragged(n).values == CODE_MAX).sum()) for n in CODES if n in rows.data),
        kept_mass_sum=float(np.exp(rows.kept_logprobs().astype(np.float64)).sum()),
        entropy_sum_nats=float(entropy.sum(dtype=np.float64)),
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
    """Tokens of each row; or, where that is more, its entries by `ENTRIES_A_TOKEN`, or its image's bytes."""
    names = ("kept_ids", "sampled_ids") if rows.spec.score == "softmax" else ("logits",)
    entries = sum(rows.ragged(name).lengths for name in names if name in rows.data)
    weights: Array = np.maximum(rows.input_ids.lengths, entries // ENTRIES_A_TOKEN)
    if IMAGE in rows.data:
        weights = np.maximum(weights, image_bytes(rows.array(IMAGE)) // IMAGE_BYTES_A_TOKEN)
    return weights


def _groups(order: Array, weights: Array, row_group_tokens: int) -> list[Array]:
    """Cuts an order of rows into runs that weigh about `row_group_tokens` each."""
    total = np.cumsum(weights[order])
    group = (total - 1) // row_group_tokens
    return np.split(order, np.flatnonzero(np.diff(group)) + 1)
