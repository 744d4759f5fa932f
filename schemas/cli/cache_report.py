"""What a cache holds, as plain values that `json.dumps` takes. `teachonce inspect` shows them.

`describe` reads the log and the shards' footers, never a shard's data; `describe_rows` decodes a few examples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np

from schemas.cache import Cache
from schemas.cli.vocabulary import id_texts, token_texts
from schemas.errors import REPAIR
from schemas.limits import told
from schemas.rows.columns import BOXES, IMAGE, OBJECT_BOXES, OBJECT_CLASSES
from schemas.rows.entries import Entries, entries_of
from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from schemas.shards.seal import Totals
from schemas.versions.records import CommitRecord

FOOTERS = "(footers)"
"""Bytes of no column: footers with their seals, and magic numbers."""


def describe(cache: Cache) -> dict[str, Any]:
    """All that the log and the footers say of one version, ready for JSON.

    Means are None where there is nothing to take the mean of.

    Raises:
        CorruptionError: a footer is missing or damaged.
    """
    totals, softmax = cache.totals, cache.spec.score == "softmax"
    by_column = {name: _mean(size, totals.tokens) for name, size in bytes_by_column(cache).items()}
    return {
        "path": cache.storage.root,
        "version": cache.version,
        "format_version": cache.header.format_version,
        "teacher": dict(cache.header.teacher),
        "fingerprint": asdict(cache.fingerprint),
        "spec": cache.spec.to_json(),
        "shards": len(cache.shards),
        "row_groups": len(cache.row_groups),
        "examples": totals.examples,
        "tokens": totals.tokens,
        "positions": totals.positions,
        "entries": totals.entries,
        "entries_per_position": _mean(totals.entries, totals.positions),
        "kept_mass": _mean(totals.kept_mass_sum, totals.positions) if softmax else None,
        "entropy_nats": _mean(totals.entropy_sum_nats, totals.positions) if softmax else None,
        "clamped_codes": totals.clamped_codes,
        "bytes": cache.size_bytes,
        "bytes_per_token": _mean(cache.size_bytes, totals.tokens),
        "bytes_per_token_by_column": by_column,
        "lengths": _lengths(totals),
        **_history(cache),
    }


def bytes_by_column(cache: Cache) -> dict[str, int]:
    """Compressed bytes of each column over all live shards; with `(footers)` they sum up to the cache's bytes."""
    found: Counter[str] = Counter()
    for name, opened in cache.footers.items():
        with told("a shard's footer cannot be read", f"{cache.storage.root}/{name}", REPAIR):
            for place in range(opened.metadata.num_row_groups):
                group = opened.metadata.row_group(place)
                for index in range(group.num_columns):
                    chunk = group.column(index)
                    found[chunk.path_in_schema.partition(".")[0]] += chunk.total_compressed_size
    found[FOOTERS] = cache.size_bytes - sum(found.values())
    return dict(found)


def describe_rows(cache: Cache, limit: int, top: int = 5) -> list[dict[str, Any]]:
    """The first `limit` examples, decoded: of each position the `top` likeliest entries.

    Drawn ones whose probability is not stored come behind the exact ones; the heavier first.

    Raises:
        CorruptionError: a shard is damaged.
    """
    inputs, scores = token_texts(cache), id_texts(cache)
    return [describe_row(row, inputs, scores, top) for row in islice(_single_rows(cache), limit)]


def _history(cache: Cache) -> dict[str, Any]:
    """Rejects summed over the versions, and one line for each version."""
    records = cache.versions()
    rejects: Counter[str] = Counter()
    for _, record in records:
        rejects.update(record.rejects)
    return {
        "rejects": dict(sorted(rejects.items())),
        "versions": [_version(number, record) for number, record in records],
    }


def _version(number: int, record: CommitRecord) -> dict[str, Any]:
    return {
        "version": number,
        "run": record.run,
        "time": datetime.fromtimestamp(record.time_ms / 1000, UTC).isoformat(timespec="seconds"),
        "shards": record.live_shards,
        "examples": record.live_rows,
        "rejects": dict(record.rejects),
        "provenance": dict(record.provenance),
    }


def _lengths(totals: Totals) -> list[dict[str, int]]:
    """Examples by length in tokens, bucket by bucket, without the empty ends."""
    filled = [bucket for bucket, count in enumerate(totals.length_histogram) if count]
    buckets = range(filled[0], filled[-1] + 1) if filled else range(0)
    counts = totals.length_histogram
    return [{"from": 2**b, "to": 2 ** (b + 1) - 1, "examples": counts[b]} for b in buckets]


def _mean(total: int | float, count: int) -> float | None:
    return total / count if count else None


def _single_rows(cache: Cache) -> Iterator[Rows]:
    for rows in cache.read_all():
        for index in range(len(rows)):
            yield rows.take(np.array([index]))


def describe_row(row: Rows, inputs: Mapping[int, str], scores: Mapping[int, str], top: int) -> dict[str, Any]:
    """One row (R = 1), decoded by what ids mean: of each position the `top` likeliest entries."""
    optional = {name: row.array(name)[0] for name in ("document_id", "text", "text_pair") if name in row.data}
    return {
        "example_id": row.example_ids[0].hex(),
        "document_hash": row.array("document_hash")[0].tobytes().hex(),
        "window": f"{row.array('window_index')[0] + 1} of {row.array('window_count')[0]}",
        "tokens": row.num_tokens,
        **optional,
        **({"image_bytes": len(row.array(IMAGE)[0])} if IMAGE in row.data else {}),
        **_scored(row, inputs, scores, top),
    }


def _scored(row: Rows, inputs: Mapping[int, str], scores: Mapping[int, str], top: int) -> dict[str, Any]:
    """Its positions; of a row without any its features, of each the first `top` numbers."""
    if not row.spec.kind.has_positions:
        features = [(feature.name, row.feature(feature)[0]) for feature in row.spec.features]
        told = {name: {"first": v[:top].tolist(), "length": float(np.linalg.norm(v))} for name, v in features}
        return {"positions": [], "features": told}
    softmax = row.spec.score == "softmax"
    positions = list(_kept(row, inputs, scores, top) if softmax else _logits(row, scores))
    if not row.spec.kind.has_boxes:
        return {"positions": positions}
    boxes = row.ragged(BOXES).values.reshape(-1, 4).tolist()
    classes = row.ragged(OBJECT_CLASSES)
    places = row.ragged(OBJECT_BOXES).values.reshape(-1, 4).tolist()
    pairs = zip(classes.values.tolist(), places, strict=True)
    objects = [{**_named(own, scores), "box": box} for own, box in pairs] if classes.validity[0] else None
    boxed = [{**one, "box": box} for one, box in zip(positions, boxes, strict=True)]
    return {"positions": boxed, "objects": objects}


def _kept(
    row: Rows, inputs: Mapping[int, str], scores: Mapping[int, str], top: int
) -> Iterator[dict[str, Any]]:
    """Each position of a softmax row: where it stands, its label and its likeliest entries, each with its weight."""
    found, labels = entries_of(row), _labels(row)
    offsets, order = offsets_of(found.counts), _likeliest_first(found)
    ids, logprobs, weights = (values[order] for values in (found.ids, found.logprobs, found.weights))
    entropy = row.entropy().tolist() if "entropy" in row.spec.scalars else None
    if row.spec.kind.classes_are_tokens:  # an id is a place in the row
        scores = {
            i: inputs[token] for i, token in enumerate(row.input_ids.values.tolist()) if token in inputs
        }
    by_text = row.spec.kind.classes_are_tokens or row.spec.kind.reads_images
    for n, index in enumerate(row.position_index().tolist()):
        ends = slice(offsets[n], min(offsets[n] + top, offsets[n + 1]))
        triples = zip(*(values[ends].tolist() for values in (ids, logprobs, weights)), strict=True)
        yield {
            "index": index,
            # of positions that belong to no token there is none
            **({} if by_text else {"input": _named(int(row.input_ids.values[index]), inputs)}),
            "label": None if labels is None else _named(labels[n], scores),
            **({} if entropy is None else {"entropy_nats": entropy[n]}),
            "kept": int(found.counts[n]),
            "entries": [_entry(_named(i, scores), logprob, weight) for i, logprob, weight in triples],
        }


def _likeliest_first(found: Entries) -> Array:
    """Places of all entries, position by position."""
    position = np.repeat(np.arange(len(found.counts)), found.counts)
    known = np.nan_to_num(found.logprobs, nan=-np.inf, neginf=-np.inf)
    return np.lexsort((-found.weights, -known, position))


def _entry(named: dict[str, Any], logprob: float, weight: float) -> dict[str, Any]:
    """A drawn entry has its weight, and its own log-probability only where that is stored."""
    known = {} if math.isnan(logprob) else {"logprob": logprob}
    return {**named, **known, "weight": weight}


def _labels(row: Rows) -> list[int] | None:
    """The label of each position, where the row has labels."""
    gold: list[int] = row.gold_ids().values.tolist()
    return gold or None


def _logits(row: Rows, scores: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """Each position of a row whose scores are raw: all of them, in order."""
    width = row.spec.vocab_size
    values = row.ragged("logits").values.reshape(-1, width).tolist()
    labels = row.ragged("labels").values.reshape(-1, width).tolist()
    for n, index in enumerate(row.position_index().tolist()):
        yield {
            "index": index,
            "label": labels[n] if labels else None,
            "entries": [{**_named(i, scores), "logit": logit} for i, logit in enumerate(values[n])],
        }


def _named(index: int, texts: Mapping[int, str]) -> dict[str, Any]:
    return {"id": index, "text": texts[index]} if index in texts else {"id": index}
