"""The k largest of each position as one compiled loop: what `top_k` of `top.py` gives, to the last bit and tie.

The k largest so far stand in order. Ids come in ascending order, so one that equals the least does not come in, and one
that equals another stands behind it: of equal logits the lower ids are kept, and come first. Blocks in which nothing is
larger than the least are passed over, by their maxima.

Costs, for V logits in no order: one pass over V, some k ln(V / k) blocks gone through id by id, and as many insertions
of k / 2 steps. Of logits that ascend with their ids each would come in; a vocabulary's do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.rows.kernels import compiled

BLOCK = 64


@compiled
def fill_largest(logits: Any, bits: Any, ids: Any, values: Any) -> None:  # pragma: no cover  (compiled)
    """Fills `ids` and `values` `[N, K]`, K <= V, by descending logit. `bits` are the float32 logits as int32.

    Where a position's logits are not all numbers, its ids are some.
    """
    v, k = logits.shape[1], ids.shape[1]
    whole = v // BLOCK
    maxima = np.empty(whole + 1, np.int32)
    low = np.int32(0x7FFFFFFF)
    for row in range(len(logits)):
        for block in range(whole):
            most = np.int32(-(2**31))
            for i in range(block * BLOCK, block * BLOCK + BLOCK):
                bit = bits[row, i]  # as whole numbers: the largest of these may be looked for in any order
                most = max(most, bit ^ ((bit >> 31) & low))
            maxima[block] = most
        maxima[whole] = low  # what is left over is gone through
        found, least = 0, np.int32(-(2**31))
        for block in range(whole + 1):
            if found == k and maxima[block] <= least:
                continue
            for i in range(block * BLOCK, min(block * BLOCK + BLOCK, v)):
                logit = logits[row, i]
                if found == k and not logit > values[row, k - 1]:
                    continue
                place = min(found, k - 1)
                while place > 0 and values[row, place - 1] < logit:
                    values[row, place], ids[row, place] = values[row, place - 1], ids[row, place - 1]
                    place -= 1
                values[row, place], ids[row, place] = logit, i
                found = min(found + 1, k)
            bit = bits[row, ids[row, found - 1]]
            least = bit ^ ((bit >> 31) & low)
