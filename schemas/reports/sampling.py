"""A sample of a cache: whole row groups under a budget of tokens, the same ones whenever it is asked of one version.

A cache of any size is told of: shards are drawn by how many examples they hold, of each drawn one row group at a time,
until the budget is spent. A cache that fits into the budget is read whole, and then nothing is estimated.

Cost: a request for each footer and one for each row group; of the values a few bytes a position are held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from schemas.cache import Cache
from schemas.errors import REPAIR
from schemas.limits import told
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.seal import Shard

MOST_SHARDS = 128
"""Whose footers are opened."""
FOOTERS = "(footers)"
"""Bytes of no column: footers with their seals, and magic numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What was read of a cache's rows."""

    row_groups: int
    shards: int
    """Whose footers were opened."""
    examples: int
    tokens: int
    is_whole: bool
    """Whether that was all."""
    kept_mass: Float32[np.ndarray, " N"]
    """Of each position: the probability of the entries that are kept exactly."""
    entropy_nats: Float32[np.ndarray, " N"] | None
    """None where the cache does not store it."""
    kept: Int64[np.ndarray, " N"]
    """Entries of each position, exact and drawn."""
    column_bytes: dict[str, float]
    """Compressed bytes a token of each column, over the shards that were opened."""


class _Group(NamedTuple):
    shard: Shard
    place: int


def sample_of(cache: Cache, most_tokens: int) -> Sample:
    """Reads row groups until `most_tokens` are seen, at least one.

    Raises:
        CorruptionError: a shard that was drawn is missing or damaged.
    """
    chosen = _chosen(cache)
    opened = {shard.name: cache.open_shard(shard) for shard in chosen}
    parts: list[tuple[Array, Array, Array]] = []
    tokens, examples, total = 0, 0, sum(len(one.footer.row_groups) for one in opened.values())
    number = {shard.name: place for place, shard in enumerate(cache.shards)}
    for group in _in_rounds([(shard, len(opened[shard.name].footer.row_groups)) for shard in chosen]):
        if tokens >= most_tokens:
            break
        rows = cache.read_group(number[group.shard.name], group.place)
        tokens, examples = tokens + rows.num_tokens, examples + len(rows)
        parts.append(_of_positions(rows))
    mass, entropy, kept = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Sample(
        row_groups=len(parts),
        shards=len(chosen),
        examples=examples,
        tokens=tokens,
        is_whole=len(parts) == total and len(chosen) == len(cache.shards),
        kept_mass=mass,
        entropy_nats=entropy if "entropy" in cache.spec.scalars else None,
        kept=kept,
        column_bytes=_column_bytes(cache, chosen),
    )


def _chosen(cache: Cache) -> list[Shard]:
    """Shards without repetition, a larger one rather (keys u^(1/w): Efraimidis and Spirakis, 2006)."""
    weights = np.array([max(1, shard.examples) for shard in cache.shards], np.float64)
    keys = np.log(np.random.default_rng(0).random(len(weights))) / weights
    return [cache.shards[place] for place in np.argsort(-keys, kind="stable")[:MOST_SHARDS].tolist()]


def _in_rounds(shards: Sequence[tuple[Shard, int]]) -> Iterator[_Group]:
    """One row group of each shard, then another of each, in an order that was drawn."""
    draw = np.random.default_rng(1)
    left = [(shard, draw.permutation(count).tolist()) for shard, count in shards]
    while left:
        for shard, places in left:
            yield _Group(shard, places.pop())
        left = [(shard, places) for shard, places in left if places]


def _of_positions(rows: Rows) -> tuple[Array, Array, Array]:
    """Kept mass, entropy (NaN where it is not stored) and entries of each position."""
    if rows.spec.score != "softmax":
        count = rows.num_positions
        return np.ones(count, np.float32), np.full(count, np.nan, np.float32), np.zeros(count, np.int64)
    counts = rows.kept_counts.astype(np.int64)
    position = np.repeat(np.arange(len(counts)), counts)
    mass = np.bincount(position, np.exp(rows.kept_logprobs().astype(np.float64)), minlength=len(counts))
    has_entropy = "entropy" in rows.spec.scalars
    entropy = rows.entropy() if has_entropy else np.full(len(counts), np.nan, np.float32)
    return mass.astype(np.float32), entropy, counts + rows.sampled_counts


def _column_bytes(cache: Cache, shards: Sequence[Shard]) -> dict[str, float]:
    found: Counter[str] = Counter()
    tokens = size = 0
    for shard in shards:
        opened = cache.open_shard(shard)
        tokens, size = tokens + opened.footer.totals.tokens, size + shard.size_bytes
        with told("a shard's footer cannot be read", f"{cache.storage.root}/{shard.name}", REPAIR):
            for place in range(opened.metadata.num_row_groups):
                group = opened.metadata.row_group(place)
                for index in range(group.num_columns):
                    chunk = group.column(index)
                    found[chunk.path_in_schema.partition(".")[0]] += chunk.total_compressed_size
    found[FOOTERS] = size - sum(found.values())
    return {name: count / max(1, tokens) for name, count in found.most_common()}
