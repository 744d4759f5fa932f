"""Shards whose seals hold, made by somebody who is no friend: what stands behind the seals may be anything."""

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from schemas import TeachonceError
from schemas.rows.entries import entries_of
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from schemas.shards.reader import open_footer, open_shard, read_group, read_identities
from schemas.shards.seal import Shard, bytes_hash
from schemas.verify import check_shard
from tests.synthetic import begin, random_rows, seal, unit_of


class Victim(NamedTuple):
    """A good shard, and where its parts stand."""

    rows: Rows
    data: bytes
    ends: list[int]
    """Of its row groups."""


def victim(spec, *, num_rows: int = 8, seed: int = 0) -> Victim:
    rows = random_rows(spec, num_rows, seed).rows
    sealed = seal(rows)
    return Victim(rows, bytes(sealed.data), [group.end for group in sealed.footer.row_groups])


def resealed(good: Victim, data: bytes) -> tuple[str, bytes]:
    """Name and bytes of the shard with all its hashes made right again: row groups, footer, seal."""
    start, footer = 0, data[good.ends[-1] :]
    for end in good.ends:
        old, new = bytes_hash(good.data[start:end]), bytes_hash(data[start:end])
        footer, start = footer.replace(old.encode(), new.encode()), end
    return f"{unit_of(good.rows)}-{bytes_hash(footer)}.parquet", data[: good.ends[-1]] + footer


def _body(good: Victim, chooser: random.Random) -> bytes:
    """Some bytes of the row groups are others."""
    data = bytearray(good.data)
    for _ in range(chooser.choice((1, 1, 2, 5, 40))):
        data[chooser.randrange(4, good.ends[-1])] = chooser.randrange(256)
    return bytes(data)


def _noise(good: Victim, chooser: random.Random) -> bytes:
    """A stretch of the row groups is noise."""
    start = chooser.randrange(good.ends[-1])
    length = min(chooser.choice((8, 64, 1000, 10**6)), good.ends[-1] - start)
    return good.data[:start] + chooser.randbytes(length) + good.data[start + length :]


def _headers(good: Victim, chooser: random.Random) -> bytes:
    """Bytes of page headers, which stand before the frames of zstd."""
    data, places, place = bytearray(good.data), [], 0
    while (place := good.data.find(b"\x28\xb5\x2f\xfd", place)) >= 0:
        places.append(place)
        place += 1
    for _ in range(chooser.choice((1, 2, 4))):
        data[chooser.choice(places) - chooser.randrange(1, 24)] = chooser.choice((0, 1, 127, 128, 255, 2))
    return bytes(data)


def _footer(good: Victim, chooser: random.Random) -> bytes:
    """Bytes of the Thrift footer, and of what ours says inside it; not its length."""
    data = bytearray(good.data)
    for _ in range(chooser.choice((1, 1, 2, 6))):
        data[chooser.randrange(good.ends[-1], len(data) - 8)] = chooser.randrange(256)
    return bytes(data)


MUTATIONS: dict[str, Callable[[Victim, random.Random], bytes]] = {
    "body": _body,
    "noise": _noise,
    "headers": _headers,
    "footer": _footer,
}
_EXTREMES = (
    -(2**31),
    -(2**15),
    -129,
    -1,
    0,
    1,
    2,
    127,
    2**15 - 1,
    2**24,
    2**31 - 1,
    np.nan,
    np.inf,
    -np.inf,
    3e38,
)


def other_values(rows: Rows, chooser: random.Random) -> Rows:
    """Some values of a column are others, each of its type."""
    name = chooser.choice([name for name, column in rows.data.items() if numbers(column).size])
    column = rows.data[name]
    values = numbers(column).copy()
    for _ in range(chooser.choice((1, 1, 3))):
        values.reshape(-1)[chooser.randrange(values.size)] = _fitting(values.dtype, chooser)
    new = (
        Ragged(values=values, offsets=column.offsets, valid=column.valid)
        if isinstance(column, Ragged)
        else values
    )
    return Rows(spec=rows.spec, data={**rows.data, name: new})


def numbers(column) -> np.ndarray:
    values = column.values if isinstance(column, Ragged) else column
    return values[:0] if values.dtype == object else values


def _fitting(dtype: np.dtype, chooser: random.Random):
    value = chooser.choice(_EXTREMES)
    if dtype.kind == "f":
        return value
    limits = np.iinfo(dtype)
    return int(min(max(0 if np.isnan(value) else value, limits.min), limits.max))


def stored(path, spec, name: str, data: bytes):
    """A folder with that shard, and the shard."""
    storage = begin(path, spec)
    storage.put(name, data)
    return storage, Shard(name, len(data), 0)


def taken(storage, header, shard) -> str:
    """What reader and `verify` make of it: `read`, `refused`, or `refused by verify` alone. Anything else is raised."""
    try:
        shard = shard._replace(examples=open_footer(storage, shard.name).footer.totals.examples)
        opened = open_shard(storage, header, shard)
        groups = range(len(opened.footer.row_groups))
        rows = [read_group(storage, shard.name, opened, place, header.spec) for place in groups]
        read_identities(storage, shard.name, opened, header.spec)
    except TeachonceError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert _refused(storage, header, shard), "verify calls whole what no reader takes"
        return "refused"
    for part in rows:
        _use(part)
    return "refused by verify" if _refused(storage, header, shard) else "read"


def _refused(storage, header, shard) -> bool:
    try:
        check_shard(storage, header, shard)
    except TeachonceError:
        return True
    return False


def _use(rows: Rows) -> None:
    """What training takes is finite, and in range."""
    spec = rows.spec
    if spec.score == "softmax":
        for temperature in spec.temperatures if spec.temperatures == (1.0,) else (1.0,):
            entries = entries_of(rows, temperature)
            assert np.isfinite(entries.weights).all()
            assert (entries.weights >= 0).all()
            assert ((entries.ids >= 0) & (entries.ids < spec.vocab_size)).all()
            assert len(entries.counts) == rows.num_positions
    for feature in spec.features:
        assert np.isfinite(rows.feature(feature)).all()
    assert (rows.position_index() >= 0).all()
    rows.take(np.arange(len(rows)))
