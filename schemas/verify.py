"""Verification: every byte, schema, count and id of a version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.cache import Cache
from schemas.columns import check_encodings
from schemas.commits import Shard
from schemas.errors import CorruptionError, TeachonceError
from schemas.rows import Rows
from schemas.shard_reader import read_group
from schemas.shards import identity_hash


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked and found whole."""

    version: int
    shards: int
    examples: int
    tokens: int
    size_bytes: int


def verify(cache: Cache) -> Verified:
    """Checks every seal, schema, encoding, count and id of a version.

    All shards are looked at before it raises, so the error tells how many are broken. Ids are held in memory
    (16 bytes an example).

    Raises:
        CorruptionError: with the first thing that does not match, and how many shards are broken in all.
    """
    for name in cache.header.tokenizer:
        cache.tokenizer_file(name)
    faults = [fault for shard in cache.shards if (fault := _shard_fault(cache, shard))]
    if faults:
        raise CorruptionError(
            f"{len(faults)} of {len(cache.shards)} shards are broken; the first: {faults[0]}"
        )
    ids = np.concatenate([cache.identities(shard).array("example_id") for shard in cache.shards])
    unique = np.unique(ids, axis=0)
    if len(unique) != len(ids):
        raise CorruptionError(
            "example ids stand in the cache more than once",
            where=cache.storage.root,
            expected=f"{len(ids)} different ids",
            got=len(unique),
        )
    totals = cache.totals
    counted = sum(ref.group.tokens for ref in cache.row_groups)
    if (totals.examples, totals.tokens) != (len(ids), counted):
        raise CorruptionError(
            "the log's totals are not those of its shards",
            where=cache.storage.root,
            expected=f"{totals.examples} examples, {totals.tokens} tokens",
            got=f"{len(ids)} examples, {counted} tokens",
        )
    return Verified(
        version=cache.version,
        shards=len(cache.shards),
        examples=len(ids),
        tokens=counted,
        size_bytes=cache.size_bytes,
    )


def _shard_fault(cache: Cache, shard: Shard) -> TeachonceError | None:
    """The first thing wrong with one shard."""
    where = f"{cache.storage.root}/{shard.name}"
    try:
        opened = cache.open_shard(shard)
        check_encodings(opened.metadata, cache.spec, where)
        previous = b""
        for index, group in enumerate(opened.footer.row_groups):
            rows = read_group(cache.storage, shard.name, opened, index, cache.spec)
            previous = _check_order(rows, previous, f"{where}, row group {index}")
            if identity_hash(rows) != group.ids_hash:
                raise CorruptionError("a row group's ids are not those that were sealed", where=where)
    except TeachonceError as error:
        return error
    return None


def _check_order(rows: Rows, previous: bytes, where: str) -> bytes:
    """Ids ascend within a shard; returns the last."""
    ids = rows.example_ids
    if any(a >= b for a, b in zip([previous, *ids], ids, strict=False)):
        raise CorruptionError("example ids do not ascend", where=where)
    return ids[-1]
