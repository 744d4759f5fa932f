"""Loops over entries that numpy needs several passes for, compiled by numba: pages to numbers, ranks to ids. Each has a
numpy form beside its caller, which tests hold it against, and which serves where numba is not installed: a cache can be
read without it. (Those that make batches: `trainer/batches/kernels.py`.)

What is compiled is kept beside this file, or in the user's cache folder; so the first run ever takes some seconds more.
None raises, none writes outside of what its arguments' lengths say, and each says in what it returns whether a value
was out of range: what it reads has been hashed, but may have been sealed by anybody.

Hot loops count in `np.uint64`: where an index may be below 0, numba looks for that at each access, which takes a third
of the time and more. A literal beside such a number would make a float of both.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import resource
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

IS_COMPILED = importlib.util.find_spec("numba") is not None


def compiled(function: Callable[..., Any], *, fastmath: Sequence[str] = ()) -> Callable[..., Any]:
    """The function as machine code, which other threads run beside. Numba is imported, and the function compiled or
    loaded, when it is called first; where what is kept of it cannot be read or written, it is compiled anew.

    `fastmath` is what of the rules of floats is let go, by LLVM's names: `contract`, a product and a sum are rounded
    once, together, where the machine can do that; `reassoc`, sums are taken in any order, several at once.
    """
    found: list[Callable[..., Any]] = []

    def call(*arguments: Any) -> Any:
        if not found:
            found.append(_numba_of(function, fastmath, kept=True))
        try:
            return found[0](*arguments)
        except Exception:  # noqa: BLE001  (the functions raise none: it is of what is kept)
            found[0] = _numba_of(function, fastmath, kept=False)
            return found[0](*arguments)

    return call


def _numba_of(function: Callable[..., Any], fastmath: Sequence[str], *, kept: bool) -> Callable[..., Any]:
    numba = importlib.import_module("numba")  # half a second, for those alone who read entries
    function = inspect.unwrap(function)  # what checks types around it in tests is no machine's business
    may_write = (
        resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    )  # a file that is cut is worse
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath) or False}
    try:
        found: Callable[..., Any] = numba.njit(**options, cache=kept and may_write)(function)
    except RuntimeError:  # no folder can be written
        found = numba.njit(**options)(function)
    return found


@compiled
def find_starts(levels: Any, count: Any, first: Any, starts: Any) -> int:  # pragma: no cover  (compiled)
    """Where the first `count` levels of a page are 0, each of which begins a list, plus `first`: runs of one value, and
    eights of single bits, lowest first. How many; -1 where levels end too early, or there are more than `starts` holds.
    """
    place = at = found = 0
    while at < count:
        head = shift = 0
        while True:
            if place >= len(levels) or shift > 28:
                return -1
            byte = int(levels[place])
            place += 1
            head |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        size = head >> 1
        if size == 0:
            return -1
        if head & 1:
            if place + size > len(levels):
                return -1
            for index in range(size):
                byte = int(levels[place + index])
                if byte != 255:
                    for bit in range(8):
                        if at + bit < count and not byte >> bit & 1:
                            if found >= len(starts):
                                return -1
                            starts[found] = first + at + bit
                            found += 1
                at += 8
                if at >= count:
                    break
            place += size
        else:
            if place >= len(levels):
                return -1
            size = min(size, count - at)
            if levels[place] == 0:
                if found + size > len(starts):
                    return -1
                for index in range(size):
                    starts[found + index] = first + at + index
                found += size
            place += 1
            at += size
    return found


@compiled
def join_planes(planes: Any, into: Any) -> None:  # pragma: no cover  (compiled)
    """Numbers of 32 bits from their four byte planes, lowest first."""
    size = len(into)
    first, second, third, fourth = planes[0], planes[1], planes[2], planes[3]
    for i in range(size):
        into[i] = (
            np.uint32(first[i])
            | np.uint32(second[i]) << np.uint32(8)
            | np.uint32(third[i]) << np.uint32(16)
            | np.uint32(fourth[i]) << np.uint32(24)
        )


@compiled
def join_two_planes(planes: Any, into: Any) -> bool:  # pragma: no cover  (compiled)
    """Numbers of 16 bits from their lower planes; whether the upper two are zero."""
    first, second, third, fourth = planes[0], planes[1], planes[2], planes[3]
    above = np.uint8(0)
    for i in range(len(into)):
        into[i] = np.uint16(first[i]) | np.uint16(second[i]) << np.uint16(8)
        above |= third[i] | fourth[i]
    return bool(above == 0)


@compiled
def ids_of_ranks(ranks: Any, id_by_rank: Any, ids: Any) -> bool:  # pragma: no cover  (compiled)
    """Looks each rank up; whether all were in range."""
    size = np.uint32(len(id_by_rank))
    fits = True
    for i in range(np.uint64(len(ranks))):
        rank = np.uint32(ranks[i])
        if rank < size:
            ids[i] = id_by_rank[np.uint64(rank)]
        else:
            fits = False
    return fits


@compiled
def ids_of_gaps(gaps: Any, counts: Any, id_by_rank: Any, ids: Any) -> bool:  # pragma: no cover  (compiled)
    """Adds the gaps up in each position and looks each sum up; whether all were in range, ascended, and were as many as
    the counts say."""
    size, place, total = np.int64(len(id_by_rank)), np.uint64(0), np.uint64(len(gaps))
    for n in range(len(counts)):
        if counts[n] < 0 or np.uint64(counts[n]) > total - place:
            return False
        rank, least = np.int64(0), np.int64(0)
        for i in range(place, place + np.uint64(counts[n])):
            gap = np.int64(gaps[i])
            rank += gap
            if gap < least or rank >= size:
                return False
            ids[i] = id_by_rank[np.uint64(rank)]
            least = np.int64(1)
        place += np.uint64(counts[n])
    return bool(place == total)


@compiled
def count_places(offsets: Any, valid: Any, stored: Any, into: Any) -> None:  # pragma: no cover  (compiled)
    """The stored values of lists that are valid, one after the other in `stored`; 0, 1, 2, ... in others."""
    at = 0
    for j in range(len(valid)):
        if valid[j]:
            for n in range(offsets[j], offsets[j + 1]):
                into[n] = stored[at]
                at += 1
        else:
            for n in range(offsets[j], offsets[j + 1]):
                into[n] = n - offsets[j]


@compiled
def take_next(
    values: Any, starts: Any, offsets: Any, places: Any, into: Any
) -> None:  # pragma: no cover  (compiled)
    """Of each list, which begins at `starts`, the values behind some places of it."""
    for j in range(len(starts)):
        for n in range(offsets[j], offsets[j + 1]):
            into[n] = values[starts[j] + places[n] + 1]


@compiled
def take_lists(values: Any, starts: Any, lengths: Any, into: Any) -> None:  # pragma: no cover  (compiled)
    """Copies the values of each list, one after the other."""
    to = np.uint64(0)
    for j in range(len(starts)):
        start, length = np.uint64(starts[j]), np.uint64(lengths[j])
        for i in range(length):
            into[to + i] = values[start + i]
        to += length
