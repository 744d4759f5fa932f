"""A small cache with a past, and everything that a reader takes from it."""

import hashlib
from pathlib import Path

import numpy as np
from deltalake import DeltaTable

from schemas import Cache
from schemas.errors import TeachonceError
from schemas.policies import Sampled, Threshold, TopK
from schemas.rows.entries import entries_of
from schemas.shards.rewrite import copy_rows
from schemas.shards.seal import Shard
from schemas.versions.commits import base_version, commit, record_after
from schemas.versions.header import read_header
from schemas.versions.memory import (
    FORGOTTEN_FOLDER,
    UNSCORED_FOLDER,
    Unscored,
    read_forgotten,
    read_unscored,
    remembered_names,
    write_forgotten,
    write_unscored,
)
from schemas.versions.row_index import INDEX_FOLDER
from tests.synthetic import add, begin, causal_spec, header_of, random_rows

_SMALL = {"max_length": 8, "temperatures": (1.0,), "features": (), "has_document_id": True}
SPECS = {
    "top_k": causal_spec(**{**_SMALL, "keep": TopK(k=2)}),
    "threshold": causal_spec(
        **{**_SMALL, "keep": Threshold(tau=1 / 4), "temperatures": (1.0, 2.0), "own_logits": True}
    ),
    "sampled": causal_spec(**{**_SMALL, "keep": Sampled(n=5), "scalars": ("gold",)}),
}


def make_battered(path: Path, seed: int = 0, *, spec: str = "top_k", checkpoint: bool = True) -> Path:
    """Three versions: two shards, one more, and one of them rewritten without a third of its rows."""
    rows = random_rows(SPECS[spec], 15, seed).rows
    storage = begin(path, rows.spec)
    parts = [rows.take(part) for part in np.array_split(np.arange(15), 3)]
    add(storage, None, parts[:2], run="first", rejects={"blank": 1})
    add(storage, base_version(storage), parts[2:], run="second")
    if checkpoint:
        DeltaTable(str(path)).create_checkpoint()
    write_unscored(
        storage,
        header_of(rows.spec),
        [Unscored(b"u" * 16, 0, 2, "not_finite"), Unscored(b"v" * 16, 1, 2, "too_large")],
    )
    write_forgotten(storage, ["somebody", b"f" * 16])
    rewrite_one(path)
    return path


def rewrite_one(path: Path) -> None:
    """Commits a version in which one live shard is replaced by a copy of two thirds of its rows."""
    cache = Cache.open(path)
    old = cache.shards[0]
    sealed = copy_rows(
        cache.storage, read_header(cache.storage), [old], lambda rows: np.arange(len(rows)) % 3 > 0, 100
    )
    cache.storage.put(sealed.name, sealed.data)
    new = Shard(sealed.name, len(sealed.data), sealed.footer.totals.examples)
    change = sealed.footer.totals + -cache.footers[old.name].footer.totals
    base = base_version(cache.storage)
    record = record_after(base, [new], change, [old], run="third", header_hash=cache.header.to_json()["hash"])
    commit(cache.storage, cache.spec, base, [new], record, removed=[old])


def everything(path: Path, version: int | None = None) -> tuple:
    """All that a reader, a trainer or a run takes from a version, as one comparable value."""
    cache = Cache.open(path, version)
    storage = cache.storage
    cache.check_memory()
    unscored = [
        read_unscored(storage, cache.header, name) for name in remembered_names(storage, UNSCORED_FOLDER)
    ]
    return (
        (cache.version, cache.header, cache.shards, cache.record, cache.totals, cache.size_bytes),
        cache.versions(),
        [_digest(rows) for rows in cache.read_all()],
        [_digest(cache.identities(shard)) for shard in cache.shards],
        _counts(cache),
        [cache.tokenizer_file(name) for name in cache.header.tokenizer],
        unscored,
        read_forgotten(storage, remembered_names(storage, FORGOTTEN_FOLDER)),
    )


def outcome(act, *arguments):
    """What it gives, or the error of ours that it raises. Any other error is a bug, and passes."""
    try:
        return act(*arguments)
    except TeachonceError as error:
        return error


def verified(path: Path, version: int | None = None):
    """As `teachonce verify` does."""
    return Cache.open(path, version).verify()


def _counts(cache: Cache) -> list:
    """Row counts at the default fraction; what the reader kept for the next one goes again."""
    before = {*cache.storage.names(INDEX_FOLDER)}
    counts = [column.tolist() for column in cache.row_counts()[:4]]
    cache.storage.delete([*{*cache.storage.names(INDEX_FOLDER)} - before])
    return counts


def _digest(rows) -> str:
    """Hash of every decoded value."""
    state = hashlib.blake2b()
    for name, column in rows.data.items():
        values = column if isinstance(column, np.ndarray) else column.values
        state.update(name.encode())
        state.update(repr(values.tolist()).encode() if values.dtype == object else values.tobytes())
        if not isinstance(column, np.ndarray):
            state.update(column.offsets.tobytes() + column.validity.tobytes())
    if "kept_ids" not in rows.data:
        return state.hexdigest()
    state.update(rows.kept_logprobs().tobytes() + rows.position_index().tobytes())
    for temperature in rows.spec.temperatures:
        entries = entries_of(rows, temperature)
        state.update(entries.ids.tobytes() + entries.counts.tobytes() + entries.weights.tobytes())
    return state.hexdigest()
