"""Sealed shards: one immutable Parquet file a unit, whose name vouches for its footer, and whose footer for its bytes.

Each row group's bytes are hashed once they are written; the hashes go into the footer's metadata; the footer's own
hash, the *seal*, goes into the file's name: `<unit>-<seal>.parquet`. A reader checks the bytes that it fetched before
Arrow parses them, so that it never sees a flipped bit, whatever the flip would have meant.

Cost: one BLAKE2b pass over the bytes at each side (about 1 GB/s), and a finished shard in memory until it is put.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int64

from schemas.errors import CorruptionError
from schemas.identity import canonical_json
from schemas.limits import MAX_COUNT, conform, parse_json
from schemas.rows.columns import check_encodings, identity_columns, shard_schema, write_options
from schemas.rows.ranks import Ranking
from schemas.rows.rows import Rows
from schemas.shards.held_out import HELD_OUT_KEY, held_out_to_bytes, num_held_out
from schemas.spec import FORMAT_VERSION, Spec

FOOTER_KEY = b"teachonce"
LISTED_KEY = b"teachonce.ids"
"""In the footer of a softmax shard: its most frequent ids, as a JSON list (`schemas/rows/ranks.py`)."""
LENGTH_BUCKETS = 32
_NAME = re.compile(r"(?P<unit>[0-9a-f]{32})-(?P<seal>[0-9a-f]{32})\.parquet")


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """One row group's place, hash and counts. `start` of the first is 0, so the file's first bytes are covered."""

    start: int
    end: int
    hash: str
    ids_hash: str
    """Hash of the identity columns' values, which are also read alone."""
    examples: int
    tokens: int
    positions: int
    entries: int


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over examples; those of a cache are the sums over its shards."""

    examples: int = 0
    tokens: int = 0
    positions: int = 0
    entries: int = 0
    clamped_codes: int = 0
    kept_mass_sum: float = 0.0
    """Sum over positions of the mass of the kept entries, before they were coded."""
    entropy_sum_nats: float = 0.0
    length_histogram: tuple[int, ...] = (0,) * LENGTH_BUCKETS
    """Examples by length: bucket b counts lengths from 2^b to 2^(b+1) - 1 tokens."""

    def __add__(self, other: Totals) -> Totals:
        pairs = zip(self.length_histogram, other.length_histogram, strict=True)
        return Totals(
            examples=self.examples + other.examples,
            tokens=self.tokens + other.tokens,
            positions=self.positions + other.positions,
            entries=self.entries + other.entries,
            clamped_codes=self.clamped_codes + other.clamped_codes,
            kept_mass_sum=self.kept_mass_sum + other.kept_mass_sum,
            entropy_sum_nats=self.entropy_sum_nats + other.entropy_sum_nats,
            length_histogram=tuple(a + b for a, b in pairs),
        )

    def __neg__(self) -> Totals:
        negative = {field.name: -getattr(self, field.name) for field in fields(self)[:-1]}
        return Totals(**negative, length_histogram=tuple(-count for count in self.length_histogram))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Totals:
        """Totals from plain values.

        Raises:
            ValueError: a number is none, below 0, or beyond what JSON keeps exactly.
        """
        found: Totals = conform(cls, value, "totals")
        return sane(found)


def sane(totals: Totals) -> Totals:
    """The same, once it has been asserted that they may be sums over examples.

    Raises:
        ValueError: naming what may not.
    """
    counts = {**vars(totals), "length_histogram": max(totals.length_histogram, default=-1)}
    for name, value in counts.items():
        if not abs(value) <= MAX_COUNT or (isinstance(value, int) and value < 0):
            raise ValueError(f"{name} cannot be {value}")
    if len(totals.length_histogram) != LENGTH_BUCKETS or min(totals.length_histogram) < 0:
        raise ValueError(f"length_histogram cannot be {totals.length_histogram}")
    return totals


@dataclass(frozen=True, kw_only=True)
class ShardFooter:
    """What a shard says of itself."""

    unit: str
    spec_hash: str
    fingerprint_hash: str
    row_groups: tuple[RowGroup, ...]
    totals: Totals
    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardFooter:
        """The footer that `to_bytes` made this of.

        Raises:
            ValueError, TypeError: it says what this reader does not know.
        """
        found: ShardFooter = conform(cls, parse_json(data), "the footer")
        return replace(found, totals=sane(found.totals))


class Shard(NamedTuple):
    """A live shard, as the log has it."""

    name: str
    size_bytes: int
    examples: int


class SealedShard(NamedTuple):
    """A finished shard, not yet stored."""

    name: str
    data: memoryview
    footer: ShardFooter
    held_out: tuple[int, ...]
    """Rows of each row group on the held-out side, at the default fraction."""


def bytes_hash(data: bytes | memoryview) -> str:
    """BLAKE2b-128 in hex: of row groups and footers."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def ranking_of(rows: Sequence[Rows]) -> Ranking | None:
    """The ranking that a shard of these rows is written with; None where every score is kept as it is."""
    if rows[0].spec.score != "softmax":
        return None
    names = ("kept_ids", "sampled_ids")
    ids = (part.ragged(name).values for part in rows for name in names if name in part.data)
    return Ranking.of(ids, rows[0].spec.vocab_size)


def seal_shard(
    groups: Iterable[Rows],
    *,
    spec: Spec,
    fingerprint_hash: str,
    unit: str,
    totals: Totals,
    ranking: Ranking | None,
) -> SealedShard:
    """Writes row groups into one sealed shard, with the ranking of all its rows.

    `totals` carries what only the teacher's pass knew (kept mass, clamps); counts come from the rows themselves.

    Raises:
        ValueError: there are no rows, or a group of none.
    """
    sink = io.BytesIO()
    found: list[RowGroup] = []
    held_out: list[int] = []
    with pq.ParquetWriter(sink, shard_schema(spec), **write_options(spec)) as writer:
        for rows in groups:
            if not len(rows):
                raise ValueError("a row group cannot be empty")
            writer.write_table(rows.to_arrow(ranking), row_group_size=len(rows))
            start = found[-1].end if found else 0
            with sink.getbuffer() as buffer, buffer[start:] as written:
                found.append(_described(rows, start=start, data=written))
            held_out.append(num_held_out(rows))
        if not found:
            raise ValueError("a shard cannot be empty")
        footer = ShardFooter(
            unit=unit,
            spec_hash=spec.hash,
            fingerprint_hash=fingerprint_hash,
            row_groups=tuple(found),
            totals=_counted(totals, found),
        )
        listed = {} if ranking is None else {LISTED_KEY: ranking.to_bytes()}
        counted = {HELD_OUT_KEY: held_out_to_bytes(held_out)}
        writer.add_key_value_metadata({FOOTER_KEY: footer.to_bytes(), **listed, **counted})
    data = sink.getbuffer()
    name = f"{unit}-{bytes_hash(data[found[-1].end :])}.parquet"
    check_encodings(pq.read_metadata(sink), spec, name)
    return SealedShard(name, data, footer, tuple(held_out))


def _described(rows: Rows, *, start: int, data: memoryview) -> RowGroup:
    return RowGroup(
        start=start,
        end=start + len(data),
        hash=bytes_hash(data),
        ids_hash=identity_hash(rows),
        examples=len(rows),
        tokens=rows.num_tokens,
        positions=rows.num_positions,
        entries=rows.num_entries,
    )


def _counted(totals: Totals, groups: Sequence[RowGroup]) -> Totals:
    return replace(
        totals,
        examples=sum(group.examples for group in groups),
        tokens=sum(group.tokens for group in groups),
        positions=sum(group.positions for group in groups),
        entries=sum(group.entries for group in groups),
    )


def length_histogram(lengths: Int64[np.ndarray, " R"]) -> tuple[int, ...]:
    """Examples in each bucket of `Totals.length_histogram`."""
    buckets = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
    return tuple(np.bincount(buckets, minlength=LENGTH_BUCKETS).tolist())


def identity_hash(rows: Rows) -> str:
    """Hash of the identity columns' values, in order; texts as one JSON list."""
    state = hashlib.blake2b(digest_size=16)
    for name in identity_columns(rows.spec):
        values = rows.array(name)
        is_text = values.dtype == object
        state.update(canonical_json(values.tolist()) if is_text else np.ascontiguousarray(values).data)
    return state.hexdigest()


def parse_name(name: str) -> tuple[str, str]:
    """Unit and seal of a shard's file name.

    Raises:
        CorruptionError: the name is not one that a writer gives.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise CorruptionError("the log names a file that is no shard", got=repr(name))
    return match["unit"], match["seal"]
