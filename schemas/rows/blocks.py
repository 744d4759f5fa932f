"""Memory that row groups and batches are written to, again and again: a page that a process is given anew costs more
than writing it.

A block is free when no array, no Arrow buffer and no tensor holds on to it, which its count of references says: so
nothing has to be given back, and what somebody keeps stays as it is. Cost: the process holds the blocks that were in
use at once, at most `_BLOCKS` of them that nobody holds, none larger than `_LARGEST`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCKS = 512
_SMALLEST, _LARGEST = 2**15, 2**27
"""Bytes of a block that is kept. What is smaller costs no page; what is larger would be held for long."""
_STEPS = 4
"""Sizes of blocks from one power of two to the next."""
_blocks: dict[int, list[NDArray[np.uint8]]] = {}
"""By size."""
_lock = threading.Lock()


def arrays(shapes: Sequence[tuple[Any, int]]) -> list[NDArray[Any]]:
    """Arrays of these types and lengths, of any content, in one block."""
    sizes = [-(-np.dtype(dtype).itemsize * length // 64) * 64 for dtype, length in shapes]
    block, found, place = _block(sum(sizes)), [], 0
    for (dtype, length), size in zip(shapes, sizes, strict=True):
        end = place + np.dtype(dtype).itemsize * length
        found.append(block[place:end].view(dtype))
        place += size
    return found


def array(dtype: Any, length: int) -> NDArray[Any]:
    """One array, as `arrays` gives several."""
    (found,) = arrays([(dtype, length)])
    return found


def _block(size: int) -> NDArray[np.uint8]:
    """A free one of the least size that fits, or of the next few; else a new one, which is kept: where there are many,
    in place of all others that are free."""
    if not _SMALLEST <= size <= _LARGEST:
        return np.empty(size, np.uint8)
    sizes = _sizes(size)
    with _lock:
        for own in sizes:
            blocks = _blocks.get(own, ())
            for place in range(len(blocks)):
                if _holders(blocks, place) == _NOBODY:
                    return blocks[place]
        if sum(map(len, _blocks.values())) >= _BLOCKS:
            _let_go()
        made = np.empty(sizes[0], np.uint8)
        _blocks.setdefault(sizes[0], []).append(made)
    return made


def _sizes(size: int) -> list[int]:
    """Those of blocks that may hold so many bytes: at most twice as many."""
    below = 1 << (size - 1).bit_length() - 1
    step = below // _STEPS
    first = -(-size // step)
    return [step * first, *(step * each for each in range(first + 1, 2 * _STEPS + 1))]


def _let_go() -> None:
    for blocks in _blocks.values():
        blocks[:] = [blocks[place] for place in range(len(blocks)) if _holders(blocks, place) != _NOBODY]


def _anew() -> None:
    """A process that is forked has no thread that could give the lock back."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_anew)


def _holders(blocks: Sequence[Any], place: int) -> int:
    return sys.getrefcount(blocks[place])


_NOBODY = _holders([np.empty(0, np.uint8)], 0)
