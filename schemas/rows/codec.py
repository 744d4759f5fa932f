"""Log-probabilities as small integers, and features as int8.

A position's kept entries stand in descending order. The level of an entry is its distance below the top entry in
steps of 1/16 nat, *rounded first* and then differenced: `code = level - previous level`. So an error is at most half
a step for each entry however many there are, where differences that are rounded add their errors up. Levels are
counted from the top log-probability *as it is stored*, in steps of 1/64, so that its error is no other entry's.

Costs: encoding and decoding are a dozen numpy passes over a whole row group. Rounding to 1/16 nat costs a thousandth
of what truncation costs a student.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int16, Int64, Num

from schemas.rows.ragged import Array, segment_starts, segmented_sums

CODE_MAX = 2**15 - 1
"""Largest gap between neighbours, and largest scalar, in steps: 2,047 nats at 1/16, 511 at 1/64. What is larger is
clamped, and counted."""


LEVEL_MAX = 2**31 - 1


class Codes(NamedTuple):
    """Encoded values, and how many did not fit."""

    codes: Int16[np.ndarray, " E"]
    num_clamped: int


def encode_scalars(nats: Float32[np.ndarray, " N"], step_nats: float) -> Codes:
    """Values that are never negative (an entropy, a negative log-probability), rounded to steps.

    One that is below 0 by rounding becomes 0; infinity the largest code.

    Raises:
        ValueError: one is NaN.
    """
    if np.isnan(nats).any():
        raise ValueError("a scalar must be a number, but one is NaN")
    steps = np.rint(np.minimum(nats.astype(np.float64) / step_nats, LEVEL_MAX))
    codes = np.clip(steps, 0, CODE_MAX).astype(np.int16)
    return Codes(codes, int((steps > CODE_MAX).sum()))


def decode_scalars(codes: Int16[np.ndarray, " N"], step_nats: float) -> Float32[np.ndarray, " N"]:
    """What `encode_scalars` kept, within half a step."""
    nats: Array = codes.astype(np.float32)
    nats *= np.float32(step_nats)
    return nats


def encode_logprobs(
    logprobs: Float32[np.ndarray, " E"],
    counts: Num[np.ndarray, " N"],
    top_logprob: Float32[np.ndarray, " N"],
    step_nats: float,
) -> Codes:
    """Codes of the entries of N positions; `counts[n] >= 0` of them, descending, belong to position n.

    `top_logprob` is the decoded one, so that only the first entry has its error. A score of -inf has the largest gap. A
    clamped gap leaves its own and the position's later entries *above* their true value, and at most
    `top - CODE_MAX * step_nats`, where a probability is zero in float32.

    Raises:
        ValueError: entries do not descend, one is NaN, or a top entry is not finite.
    """
    levels = _levels(logprobs, counts, top_logprob, step_nats)
    starts = segment_starts(counts)
    codes = np.diff(levels, prepend=0)
    codes[starts] = 0
    if codes.size and codes.min() < 0:
        raise ValueError(f"entries must descend within a position, but a gap is {codes.min()} steps")
    if levels[starts].any():  # the stored top is steps away from the true one
        levels[starts] = 0
        codes = np.diff(np.maximum(levels, 0), prepend=0)
        codes[starts] = 0
    num_clamped = int((codes > CODE_MAX).sum())
    return Codes(np.minimum(codes, CODE_MAX).astype(np.int16), num_clamped)


def encode_levels(
    logprobs: Float32[np.ndarray, " E"],
    counts: Num[np.ndarray, " N"],
    top_logprob: Float32[np.ndarray, " N"],
    step_nats: float,
) -> Codes:
    """Each entry's own distance below its position's top, in steps: for entries in any order.

    Raises:
        ValueError: one is NaN.
    """
    levels = _levels(logprobs, counts, top_logprob, step_nats)
    num_clamped = int((levels > CODE_MAX).sum())
    return Codes(np.clip(levels, 0, CODE_MAX).astype(np.int16), num_clamped)


def _levels(logprobs: Array, counts: Array, top_logprob: Array, step_nats: float) -> Int64[np.ndarray, " E"]:
    """Distances below the top entry, rounded; so large at most that a position's levels fit int32."""
    with np.errstate(invalid="ignore"):
        steps: Float64[np.ndarray, " E"] = np.repeat(top_logprob.astype(np.float64), counts) - logprobs
    steps /= step_nats
    if np.isnan(steps).any():
        raise ValueError(
            "entries must be numbers, and the top one finite, but one is NaN or the top infinite"
        )
    levels: Array = np.rint(np.minimum(steps, LEVEL_MAX)).astype(np.int64)
    return levels


def decode_logprobs(
    codes: Int16[np.ndarray, " E"],
    counts: Num[np.ndarray, " N"],
    top_logprob: Float32[np.ndarray, " N"],
    step_nats: float,
) -> Float32[np.ndarray, " E"]:
    """The log-probabilities that `encode_logprobs` kept, each within half a step of the true one.

    A position may span fewer than 2^31 steps.
    """
    levels = segmented_sums(codes, counts)
    return _below(levels, counts, top_logprob, step_nats)


def decode_levels(
    codes: Int16[np.ndarray, " E"],
    counts: Num[np.ndarray, " N"],
    top_logprob: Float32[np.ndarray, " N"],
    step_nats: float,
) -> Float32[np.ndarray, " E"]:
    """The log-probabilities that `encode_levels` kept, each within half a step of the true one."""
    return _below(codes, counts, top_logprob, step_nats)


def _below(levels: Array, counts: Array, top_logprob: Array, step_nats: float) -> Float32[np.ndarray, " E"]:
    logprobs: Array = np.multiply(levels, np.float32(-step_nats), dtype=np.float32)
    logprobs += np.repeat(top_logprob, counts)
    return logprobs


class Quantised(NamedTuple):
    """Rows of int8 with one scale a row."""

    codes: Int8[np.ndarray, "R D"]
    scale: Float32[np.ndarray, " R"]


def quantise(values: Float32[np.ndarray, "R D"]) -> Quantised:
    """int8 codes with `scale = max|v| / 127` for each row; the error is at most half a scale.

    A row whose scale would be subnormal (all |v| < 2e-36) becomes zero.
    """
    scale = np.abs(values).max(axis=1) / np.float32(127)
    if not np.isfinite(scale).all():
        raise ValueError("features must be finite")
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(0))
    safe = np.where(scale > 0, scale, np.float32(1))
    return Quantised(np.rint(values / safe[:, None]).astype(np.int8), scale.astype(np.float32))


def dequantise(
    codes: Int8[np.ndarray, "R D"], scale: Float32[np.ndarray, " R"]
) -> Float32[np.ndarray, "R D"]:
    """The features that `quantise` kept."""
    values: Array = codes.astype(np.float32)
    values *= scale[:, None]
    return values
