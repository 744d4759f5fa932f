"""Caches made by hand: random rows of any spec, sealed and committed, with the truth that they were coded from."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from schemas import Cache, Fingerprint, Header, Spec
from schemas.identity import unit_name
from schemas.rows.classes import bounds, class_mask
from schemas.rows.codec import quantise
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from schemas.shards.seal import Shard, Totals, length_histogram, ranking_of, seal_shard
from schemas.storage.storage import Storage
from schemas.tasks import SOURCE_TOKENS
from schemas.versions.commits import Version, commit, record_after
from schemas.versions.header import create_header
from tests.answers import boxes, kept, ragged
from tests.specs import (
    SCALARS,
    SPECS,
    answers_spec,
    causal_spec,
    class_spec,
    embeddings_spec,
    image_spec,
    masked_spec,
    source_spec,
    words_spec,
)

__all__ = [
    "SCALARS",
    "SPECS",
    "answers_spec",
    "causal_spec",
    "class_spec",
    "embeddings_spec",
    "image_spec",
    "masked_spec",
    "source_spec",
    "words_spec",
]

FINGERPRINT = Fingerprint(
    weights="w" * 32, config="c" * 32, tokenizer="t" * 32, chat_template="", dtype="float32"
)
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "\u0120b": 1, "\u00c3\u00a9": 2, "\u010a": 3}},
    "decoder": {"type": "ByteLevel"},
    "added_tokens": [{"id": 4, "content": "<|end|>"}],
}
TOKENIZER_FILES = {
    "tokenizer.json": json.dumps(TOKENIZER).encode(),
    "additional_chat_templates/tool.jinja": b"{{ messages }}",
}
WORDS = ("", "plain", "na\u00efve \u2014 \u6c34 \U0001f600", "two\nlines", "'quoted' [red]")


class Truth(NamedTuple):
    """Rows, and what their codes were made from."""

    rows: Rows
    logprobs: np.ndarray
    """Of exact entries; or the logits."""
    features: dict[str, np.ndarray]
    drawn: np.ndarray
    """Log-probabilities of the drawn entries."""


def random_rows(spec: Spec, num_rows: int, seed: int = 0) -> Truth:
    """Rows with ascending ids, ragged positions and entries, nulls and empty lists."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, spec.max_length + 1, num_rows)
    if spec.kind.reads_images:
        lengths[:] = 1
    places = _places(spec, lengths, rng)
    counts = np.array(
        [length - 1 if p is None else len(p) for length, p in zip(lengths, places, strict=True)]
    )
    data = {
        "example_id": _hashes(sorted(rng.bytes(16) for _ in range(num_rows))),
        "document_hash": _hashes([rng.bytes(16) for _ in range(num_rows)]),
        "window_index": rng.integers(0, 3, num_rows).astype(np.int32),
        "window_count": np.full(num_rows, 3, np.int32),
        "input_ids": ragged(rng.integers(0, 50, lengths.sum()).astype(np.int32), lengths),
        "position_index": Ragged.of(places, np.int32),
    }
    for name, wanted in (
        ("document_id", spec.has_document_id),
        ("text", spec.has_text),
        ("text_pair", spec.has_text_pair),
    ):
        if wanted:
            data[name] = np.array([rng.choice([*WORDS, None]) for _ in range(num_rows)], object)
    if spec.has_token_type_ids:
        data["token_type_ids"] = ragged(rng.integers(0, 2, lengths.sum()).astype(np.int8), lengths)
    for column in spec.kind.columns:
        data[column.name] = rng.integers(column.low, column.high + 1, num_rows).astype(np.int32)
    if spec.kind.reads_images:
        data["image"] = np.array([rng.bytes(size) for size in rng.integers(1, 999, num_rows)], object)
    if spec.kind.has_source:
        data[SOURCE_TOKENS] = _sources(lengths)
    classes = None
    if spec.kind.class_columns is not None:
        start, end = spec.kind.class_columns
        data[start] = rng.integers(0, lengths).astype(np.int32)
        data[end] = rng.integers(data[start] + 1, lengths + 1).astype(np.int32)
        classes = class_mask(spec, *bounds(spec, data))
    if spec.score == "softmax":
        scores, logprobs, drawn = kept(spec, counts, rng, classes)
    else:
        scores, logprobs, drawn = (_nothing if spec.score == "none" else _logits)(spec, counts, rng)
    features = {f.column: rng.normal(size=(num_rows, f.width)).astype(np.float32) for f in spec.features}
    rows = Rows(spec=spec, data=data | scores | boxes(spec, counts, rng) | _features(spec, features))
    rows.check("synthetic")
    return Truth(rows, logprobs, features, drawn)


def unit_of(rows: Rows) -> str:
    return unit_name(rows.example_ids, rows.spec.hash)


def seal(rows: Rows, groups: int = 2):
    """A sealed shard of some rows, in a few row groups."""
    parts = np.array_split(np.arange(len(rows)), min(groups, len(rows)))
    totals = Totals(
        kept_mass_sum=0.9 * rows.num_positions,
        entropy_sum_nats=1.5 * rows.num_positions,
        length_histogram=length_histogram(rows.input_ids.lengths),
    )
    return seal_shard(
        (rows.take(part) for part in parts),
        spec=rows.spec,
        fingerprint_hash=FINGERPRINT.hash,
        unit=unit_of(rows),
        totals=totals,
        ranking=ranking_of([rows]),
    )


def header_of(spec: Spec) -> Header:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in TOKENIZER_FILES.items()}
    return Header(fingerprint=FINGERPRINT, spec=spec, teacher={"name": "synthetic"}, tokenizer=hashes)


def begin(path, spec: Spec) -> Storage:
    """A cache with a header, and nothing committed."""
    storage = Storage.at(path)
    create_header(storage, header_of(spec), TOKENIZER_FILES)
    return storage


def add(storage: Storage, base: Version | None, parts: list[Rows], run: str = "run", **fields) -> int:
    """Stores each part as a shard, and commits them as one version."""
    sealed = [seal(rows) for rows in parts]
    for shard in sealed:
        storage.put(shard.name, shard.data)
    spec = parts[0].spec
    shards = [Shard(s.name, len(s.data), s.footer.totals.examples) for s in sealed]
    totals = sum((shard.footer.totals for shard in sealed), Totals())
    fields = {"header_hash": header_of(spec).to_json()["hash"], **fields}
    return commit(storage, spec, base, shards, record_after(base, shards, totals, run=run, **fields))


def make_cache(
    path: Path, spec: Spec | None = None, num_rows: int = 24, num_shards: int = 2, seed: int = 0
) -> Cache:
    """A committed cache of one version."""
    rows = random_rows(spec or causal_spec(), num_rows, seed).rows
    parts = [rows.take(part) for part in np.array_split(np.arange(num_rows), num_shards)]
    add(begin(path, rows.spec), None, parts)
    return Cache.open(path)


def _hashes(hashes: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16)


def _sources(lengths) -> np.ndarray:
    """Half of each example's tokens, rounded up."""
    return ((lengths + 1) // 2).astype(np.int32)


def _places(spec: Spec, lengths, rng) -> list:
    if spec.kind.places == "whole_text":
        return [np.arange(spec.kind.text_positions, dtype=np.int32)] * len(lengths)
    if spec.kind.holds_texts:
        marked = [np.flatnonzero(rng.random(length) < 0.3).astype(np.int32) for length in lengths]
        return [np.union1d(one, np.zeros(1, np.int32)) for one in marked]
    if spec.kind.places == "none":
        return [np.zeros(0, np.int32)] * len(lengths)
    if spec.kind.places == "token":
        masked = [np.flatnonzero(rng.random(length) < 0.3).astype(np.int32) for length in lengths]
        return [one if one.size else np.zeros(1, np.int32) for one in masked]
    if spec.kind.has_source:
        halves = zip(_sources(lengths).tolist(), lengths.tolist(), strict=True)
        return [np.arange(source - 1, length - 1, dtype=np.int32) for source, length in halves]
    return [
        None if rng.random() < 0.5 else np.flatnonzero(rng.random(length - 1) < 0.6).astype(np.int32)
        for length in lengths
    ]


def table_of(rows: Rows) -> pa.Table:
    """The table of a shard of just these rows: equal rows have equal ones, in whatever order draws stand."""
    return rows.to_arrow(ranking_of([rows]))


def draws_by_id(rows: Rows) -> Rows:
    """The same rows, with each position's drawn entries by id: their order means nothing."""
    if not rows.spec.is_sampling:
        return rows
    position = np.repeat(np.arange(rows.num_positions), rows.sampled_counts)
    order = np.lexsort([rows.ragged("sampled_ids").values, position])
    names = [name for name in ("sampled_ids", "sampled_codes", "sampled_counts") if name in rows.data]
    moved = {name: replace(rows.ragged(name), values=rows.ragged(name).values[order]) for name in names}
    return Rows(spec=rows.spec, data={**rows.data, **moved})


def _logits(spec: Spec, counts, rng):
    widths = counts * spec.vocab_size
    labels = [None if rng.random() < 0.3 else rng.integers(0, 2, width) for width in widths]
    if spec.kind.labels == "objects":
        labels = [None] * len(widths)
    logits = rng.normal(size=widths.sum()).astype(np.float32)
    return {"labels": Ragged.of(labels, np.float32), "logits": ragged(logits, widths)}, logits, np.zeros(0)


def _nothing(spec: Spec, counts, rng):
    return {}, np.zeros(0, np.float32), np.zeros(0)


def _features(spec: Spec, values):
    data = {}
    for feature in spec.features:
        array = values[feature.column]
        widths = np.full(len(array), feature.width)
        if feature.dtype == "int8":
            codes, scale = quantise(array)
            data[feature.column], data[feature.scale_column] = ragged(codes.reshape(-1), widths), scale
        else:
            data[feature.column] = ragged(array.reshape(-1), widths)
    return data
