"""The passes of `threshold.py` as compiled loops, over positions whose masses stay in a core's cache in between.

Each does what the functions of `threshold.py` that its header names do in torch: these are what tests hold it against,
and they serve on an accelerator and where numba is not installed. What `exp` gives here is within two units of the
last place.

Costs, on a core with AVX2: some 2 ns a logit, where torch's passes take 6 to 8.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from schemas.rows.kernels import compiled

BLOCK = 64
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 6.93147180369123816490e-01, 1.90821492927058770002e-10
_ROUND = 1.5 * 2.0**52
"""Added to a number below 2^51 and taken away again, it leaves the nearest whole number."""
_SMALLEST = -708.0
"""Below it `exp` is 0 here: what is rarer is not even a normal number."""
_BEYOND = -1e4
"""Stands beyond the last logit: its mass is 0."""
_C2, _C3, _C4, _C5, _C6, _C7 = 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040
_C8, _C9, _C10, _C11, _C12 = 1 / 40_320, 1 / 362_880, 1 / 3_628_800, 1 / 39_916_800, 1 / 479_001_600
_C13 = 1 / 6_227_020_800


@partial(compiled, fastmath=("contract",))
def fill_masses(
    logits: Any, bits: Any, mass: Any, blocks: Any, top: Any, total: Any, weighted: Any
) -> None:  # pragma: no cover  (compiled)
    """`_masses`, and the sums of the blocks. `bits` are the logits as int32, `mass` has room for whole blocks."""
    v = logits.shape[1]
    shift = np.zeros(BLOCK)
    for row in range(len(logits)):
        most = np.int32(-(2**31))
        for i in range(v):  # as whole numbers: the largest of these may be looked for in any order
            bit = bits[row, i]
            most = max(most, bit ^ ((bit >> 31) & np.int32(0x7FFFFFFF)))
        top[row] = np.int32(most ^ ((most >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)
        highest = np.float64(top[row])
        total[row] = weighted[row] = 0.0
        for block in range(blocks.shape[1]):
            first = block * BLOCK
            size = min(BLOCK, v - first)
            for i in range(size):
                shift[i] = np.float64(logits[row, first + i]) - highest
            for i in range(size, BLOCK):
                shift[i] = _BEYOND
            for i in range(BLOCK):
                x = shift[i]
                rounded = x * _LOG2E + _ROUND
                k = rounded - _ROUND
                r = (x - k * _LN2_HIGH) - k * _LN2_LOW  # exp(x) = 2^k exp(r), r at most ln 2 / 2
                r2, low, mid = (
                    r * r,
                    _C2 + _C3 * r,
                    _C6 + _C7 * r,
                )  # in pairs, which do not wait for each other
                high = (mid + (_C8 + _C9 * r) * r2) + (_C10 + _C11 * r + (_C12 + _C13 * r) * r2) * (r2 * r2)
                p = (1.0 + r) + r2 * ((low + (_C4 + _C5 * r) * r2) + high * (r2 * r2))
                power = np.int64((np.float64(rounded).view(np.int64) + 1023) << 52).view(np.float64)
                mass[row, first + i] = 0.0 if x < _SMALLEST else p * power
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.0
            for i in range(0, BLOCK, 4):  # four sums of each, which a core adds to at once
                m0, m1 = mass[row, first + i], mass[row, first + i + 1]
                m2, m3 = mass[row, first + i + 2], mass[row, first + i + 3]
                a0, a1, a2, a3 = a0 + m0, a1 + m1, a2 + m2, a3 + m3
                b0, b1 = b0 + m0 * shift[i], b1 + m1 * shift[i + 1]
                b2, b3 = b2 + m2 * shift[i + 2], b3 + m3 * shift[i + 3]
            blocks[row, block] = (a0 + a1) + (a2 + a3)
            total[row] += blocks[row, block]
            weighted[row] += (b0 + b1) + (b2 + b3)


@compiled
def take_exact(
    logits: Any, mass: Any, blocks: Any, total: Any, tau: Any, rounding: Any, head: Any, num_exact: Any
) -> None:  # pragma: no cover  (compiled)
    """`_exact` and `_descending`: the ids of `p >= tau`, or else the largest, leave the masses for the head."""
    for row in range(len(logits)):
        found = 0
        least = total[row] * (tau * (1 - rounding))
        for block in range(blocks.shape[1]):
            if not blocks[row, block] >= least:
                continue
            rest = 0.0
            for id in range(block * BLOCK, (block + 1) * BLOCK):
                if mass[row, id] / total[row] >= tau and found < head.shape[1]:
                    mass[row, id] = 0.0
                    place = found  # ids ascend: of equal logits the first stays before
                    while place > 0 and logits[row, head[row, place - 1]] < logits[row, id]:
                        head[row, place] = head[row, place - 1]
                        place -= 1
                    head[row, place] = id
                    found += 1
                rest += mass[row, id]
            blocks[row, block] = rest
        if found == 0 and 1 / total[row] < tau:  # even the largest is rare: it is exact all the same
            largest = 0
            for id in range(1, logits.shape[1]):
                if logits[row, id] > logits[row, largest]:
                    largest = id
            mass[row, largest] = 0.0
            head[row, 0], found = largest, 1
            block = largest // BLOCK
            blocks[row, block] = 0.0
            for id in range(block * BLOCK, (block + 1) * BLOCK):
                blocks[row, block] += mass[row, id]
        num_exact[row] = found
        for place in range(max(found, 1), head.shape[1]):
            head[row, place] = head[row, 0]


@compiled
def draw_marked(
    mass: Any, blocks: Any, total: Any, uniforms: Any, tau: Any, drawn: Any, num_drawn: Any
) -> None:  # pragma: no cover  (compiled)
    """`_drawn`: the ids that hold a mark, which are looked for in the blocks that do."""
    level = np.zeros(BLOCK)
    for row in range(len(mass)):
        found, before, u = 0, 0.0, uniforms[row]
        reached = np.floor(-u)
        for block in range(blocks.shape[1]):
            after = before + blocks[row, block] / total[row]
            last = np.floor(after / tau - u)
            if last > reached:
                first = block * BLOCK
                for i in range(BLOCK):
                    level[i] = mass[row, first + i] / total[row]
                for i in range(1, BLOCK):
                    level[i] += level[i - 1]
                for i in range(BLOCK):
                    level[i] = (level[i] + before) / tau - u
                final = level[BLOCK - 1]
                for i in range(
                    BLOCK
                ):  # by rounding the last mark may lie behind all: it is the last id's with any mass
                    now = last if level[i] == final else min(np.floor(level[i]), last)
                    if now > reached and found < drawn.shape[1]:
                        drawn[row, found] = first + i
                        found += 1
                        reached = now
                    if reached == last:
                        break
            before = after
        num_drawn[row] = found
