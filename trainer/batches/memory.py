"""Memory that batches are written to, again and again: a page that a process is given anew costs more than writing it.

A block is free when no array and no tensor holds on to it, which its count of references says: so nothing has to be
given back, and what somebody keeps stays as it is. Cost: a thread holds the few blocks that were in use at once.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.rows.ragged import Array

_BLOCKS = 32
"""Kept by a thread: of batches that are made, that wait, and that a step holds, and what they are made from."""
_own = threading.local()


def arrays(shapes: Sequence[tuple[Any, int]]) -> list[Array]:
    """Arrays of these types and lengths, of any content, in one block."""
    sizes = [-(-np.dtype(dtype).itemsize * length // 64) * 64 for dtype, length in shapes]
    block, found, place = _block(sum(sizes)), [], 0
    for (dtype, length), size in zip(shapes, sizes, strict=True):
        end = place + np.dtype(dtype).itemsize * length
        found.append(block[place:end].view(dtype))
        place += size
    return found


def _block(size: int) -> Array:
    """The smallest free one that is large enough; else a new one, a quarter larger, in place of a free one that is
    not."""
    blocks: list[Array] = _own.__dict__.setdefault("blocks", [])
    free = sorted(
        (len(blocks[place]), place) for place in range(len(blocks)) if _holders(blocks, place) == _NOBODY
    )
    fitting = next((place for length, place in free if length >= size), None)
    if fitting is not None:
        return blocks[fitting]
    made = np.empty(size + size // 4, np.uint8)
    if free:
        blocks[free[0][1]] = made
    elif len(blocks) < _BLOCKS:
        blocks.append(made)
    return made


def _holders(blocks: list[Array], place: int) -> int:
    return sys.getrefcount(blocks[place])


_NOBODY = _holders([np.empty(0, np.uint8)], 0)
