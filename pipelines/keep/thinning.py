"""Rows under a smaller keep policy, from rows under a larger one: pure functions, a row group at a time.

Largest entries are copied code for code. What is drawn is drawn from *weights*: from a whole stored distribution, they
are its probabilities; of a threshold cache, exact entries weigh their own and drawn ones tau. Each has the expectation
that the teacher gave it, so an entry that weighs w < tau' is kept with probability w / tau' and then weighs tau':
the expectation is the same. It needs a uniform that is independent of the first draw's; it comes from the same hash
with the new policy as its purpose, so that a chain of thinnings never sees one twice.

Cost: entries are laid out as `[N, C]` with C the most of any position, and gone over a dozen times.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from pipelines.keep.uniforms import streams, uniforms
from schemas.policies import KeepAll, Sampled, Threshold, TopK, TopP
from schemas.rows.arrow import ColumnData
from schemas.rows.codec import encode_levels
from schemas.rows.entries import softened
from schemas.rows.ragged import Array, Ragged, offsets_of, spans
from schemas.rows.rows import Rows
from schemas.spec import Spec

_ENTRIES = ("num_kept", "kept_ids", "kept_codes")
_DRAWN = ("num_sampled", "sampled_ids", "sampled_codes", "sampled_counts")


def thin_rows(rows: Rows, spec: Spec) -> Rows:
    """The same examples under a spec that `thinned_spec` made of theirs."""
    data = {name: column for name, column in rows.data.items() if name not in (*_ENTRIES, *_DRAWN)}
    for name in ("entropy", "gold", "word_start"):
        if name not in spec.scalars:
            data.pop(f"{name}_codes", None)
    data.pop("logsumexp", None)
    if "logsumexp" in spec.scalars:
        data["logsumexp"] = _logsumexp(rows, spec)
    return Rows(spec=spec, data=data | _entries(rows, spec))


def _entries(rows: Rows, spec: Spec) -> dict[str, ColumnData]:
    keep = spec.keep
    if keep == rows.spec.keep:
        names = (*_ENTRIES, *(n for n in _DRAWN if n != "sampled_codes" or spec.own_logits))
        return {name: rows.data[name] for name in names if name in rows.data}
    if isinstance(keep, TopK):
        return _largest(rows, np.minimum(rows.kept_counts.astype(np.int64), keep.k))
    if isinstance(keep, TopP):
        return _largest(rows, nucleus_counts(rows, keep))
    if isinstance(keep, Threshold):
        return _thresholded(rows, keep, spec)
    assert isinstance(keep, Sampled), keep
    return _redrawn(rows, keep, spec)


def _largest(rows: Rows, counts: Int64[np.ndarray, " N"]) -> dict[str, ColumnData]:
    """The first `counts` exact entries of each position."""
    places = spans(rows.kept_offsets[:-1], counts, offsets_of(counts))
    return {
        "num_kept": _listed(rows, counts.astype(np.int32)),
        "kept_ids": _listed(rows, rows.kept_ids[places], counts),
        "kept_codes": _listed(rows, rows.ragged("kept_codes").values[places], counts),
    }


def nucleus_counts(rows: Rows, keep: TopP) -> Int64[np.ndarray, " N"]:
    """How many of a position's entries `top_p` keeps, decided on decoded probabilities."""
    stored = rows.kept_counts.astype(np.int64)
    if isinstance(rows.spec.keep, TopP) and rows.spec.keep.p == keep.p:
        return np.minimum(stored, keep.k)
    mass = _masses(rows)
    before = np.cumsum(mass, axis=1) - mass
    counts = np.maximum((before < keep.p).sum(1), 1)
    found: Array = np.minimum(np.minimum(counts, keep.k), stored)
    return found


def _masses(rows: Rows) -> Float64[np.ndarray, "N K"]:
    """Probabilities of the exact entries, made to sum to what is known of their sum.

    All classes of them sum to 1. A nucleus that ended before its cap reached p with its last entry, and not before.
    Then only the ratio between the entries before a cut and those after it is left to the codec's rounding.
    """
    keep, counts = rows.spec.keep, rows.kept_counts.astype(np.int64)
    mass = _dense(np.exp(rows.kept_logprobs().astype(np.float64)), counts)
    total = stored = mass.sum(1)
    if isinstance(keep, TopP):
        last = mass[np.arange(len(mass)), counts - 1]
        total = np.where(counts < keep.k, keep.p + last / 2, total)
    total = np.where(counts == rows.class_counts, 1.0, total)
    mass *= (total / stored)[:, None]
    return mass


class Weighed(NamedTuple):
    """The weights of N positions: exact entries, descending, and drawn ones, of which each weighs `tau`."""

    weights: Float64[np.ndarray, " E"]
    ids: Int32[np.ndarray, " E"]
    counts: Int64[np.ndarray, " N"]
    drawn_ids: Int32[np.ndarray, " D"]
    drawn_counts: Int64[np.ndarray, " N"]
    tau: float
    """0 where none is drawn."""
    most: float
    """What the true weights of a position sum to at most, but for `tau`."""


class Redrawn(NamedTuple):
    """What a threshold keeps of them."""

    held: Int64[np.ndarray, " N"]
    """How many exact entries of each position stay exact: its first."""
    drawn: Int64[np.ndarray, " M"]
    """Places of those that are drawn, among all exact entries and then all drawn ones."""
    counts: Int64[np.ndarray, " N"]


def redraw(old: Weighed, keep: Threshold, most_exact: int, uniform: Float64[np.ndarray, " N"]) -> Redrawn:
    """Entries of weight tau or more, or among the k largest, stay exact; of all others a systematic sample is drawn.

    The rounding of decoded weights may add up to more than there can be: then the others are scaled down, so that no
    more are drawn than a true distribution gives.
    """
    held = _held(old.weights, old.counts, keep, most_exact)
    counts = old.counts - held
    rest = spans(offsets_of(old.counts)[:-1] + held, counts, offsets_of(counts))
    places = np.concatenate([rest, len(old.ids) + np.arange(len(old.drawn_ids))])
    position = np.repeat(np.tile(np.arange(len(held)), 2), np.concatenate([counts, old.drawn_counts]))
    # ascending ids keep the variance low, as they do at the first draw
    order = np.argsort(position << 32 | np.concatenate([old.ids, old.drawn_ids])[places], kind="stable")
    places, position = places[order], position[order]
    totals = _dense(old.weights, old.counts).sum(1) + old.tau * old.drawn_counts
    scale = np.minimum(1.0, (old.most + old.tau) / totals)
    weights = np.concatenate([old.weights, np.full(len(old.drawn_ids), old.tau)])[places] * scale[position]
    kept = systematic(weights, counts + old.drawn_counts, keep.tau, uniform)
    return Redrawn(held, places[kept], np.bincount(position[kept], minlength=len(held)))


def _thresholded(rows: Rows, keep: Threshold, spec: Spec) -> dict[str, ColumnData]:
    drawn_ids = _drawn(rows, "sampled_ids", np.int32)
    old = Weighed(
        weights=_exact_weights(rows, spec.temperatures),
        ids=rows.kept_ids,
        counts=rows.kept_counts.astype(np.int64),
        drawn_ids=drawn_ids,
        drawn_counts=rows.sampled_counts.astype(np.int64),
        tau=rows.spec.keep.tau if isinstance(rows.spec.keep, Threshold) else 0.0,
        most=len(spec.temperatures),
    )
    new = redraw(old, keep, spec.max_kept, _uniforms(rows, spec))
    columns = {
        **_largest(rows, new.held),
        "num_sampled": _listed(rows, new.counts.astype(np.int32)),
        "sampled_ids": _listed(rows, np.concatenate([old.ids, drawn_ids])[new.drawn], new.counts),
    }
    if spec.own_logits:
        levels = np.concatenate([_levels(rows), _drawn(rows, "sampled_codes", np.int16)])
        columns["sampled_codes"] = _listed(rows, levels[new.drawn], new.counts)
    return columns


def _held(
    weights: Float64[np.ndarray, " E"], counts: Int64[np.ndarray, " N"], keep: Threshold, most: int
) -> Int64[np.ndarray, " N"]:
    """How many of each position's descending entries stay exact."""
    heavy = _dense(weights, counts) >= keep.tau
    held: Array = np.minimum(np.maximum(heavy.sum(1), np.minimum(counts, keep.k)), most)
    return held


def _exact_weights(rows: Rows, temperatures: tuple[float, ...]) -> Float64[np.ndarray, " E"]:
    """Each exact entry's largest probability over the temperatures; whole distributions are made to sum to 1."""
    logprobs, counts = rows.kept_logprobs(), rows.kept_counts.astype(np.int64)
    found = np.zeros(len(logprobs))
    for temperature in temperatures:
        weights = np.exp(softened(rows, logprobs, counts, temperature).astype(np.float64))
        if isinstance(rows.spec.keep, KeepAll):
            weights /= np.repeat(_dense(weights, counts).sum(1), counts)
        np.maximum(found, weights, out=found)
    return found


def systematic(
    weights: Float64[np.ndarray, " C"],
    counts: Int64[np.ndarray, " N"],
    tau: float,
    uniform: Float64[np.ndarray, " N"],
) -> Bool[np.ndarray, " C"]:
    """Which candidates are kept: each with probability `weight / tau`, or surely if it weighs tau or more.

    Of a position's running sums C_i, i is kept iff floor(C_i / tau - u) > floor(C_(i-1) / tau - u).
    """
    running = np.cumsum(_dense(np.minimum(weights, tau) / tau, counts), axis=1)
    steps = np.floor(running - uniform[:, None])
    kept = np.diff(steps, axis=1, prepend=np.floor(-uniform)[:, None]) > 0
    found: Array = kept[_mask(counts, kept.shape[1])]
    return found


def _redrawn(rows: Rows, keep: Sampled, spec: Spec) -> dict[str, ColumnData]:
    """Independent draws from whole distributions: entry i where the uniform falls between two running sums."""
    counts = rows.kept_counts.astype(np.int64)
    running = np.cumsum(_dense(np.exp(rows.kept_logprobs().astype(np.float64)), counts), axis=1)
    running /= running[:, -1:]
    row, token = _places(rows)
    u = streams(rows.array("example_id"), row, token, seed=spec.sample_seed, count=keep.n)
    picked = np.stack([(running <= column[:, None]).sum(1) for column in u.T], axis=1)
    ids = _dense(rows.kept_ids.astype(np.float64), counts)  # exact: ids are far below 2**53
    drawn = np.take_along_axis(ids, picked, axis=1).astype(np.int64)
    keys, times = np.unique(np.arange(len(counts))[:, None] << 32 | drawn, return_counts=True)
    num_sampled = np.bincount(keys >> 32, minlength=len(counts))
    return {
        **_largest(rows, np.zeros_like(counts)),
        "num_sampled": _listed(rows, num_sampled.astype(np.int32)),
        "sampled_ids": _listed(rows, (keys & 0xFFFFFFFF).astype(np.int32), num_sampled),
        "sampled_counts": _listed(rows, times.astype(np.int32), num_sampled),
    }


def _uniforms(rows: Rows, spec: Spec) -> Float64[np.ndarray, " N"]:
    """Of a whole distribution the teacher's own draw; of draws an independent one."""
    row, token = _places(rows)
    purpose = f"thin {spec.keep}" if rows.spec.is_sampling else ""
    return uniforms(rows.array("example_id"), row, token, seed=spec.sample_seed, purpose=purpose)


def _places(rows: Rows) -> tuple[Int64[np.ndarray, " N"], Array]:
    """The row and the token on which each position stands."""
    return np.repeat(np.arange(len(rows)), np.diff(rows.position_offsets)), rows.position_index()


def _levels(rows: Rows) -> Array:
    """Each exact entry's own distance below its top, as drawn entries have it: the same level, so the same value."""
    step = rows.spec.code_step_nats
    return encode_levels(rows.kept_logprobs(), rows.kept_counts, rows.top_logprob(), step).codes


def _logsumexp(rows: Rows, spec: Spec) -> Ragged:
    stored = rows.ragged("logsumexp")
    places = [rows.spec.temperatures.index(temperature) for temperature in spec.temperatures]
    values = stored.values.reshape(-1, len(rows.spec.temperatures))[:, places].reshape(-1)
    return replace(stored, values=values, offsets=rows.position_offsets * len(places))


def _drawn(rows: Rows, name: str, dtype: type) -> Array:
    """A column of drawn entries; empty where there are none."""
    return rows.ragged(name).values if name in rows.data else np.zeros(0, dtype)


def _listed(rows: Rows, values: Array, counts: Array | None = None) -> Ragged:
    """A list a row, of one value a position, or of `counts` of them."""
    offsets = rows.position_offsets
    return Ragged(values=values, offsets=offsets if counts is None else offsets_of(counts)[offsets])


def _mask(counts: Int64[np.ndarray, " N"], width: int) -> Bool[np.ndarray, "N C"]:
    mask: Array = np.arange(width) < counts[:, None]
    return mask


def _dense(values: Float64[np.ndarray, " E"], counts: Int64[np.ndarray, " N"]) -> Float64[np.ndarray, "N C"]:
    """Each position's values in a row of its own, zeros behind them: sums do not depend on the neighbours."""
    mask = _mask(counts, int(counts.max(initial=1)))
    found = np.zeros(mask.shape)
    found[mask] = values
    return found
