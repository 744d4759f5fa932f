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
        to, start = np.uint64(begins[j]), np.uint64(offsets[j])
        for i in range(np.uint64(offsets[j + 1]) - start):
            into[to + i] = values[start + i]


@compiled
def mark_lists(offsets: Any, begins: Any, into: Any) -> None:  # pragma: no cover  (compiled)
    """1 where a list's values stand that begins there."""
    for j in range(len(begins)):
        to = np.uint64(begins[j])
        for i in range(np.uint64(offsets[j + 1] - offsets[j])):
            into[to + i] = 1


@compiled
def place_positions(
    offsets: Any, index: Any, rows: Any, firsts: Any, into: Any
) -> None:  # pragma: no cover  (compiled)
    """Of each text's positions the row, and the token of that row, where the text stands in `rows` from `firsts` on."""
    row, token = into
    for j in range(len(rows)):
        for n in range(np.uint64(offsets[j]), np.uint64(offsets[j + 1])):
            row[n], token[n] = rows[j], firsts[j] + index[n]


@compiled
def gather_lists(
    values: Any, starts: Any, lengths: Any, begins: Any, into: Any
) -> None:  # pragma: no cover  (compiled)
    """Copies lists of one row group to where each begins among several row groups'."""
    for j in range(len(starts)):
        to, start = np.uint64(begins[j]), np.uint64(starts[j])
        for i in range(np.uint64(lengths[j])):
            into[to + i] = values[start + i]


@functools.partial(compiled, fastmath=("reassoc",))
def gather_exact(
    rows: Any,
    to: Any,
    position_offsets: Any,
    kept_offsets: Any,
    num_kept: Any,
    kept_ids: Any,
    kept_codes: Any,
    top_codes: Any,
    steps: Any,
    tables: Any,
    entries: Any,
    found: Any,
) -> None:  # pragma: no cover  (compiled)
    """Writes all entries of some rows of one row group where they stand among several batches', and of each position
    its tail, and below it its negentropy, at temperature 1, in sums of float64.

    Row `rows[j]`'s positions are `to[0, j]` and on, and its entries `to[1, j]` and on, in `entries`: ids,
    log-probabilities, weights. `steps` are the top's and the codes', and the number of ids: positions that keep all
    are divided by their sum, and others where it is above 1. `tables` are the exponentials of so many steps of the top
    down, and of the codes; the last of each is too small for float32.
    """
    top_step, step, every = np.float32(steps[0]), np.float32(steps[1]), np.int64(steps[2])
    (of_top, of_code), (ids, logprobs, weights) = tables, entries
    last_top, last = len(of_top) - 1, np.int32(len(of_code) - 1)
    for j in range(len(rows)):
        row, at, out = rows[j], to[0, j], np.uint64(to[1, j])
        kept = np.uint64(kept_offsets[row])
        for n in range(position_offsets[row], position_offsets[row + 1]):
            top, size = -(np.float32(top_codes[n]) * top_step), np.uint64(num_kept[n])
            share = np.float32(of_top[min(np.int64(top_codes[n]), last_top)])
            level, mass, terms, rest = np.int32(0), 0.0, 0.0, 0.0
            for i in range(size):
                level += np.int32(kept_codes[kept + i])
                own = np.float32(level) * -step + top
                p = share * of_code[np.uint64(min(max(level, np.int32(0)), last))]
                ids[out + i], logprobs[out + i], weights[out + i] = kept_ids[kept + i], own, p
                mass += np.float64(p)
                terms += np.float64(p * own)
            if mass > 1 or (num_kept[n] == every and mass > 0):
                for i in range(out, out + size):
                    weights[i] = np.float32(np.float64(weights[i]) / mass)
                terms = terms / mass - np.log(mass)
            elif num_kept[n] != every and mass < 1:
                rest = 1 - mass
                terms += rest * np.log(rest)
            found[0, at], found[1, at] = rest, terms
            kept, out, at = kept + size, out + size, at + 1


@compiled
def gather_weighted(
    rows: Any,
    to: Any,
    position_offsets: Any,
    offsets: Any,
    counts: Any,
    kept: Any,
    drawn: Any,
    top_codes: Any,
    steps: Any,
    tables: Any,
    entries: Any,
    found: Any,
) -> None:  # pragma: no cover  (compiled)
    """As `gather_exact`, of a policy that draws: a position's exact entries, and behind them the drawn ones, all of one
    weight. There is no tail, nothing is divided, and the negentropy is that of weights.

    `offsets` and `counts` are of the exact and of the drawn ones, `kept` and `drawn` their ids and codes; drawn ones
    have no codes where their own log-probability is not stored: NaN. `steps` are the top's and the codes', and the
    weight.
    """
    top_step, step, weight = np.float32(steps[0]), np.float32(steps[1]), np.float32(steps[2])
    (of_top, of_code), (ids, logprobs, weights) = tables, entries
    last_top, last = len(of_top) - 1, np.int32(len(of_code) - 1)
    (kept_offsets, drawn_offsets), (num_kept, num_drawn) = offsets, counts
    (kept_ids, kept_codes), (drawn_ids, drawn_codes) = kept, drawn
    has_codes, nan = len(drawn_codes) > 0, np.float32(np.nan)
    for j in range(len(rows)):
        row, at, out = rows[j], to[0, j], np.uint64(to[1, j])
        of_kept, of_drawn = np.uint64(kept_offsets[row]), np.uint64(drawn_offsets[row])
        for n in range(position_offsets[row], position_offsets[row + 1]):
            top, size = -(np.float32(top_codes[n]) * top_step), np.uint64(num_kept[n])
            share = np.float32(of_top[min(np.int64(top_codes[n]), last_top)])
            level, terms = np.int32(0), 0.0
            for i in range(size):
                level += np.int32(kept_codes[of_kept + i])
                own = np.float32(level) * -step + top
                p = share * of_code[np.uint64(min(max(level, np.int32(0)), last))]
                ids[out + i], logprobs[out + i], weights[out + i] = kept_ids[of_kept + i], own, p
                terms += np.float64(p * own)
            of_kept, out, size = of_kept + size, out + size, np.uint64(num_drawn[n])
            if has_codes:
                for i in range(size):
                    own = np.float32(drawn_codes[of_drawn + i]) * -step + top
                    ids[out + i], logprobs[out + i], weights[out + i] = drawn_ids[of_drawn + i], own, weight
                    terms += np.float64(weight * own)
            else:
                for i in range(size):
                    ids[out + i], logprobs[out + i], weights[out + i] = drawn_ids[of_drawn + i], nan, weight
            found[0, at], found[1, at] = 0.0, terms
            of_drawn, out, at = of_drawn + size, out + size, at + 1


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
