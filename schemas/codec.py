"""Log-probabilities as small integers, and features as int8.

A position's kept entries stand in descending order. The level of an entry is its distance below the top entry in
steps of 1/16 nat, *rounded first* and then differenced: `code = level - previous level`. So an error is at most half
a step for each entry however many there are, where differences that are rounded add their errors up. The top
log-probability itself is stored in float32, beside the codes.

Costs: encoding and decoding are a dozen numpy passes over a whole row group. Rounding to 1/16 nat costs a thousandth
of what truncation costs a student.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int16, Int64, Num

from schemas.ragged import Array

CODE_MAX = 2**15 - 1
"""Largest gap between neighbours in steps: 2,047 nats at 1/16. A larger one is clamped, and counted."""


LEVEL_MAX = 2**31 - 1


class Codes(NamedTuple):
    """Encoded entries, and how many gaps did not fit."""

    codes: Int16[np.ndarray, " E"]
    num_clamped: int


def encode_logprobs(
    logprobs: Float32[np.ndarray, " E"], counts: Int64[np.ndarray, " N"], step_nats: float
) -> Codes:
    """Codes of the entries of N positions; `counts[n] >= 1` of them, descending, belong to position n.

    A score of -inf has the largest gap. A clamped gap leaves its own and the position's later entries *above* their
    true value, and at most `top - CODE_MAX * step_nats`, where a probability is zero in float32.

    Raises:
        ValueError: entries do not descend, one is NaN, or a top entry is not finite.
    """
    starts = np.cumsum(counts) - counts
    top = np.repeat(logprobs[starts], counts)
    with np.errstate(invalid="ignore"):
        levels = _levels((top.astype(np.float64) - logprobs) / step_nats)
    codes = np.diff(levels, prepend=0)
    codes[starts] = 0
    if codes.size and codes.min() < 0:
        raise ValueError(f"entries must descend within a position, but a gap is {codes.min()} steps")
    num_clamped = int((codes > CODE_MAX).sum())
    return Codes(np.minimum(codes, CODE_MAX).astype(np.int16), num_clamped)


def _levels(steps: Float64[np.ndarray, " E"]) -> Int64[np.ndarray, " E"]:
    """Distances below the top entry, rounded; so large at most that a position's levels fit int32."""
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

    The running sum may wrap around in int32; the differences are right all the same, as long as one position spans
    fewer than 2^31 steps.
    """
    counts = counts.astype(np.int64)
    running = np.cumsum(codes, dtype=np.int32)
    starts = np.cumsum(counts) - counts
    levels = running - np.repeat(running[starts], counts)
    logprobs: Array = np.repeat(top_logprob, counts)
    logprobs -= levels * np.float32(step_nats)
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
