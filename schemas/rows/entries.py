"""What a position's kept entries say at a temperature: exact and drawn ones together, each with its weight.

The weights of a sampling policy are unbiased: the expectation of `sum of weight x f(id)` is the full distribution's.
They are never renormalised, and there is no tail. The weights of the other policies are the entries' own probabilities,
and what they lack to 1 is the tail's mass.

A drawn entry of `threshold` weighs tau at temperature 1. With temperatures declared it was kept with probability
m / tau, m its largest probability over them, and weighs `tau x p_T / m` at T. A draw of `sampled:N` weighs its count
by N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from schemas.policies import Sampled, Threshold
from schemas.rows.ragged import Array, spans
from schemas.rows.rows import Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """The E entries of N positions, position by position, exact ones (descending) before drawn ones."""

    ids: Int32[np.ndarray, " E"]
    counts: Int64[np.ndarray, " N"]
    weights: Float32[np.ndarray, " E"]
    """At the temperature that was asked for."""
    logprobs: Float32[np.ndarray, " E"]
    """Each entry's own, at temperature 1; NaN for a drawn one where the cache does not store it."""
    is_exact: Array
    """bool [E]"""


def entries_of(rows: Rows, temperature: float = 1.0) -> Entries:
    """All kept entries of some rows.

    Raises:
        ValueError: the spec does not declare the temperature.
    """
    if temperature not in rows.spec.temperatures:
        raise ValueError(
            f"the cache can be asked at temperatures {rows.spec.temperatures}, not {temperature}"
        )
    exact = rows.kept_logprobs()
    exact_counts = rows.kept_counts.astype(np.int64)
    weights = np.exp(softened(rows, exact, exact_counts, temperature))
    if not rows.spec.is_sampling:
        every = np.ones(len(exact), np.bool_)
        return Entries(
            ids=rows.kept_ids, counts=exact_counts, weights=weights, logprobs=exact, is_exact=every
        )
    counts = exact_counts + rows.sampled_counts
    is_exact = np.zeros(int(counts.sum()), np.bool_)
    places = _exact_places(exact_counts, counts)
    is_exact[places] = True
    others = np.flatnonzero(~is_exact)
    own = rows.sampled_logprobs()
    drawn = rows.ragged("sampled_ids").values
    return Entries(
        ids=_merged(rows.kept_ids, drawn, places, others),
        counts=counts,
        weights=_merged(weights, _drawn_weights(rows, own, temperature), places, others),
        logprobs=_merged(exact, np.float32(np.nan) if own is None else own, places, others),
        is_exact=is_exact,
    )


def softened(
    rows: Rows, logprobs: Float32[np.ndarray, " E"], counts: Int64[np.ndarray, " N"], temperature: float
) -> Float32[np.ndarray, " E"]:
    """Log-probabilities at T of entries whose log-probabilities at 1 are given: `(logprob + lse_1) / T - lse_T`."""
    if temperature == 1:
        return logprobs
    shift = rows.logsumexp().astype(np.float64) / temperature - rows.logsumexp(temperature)
    found: Array = (logprobs / temperature + np.repeat(shift, counts)).astype(np.float32)
    return found


def _drawn_weights(
    rows: Rows, own: Float32[np.ndarray, " D"] | None, temperature: float
) -> Float32[np.ndarray, " D"] | np.float32:
    """Of each drawn entry, or of all alike."""
    keep, counts = rows.spec.keep, rows.sampled_counts.astype(np.int64)
    if isinstance(keep, Sampled):
        share: Array = rows.ragged("sampled_counts").values.astype(np.float32)
        share /= np.float32(keep.n)
        return share
    assert isinstance(keep, Threshold)
    if len(rows.spec.temperatures) == 1:
        return np.float32(keep.tau)
    assert own is not None  # a spec with several temperatures has them
    at = {t: softened(rows, own, counts, t).astype(np.float64) for t in rows.spec.temperatures}
    largest: Array = np.maximum.reduce(list(at.values()))
    weights: Array = (keep.tau * np.exp(at[temperature] - largest)).astype(np.float32)
    return weights


def _exact_places(exact: Int64[np.ndarray, " N"], counts: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " K"]:
    """Where exact entries stand among all: at the head of each position."""
    return spans(np.cumsum(counts) - counts, exact, np.concatenate([[0], np.cumsum(exact)]))


def _merged(
    exact: Array, drawn: Any, places: Int64[np.ndarray, " K"], others: Int64[np.ndarray, " D"]
) -> Array:
    """Scattered by places: a boolean mask costs ten times as much. What all drawn entries share is written first."""
    size = len(places) + len(others)
    if np.ndim(drawn) == 0:
        found = np.full(size, drawn, exact.dtype)
    else:
        found = np.empty(size, exact.dtype)
        found[others] = drawn
    found[places] = exact
    return found
