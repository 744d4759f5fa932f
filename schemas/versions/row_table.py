"""A table of row counts: of shards, for each row group its rows and those held out. In memory, and as bytes.

The bytes are a hash, a length, and one zstd frame of flat arrays, so that a million row groups are read in a fraction
of a second, and nothing in them is executable. They are hashed before they are unpacked, and what they claim
is bounded.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt8

from schemas.errors import CorruptionError
from schemas.identity import HASH_BYTES
from schemas.limits import told
from schemas.rows.ragged import Array, Ragged, offsets_of
from schemas.shards.held_out import GroupCounts
from schemas.shards.parquet_limits import BYTES_A_BYTE, FREE_BYTES
from schemas.shards.seal import Shard

_NAME_BYTES = 2 * HASH_BYTES
"""A shard's name as bytes: unit and seal."""
_LENGTH, _HEAD = struct.Struct("<Q"), struct.Struct("<QQQ")
_NOT_WRITTEN = "a table of row counts is not what was written"


@dataclass(frozen=True, kw_only=True, eq=False)
class RowTable:
    """Row counts of S shards, at one fraction. Row groups of a shard stand in their order."""

    names: UInt8[np.ndarray, "S 32"]
    """Unit and seal of each shard."""
    examples: Ragged
    """Of each shard, rows of each row group."""
    held_out: Ragged

    def __post_init__(self) -> None:
        rows, held = self.examples.values, self.held_out.values
        if not len(self.names) == len(self.examples) == len(self.held_out) or len(rows) != len(held):
            raise ValueError("a table of row counts has columns of several lengths")
        if (self.examples.lengths < 1).any() or (rows < 1).any() or (held < 0).any() or (held > rows).any():
            raise ValueError("a table of row counts has counts that cannot be")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, counts: Mapping[str, GroupCounts]) -> RowTable:
        """The table of some shards' counts, by name."""
        names = sorted(counts)
        empty = np.zeros((0, 2), np.int32)
        pairs = np.concatenate([empty, *(counts[name] for name in names)])
        offsets = offsets_of(np.array([len(counts[name]) for name in names], np.int64))
        keys = np.frombuffer(b"".join(map(_key, names)), np.uint8).reshape(-1, _NAME_BYTES)
        columns = (Ragged(values=pairs[:, place].copy(), offsets=offsets) for place in range(2))
        return cls(names=keys, examples=next(columns), held_out=next(columns))

    @classmethod
    def concatenate(cls, tables: Sequence[RowTable]) -> RowTable:
        """The shards of all tables, sorted by name, each once: that of the first table which has it."""
        tables = [cls.of({}), *tables]
        names = np.concatenate([table.names for table in tables])
        joined = cls(
            names=names,
            examples=Ragged.concatenate([table.examples for table in tables]),
            held_out=Ragged.concatenate([table.held_out for table in tables]),
        )
        places: dict[bytes, int] = {}
        for place, key in enumerate(_keys(names)):
            places.setdefault(key, place)
        return joined.take(np.array([place for _, place in sorted(places.items())], np.int64))

    def take(self, rows: Int64[np.ndarray, " M"]) -> RowTable:
        """The given shards, in the given order."""
        return RowTable(
            names=self.names[rows], examples=self.examples.take(rows), held_out=self.held_out.take(rows)
        )

    @functools.cached_property
    def _places(self) -> dict[bytes, int]:
        return {key: place for place, key in enumerate(_keys(self.names))}

    def find(self, shards: Sequence[Shard]) -> Int64[np.ndarray, " _"]:
        """Where each shard stands; -1 for one that is not there, or of which the log counts other rows."""
        if not len(self):
            return np.full(len(shards), -1, np.int64)
        places = (self._places.get(_key(shard.name), -1) for shard in shards)
        found = np.fromiter(places, np.int64, len(shards))
        rows = np.add.reduceat(self.examples.values.astype(np.int64), self.examples.offsets[:-1])
        logged = np.fromiter((shard.examples for shard in shards), np.int64, len(shards))
        right: Array = np.where((found >= 0) & (rows[found] == logged), found, -1)
        return right

    def to_bytes(self, below: int) -> bytes:
        """The table as bytes; held out are the documents whose hash is below that number (`held_out_below`)."""
        columns = (self.examples.lengths, self.examples.values, self.held_out.values)
        flat = b"".join([self.names.tobytes(), *(column.astype("<i4").tobytes() for column in columns)])
        data = _HEAD.pack(len(self), len(self.examples.values), below) + flat
        packed: bytes = _LENGTH.pack(len(data)) + pa.compress(data, codec="zstd", asbytes=True)
        return _digest(packed) + packed

    @classmethod
    def from_bytes(cls, stored: bytes, below: int, where: str) -> RowTable:
        """The table that `to_bytes` made this of.

        Raises:
            CorruptionError: it is not that, or one at another fraction.
        """
        digest, packed = stored[:HASH_BYTES], stored[HASH_BYTES:]
        if digest != _digest(packed):
            raise CorruptionError(_NOT_WRITTEN, where=where, expected=digest.hex(), got=_digest(packed).hex())
        with told(_NOT_WRITTEN, where):
            data = _unpack(packed)
            shards, groups, found = _HEAD.unpack_from(data)
            sizes = [shards * _NAME_BYTES, *(4 * count for count in (shards, groups, groups))]
            if found != below or _HEAD.size + sum(sizes) != len(data):
                raise ValueError(f"{len(data)} bytes for {shards} shards and {groups} row groups, {found}")
            ends = np.cumsum([_HEAD.size, *sizes])
            names, *columns = (data[start:end] for start, end in itertools.pairwise(ends))
            lengths, rows, held = (np.frombuffer(column, "<i4").astype(np.int32) for column in columns)
            offsets = offsets_of(lengths.astype(np.int64))
            keys = np.frombuffer(names, np.uint8).reshape(-1, _NAME_BYTES)
            return cls(
                names=keys,
                examples=Ragged(values=rows, offsets=offsets),
                held_out=Ragged(values=held, offsets=offsets),
            )


def hash_of(stored: bytes) -> str:
    """The hash that a table's bytes begin with, in hex."""
    return stored[:HASH_BYTES].hex()


def _unpack(packed: bytes) -> bytes:
    """What was compressed; no more than what it claims is made of it, and that is bounded."""
    (length,) = _LENGTH.unpack_from(packed)
    if length > FREE_BYTES + BYTES_A_BYTE * len(packed):
        raise ValueError(f"{len(packed)} bytes that claim to be {length}")
    with pa.input_stream(pa.BufferReader(packed[_LENGTH.size :]), compression="zstd") as stream:
        data: bytes = stream.read(length + 1)
    if len(data) != length:
        raise ValueError(f"not the {length} bytes that it claims")
    return data


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def _key(name: str) -> bytes:
    return bytes.fromhex(name[: 2 * HASH_BYTES] + name[2 * HASH_BYTES + 1 : 4 * HASH_BYTES + 1])


def _keys(names: UInt8[np.ndarray, "S 32"]) -> Iterator[bytes]:
    data = names.tobytes()
    return (data[start : start + _NAME_BYTES] for start in range(0, len(data), _NAME_BYTES))
