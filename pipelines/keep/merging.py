"""Rows of several teachers as those of one: pure functions on the same examples, as each cache holds them.

Where one is picked at each position all that it stored there is copied, code for code. A mean is of whole
distributions at temperature 1, each made to sum to 1, or of probabilities of each class, or of values; it is encoded
anew, and its scalars follow from it. Features stand one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from schemas.rows.arrow import ColumnData
from schemas.rows.codec import decode_scalars, encode_logprobs, encode_scalars, quantise
from schemas.rows.ragged import Array, Ragged, offsets_of, spans
from schemas.rows.rows import Rows
from schemas.spec import Spec

Pick = Literal["loss", "entropy"]
_OF_COUNTS = {
    "num_kept": ("kept_ids", "kept_codes"),
    "num_sampled": ("sampled_ids", "sampled_counts", "sampled_codes"),
}
"""What has so many values at each position."""


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How several are one."""

    weights: tuple[float, ...]
    """Of each cache in the mean; they sum to 1."""
    pick: Pick | None = None
    """In place of the mean one at each position: the surer, or the one to whom the gold id is likelier."""


def merge_rows(parts: Sequence[Rows], spec: Spec, how: Merging) -> Rows:
    """One cache's rows from the same examples of several, in one order; `spec` is the merged cache's."""
    first = parts[0]
    declared = {name for feature in first.spec.features for name in (feature.column, feature.scale_column)}
    data = {name: column for name, column in first.data.items() if name not in declared}
    if how.pick is not None:
        data |= _picked(parts, _choice(parts, how.pick))
    elif spec.score == "softmax":
        data |= _mean(parts, how.weights)
    else:
        logits = _mean_logits([_logits(part) for part in parts], how.weights, spec.score)
        data["logits"] = replace(first.ragged("logits"), values=logits.astype(np.float32).reshape(-1))
    return Rows(spec=spec, data=data | _features(parts, spec))


def _choice(parts: Sequence[Rows], pick: Pick) -> Int64[np.ndarray, " N"]:
    """Which of them is taken at each position; the first where they are alike, or nothing is gold."""
    found: Array
    if parts[0].spec.score == "softmax":
        column = "entropy_codes" if pick == "entropy" else "gold_codes"
        found = np.stack([_at_positions(part, column) for part in parts]).argmin(0)
        return found
    logits, labels = [_logits(part) for part in parts], parts[0].ragged("labels")
    if pick == "entropy":
        found = np.stack([_binary(each, np.exp(_log_expit(each))).sum(1) for each in logits]).argmin(0)
        return found
    gold: Array = np.zeros_like(logits[0])
    known = np.repeat(labels.validity, np.diff(parts[0].position_offsets))
    gold[known] = labels.values.reshape(-1, parts[0].spec.vocab_size)
    if parts[0].spec.score == "identity":
        nats = [((each - gold) ** 2).sum(1) for each in logits]
    else:
        nats = [_binary(each, gold).sum(1) for each in logits]
    found = np.stack(nats).argmin(0) * known
    return found


def _log_expit(logits: Array) -> Array:
    """Log of the logistic function."""
    found: Array = -np.logaddexp(0.0, -logits)
    return found


def _binary(logits: Array, gold: Array) -> Array:
    """Cross entropy of each class, yes or no."""
    found: Array = -(gold * _log_expit(logits) + (1 - gold) * _log_expit(-logits))
    return found


def _picked(parts: Sequence[Rows], chosen: Int64[np.ndarray, " N"]) -> dict[str, ColumnData]:
    first, spec = parts[0], parts[0].spec
    at = chosen * len(chosen) + np.arange(len(chosen))
    widths = {
        "top_codes": 1,
        "entropy_codes": 1,
        "word_start_codes": 1,
        "logsumexp": len(spec.temperatures),
        "logits": spec.vocab_size,
    }
    found: dict[str, ColumnData] = {}
    for name in (name for name in widths if name in first.data):
        every = np.concatenate([part.ragged(name).values.reshape(-1, widths[name]) for part in parts])
        found[name] = replace(first.ragged(name), values=every[at].reshape(-1))
    if "gold_codes" in first.data:
        gold = first.ragged("gold_codes")
        every = np.concatenate([_at_positions(part, "gold_codes") for part in parts])[at]
        known = np.repeat(gold.validity, np.diff(first.position_offsets))
        found["gold_codes"] = replace(gold, values=every[known])
    for counted, names in _OF_COUNTS.items():
        if counted in first.data:
            found |= _picked_entries(parts, at, counted, [name for name in names if name in first.data])
    return found


def _picked_entries(
    parts: Sequence[Rows], at: Int64[np.ndarray, " N"], counted: str, names: Sequence[str]
) -> dict[str, ColumnData]:
    offsets = parts[0].position_offsets
    counts = np.concatenate([part.ragged(counted).values for part in parts])
    own = counts[at].astype(np.int64)
    places = spans(offsets_of(counts)[:-1][at], own, offsets_of(own))
    found: dict[str, ColumnData] = {counted: Ragged(values=counts[at], offsets=offsets)}
    for name in names:
        values = np.concatenate([part.ragged(name).values for part in parts])
        found[name] = Ragged(values=values[places], offsets=offsets_of(own)[offsets])
    return found


def _at_positions(rows: Rows, name: str) -> Array:
    """A column's value at each position, 0 where its row has none."""
    column, lengths = rows.ragged(name), np.diff(rows.position_offsets)
    found = np.zeros(int(lengths.sum()), column.values.dtype)
    found[np.repeat(column.validity, lengths)] = column.values
    return found


def _mean(parts: Sequence[Rows], weights: Sequence[float]) -> dict[str, ColumnData]:
    """Of whole distributions: each has an entry for every class, so entries of one place are of one id."""
    first, spec = parts[0], parts[0].spec
    counts = first.kept_counts.astype(np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    orders = [np.lexsort((part.kept_ids, owner)) for part in parts]
    ids = first.kept_ids[orders[0]]
    mass = np.zeros(len(ids))
    for part, order, weight in zip(parts, orders, weights, strict=True):
        own = np.exp(part.kept_logprobs().astype(np.float64))[order]
        mass += weight * own / np.bincount(owner, own, len(counts))[owner]
    order = np.lexsort((ids, -mass, owner))
    ids, logprobs = ids[order], np.log(mass[order])
    top = encode_scalars(-logprobs[offsets_of(counts)[:-1]].astype(np.float32), spec.top_step_nats).codes
    decoded = -decode_scalars(top, spec.top_step_nats)
    codes = encode_logprobs(logprobs.astype(np.float32), counts, decoded, spec.code_step_nats).codes
    found = {
        "kept_ids": replace(first.ragged("kept_ids"), values=ids),
        "kept_codes": replace(first.ragged("kept_codes"), values=codes),
        "top_codes": replace(first.ragged("top_codes"), values=top),
    }
    if "word_start" in spec.scalars:
        said = np.stack([part.word_start_logprob().astype(np.float64) for part in parts])
        with np.errstate(divide="ignore"):
            words = np.logaddexp.reduce(said + np.log(weights)[:, None])
        codes = encode_scalars(-words.astype(np.float32), spec.scalar_step_nats).codes
        found["word_start_codes"] = replace(first.ragged("word_start_codes"), values=codes)
    return found | _scalars(first, ids, logprobs, owner)


def _scalars(
    first: Rows, ids: Array, logprobs: Float64[np.ndarray, " E"], owner: Array
) -> dict[str, ColumnData]:
    """What the mean's own distribution gives; its logits are its log-probabilities."""
    spec, number, found = first.spec, first.num_positions, dict[str, ColumnData]()
    mass = np.exp(logprobs)
    if "entropy" in spec.scalars:
        entropy = -np.bincount(owner, mass * logprobs, number)
        codes = encode_scalars(entropy.astype(np.float32), spec.scalar_step_nats).codes
        found["entropy_codes"] = replace(first.ragged("entropy_codes"), values=codes)
    if "gold" in spec.scalars:
        gold, right = first.ragged("gold_codes"), first.gold_ids()
        known = np.flatnonzero(np.repeat(right.validity, np.diff(first.position_offsets)))
        wanted = np.full(number, -1, np.int64)
        wanted[known] = right.values
        values = np.zeros(number)
        hits = ids == wanted[owner]
        values[owner[hits]] = logprobs[hits]
        codes = encode_scalars(-values[known].astype(np.float32), spec.scalar_step_nats).codes
        found["gold_codes"] = replace(gold, values=codes)
    if "logsumexp" in spec.scalars:
        sums = [np.log(np.bincount(owner, np.exp(logprobs / t), number)) for t in spec.temperatures]
        stored = np.stack(sums, 1).astype(np.float32).reshape(-1)
        found["logsumexp"] = replace(first.ragged("logsumexp"), values=stored)
    return found


def _logits(rows: Rows) -> Float64[np.ndarray, "N V"]:
    found: Array = rows.ragged("logits").values.astype(np.float64).reshape(-1, rows.spec.vocab_size)
    return found


def _mean_logits(logits: Sequence[Array], weights: Sequence[float], score: str) -> Float64[np.ndarray, "N V"]:
    """Of values their mean; of classes that are each there or not the logit of their probabilities' mean."""
    stacked, shares = np.stack(logits), np.array(weights)[:, None, None]
    if score == "identity":
        values: Array = (shares * stacked).sum(0)
        return values
    with np.errstate(divide="ignore"):
        logs = np.log(shares)
    yes, no = (np.logaddexp.reduce(_log_expit(sign * stacked) + logs) for sign in (1.0, -1.0))
    joined: Array = yes - no
    return joined


def _features(parts: Sequence[Rows], spec: Spec) -> dict[str, ColumnData]:
    found: dict[str, ColumnData] = {}
    for place, feature in enumerate(spec.features):
        values = np.concatenate([part.feature(part.spec.features[place]) for part in parts], axis=1)
        offsets = np.arange(len(values) + 1, dtype=np.int64) * feature.width
        if feature.dtype == "int8":
            codes, scale = quantise(values)
            found[feature.column] = Ragged(values=codes.reshape(-1), offsets=offsets)
            found[feature.scale_column] = scale
        else:
            found[feature.column] = Ragged(values=values.reshape(-1), offsets=offsets)
    return found
