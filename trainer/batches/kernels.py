"""Compiled loops that make batches, by the rules of `schemas/rows/kernels.py`: tokens and entries are written where a
batch has them, once."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from schemas.rows.kernels import compiled


@compiled
def place_lists(values: Any, offsets: Any, begins: Any, into: Any) -> None:  # pragma: no cover  (compiled)
    """Copies each list to where it begins."""
    for j in range(len(begins)):
        shift = begins[j] - offsets[j]
        for i in range(offsets[j], offsets[j + 1]):
            into[i + shift] = values[i]


@compiled
def gather_lists(
    values: Any, starts: Any, lengths: Any, begins: Any, into: Any
) -> None:  # pragma: no cover  (compiled)
    """Copies lists of one row group to where each begins among several row groups'."""
    for j in range(len(starts)):
        shift = begins[j] - starts[j]
        for i in range(starts[j], starts[j] + lengths[j]):
            into[i + shift] = values[i]


@functools.partial(compiled, fastmath=("reassoc",))
def gather_exact(
    rows: Any,
    to: Any,
    position_offsets: Any,
    kept_offsets: Any,
    num_kept: Any,
    num_drawn: Any,
    kept_ids: Any,
    kept_codes: Any,
    top_codes: Any,
    steps: Any,
    table: Any,
    entries: Any,
    found: Any,
) -> None:  # pragma: no cover  (compiled)
    """Writes the exact entries of some rows of one row group where they stand among several batches', and of each
    position its tail, and below it its negentropy, at temperature 1, in sums of float64.

    Row `rows[j]`'s positions are `to[0, j]` and on, of its batch `to[1, j]` and on; its entries are `to[2, j]` and on,
    in `entries`: ids, positions, log-probabilities, weights. `steps` are the top's and the codes', and the number of
    ids: positions that keep all are divided by their sum, and others where it is above 1. `num_drawn` is empty where
    the policy draws none; where it draws, there is no tail. `table[l]` is the exponential of l code steps down; its
    last is too small for float32.
    """
    top_step, step, last = np.float32(steps[0]), np.float32(steps[1]), np.float32(len(table) - 1)
    ids, position, logprobs, weights = entries
    for j in range(len(rows)):
        row, at, own_position, out = rows[j], to[0, j], to[1, j], to[2, j]
        kept = kept_offsets[row]
        for n in range(position_offsets[row], position_offsets[row + 1]):
            top, size = -(np.float32(top_codes[n]) * top_step), np.int64(num_kept[n])
            own, p, codes = (
                logprobs[out : out + size],
                weights[out : out + size],
                kept_codes[kept : kept + size],
            )
            ids[out : out + size] = kept_ids[kept : kept + size]
            level, mass, terms, share = np.int64(0), 0.0, 0.0, np.exp(np.float64(top))
            for i in range(size):
                level += np.int64(codes[i])
                own[i] = np.float32(level)
                position[out + i] = own_position
            for i in range(size):
                each = share * table[np.int32(min(max(own[i], np.float32(0)), last))]
                own[i] = own[i] * -step + top
                mass += each
                terms += each * np.float64(own[i])
                p[i] = np.float32(each)
            kept, out, rest = kept + size, out + size, 0.0
            if len(num_drawn):
                out += num_drawn[n]
            elif mass > 1 or (size == steps[2] and mass > 0):
                for i in range(size):
                    p[i] = np.float32(np.float64(p[i]) / mass)
                terms = terms / mass - np.log(mass)
            elif size != steps[2] and mass < 1:
                rest = 1 - mass
                terms += rest * np.log(rest)
            found[0, at], found[1, at] = rest, terms
            at, own_position = at + 1, own_position + 1


@compiled
def gather_drawn(
    rows: Any,
    to: Any,
    position_offsets: Any,
    drawn_offsets: Any,
    num_kept: Any,
    num_drawn: Any,
    drawn_ids: Any,
    drawn_codes: Any,
    top_codes: Any,
    steps: Any,
    entries: Any,
    found: Any,
) -> None:  # pragma: no cover  (compiled)
    """As `gather_exact`, of drawn entries, which stand behind their position's exact ones.

    `steps` are the top's and the codes', and the weight of each; `drawn_codes` is empty where a drawn entry's own
    log-probability is not stored: NaN.
    """
    top_step, step, weight = np.float32(steps[0]), np.float32(steps[1]), steps[2]
    ids, position, logprobs, weights = entries
    for j in range(len(rows)):
        row, at, own_position, out = rows[j], to[0, j], to[1, j], to[2, j]
        drawn = drawn_offsets[row]
        for n in range(position_offsets[row], position_offsets[row + 1]):
            top, terms = -(np.float32(top_codes[n]) * top_step), 0.0
            out += num_kept[n]
            for _ in range(num_drawn[n]):
                own = np.float32(np.nan)
                if len(drawn_codes):
                    own = np.float32(drawn_codes[drawn]) * -step + top
                ids[out], position[out] = drawn_ids[drawn], own_position
                logprobs[out], weights[out] = own, weight
                terms += weight * np.float64(own)
                drawn, out = drawn + 1, out + 1
            found[1, at] += terms
            at, own_position = at + 1, own_position + 1


@compiled
def settle(
    probs: Any, logprobs: Any, counts: Any, whole: Any, found: Any
) -> None:  # pragma: no cover  (compiled)
    """Each position's tail, and below it its negentropy; divides its entries by their sum where that is above 1, or all
    are kept. Sums are float64. An entry of probability 0 adds nothing."""
    place = 0
    for n in range(len(counts)):
        end = place + counts[n]
        mass, terms = 0.0, 0.0
        for i in range(place, end):
            p = np.float64(probs[i])
            mass += p
            if p > 0:
                terms += p * np.float64(logprobs[i])
        kept = mass
        if (mass > 1) or (whole[n] and mass > 0):
            for i in range(place, end):
                probs[i] = np.float32(np.float64(probs[i]) / mass)
            kept = 1.0
            terms = terms / mass - np.log(mass)
        rest = 0.0
        if not whole[n] and kept < 1:
            rest = 1 - kept
            terms += rest * np.log(rest)
        found[0, n], found[1, n] = rest, terms
        place = end
