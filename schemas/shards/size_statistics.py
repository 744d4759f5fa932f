"""Statistics of sizes in a footer, which are looked at before Arrow sees them.

Arrow ends the *process* where they are as many as they should not be (25.0: an exception in C++ that no Cython
declaration lets through), as soon as anybody asks for the column. Nothing of ours reads them. Cost: a footer is parsed
in Python too, some 0.6 ms a row group, once for each shard that a process opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from schemas.rows.parquet_thrift import NoThriftError, parse_struct

_SCHEMA, _ROW_GROUPS, _COLUMNS, _METADATA, _SIZES = 2, 4, 1, 3, 16
_TYPE, _REPETITION, _CHILDREN = 1, 3, 5
_OPTIONAL, _REPEATED, _BYTE_ARRAY = 1, 2, 6
_TEXT_BYTES, _REPETITIONS, _DEFINITIONS = 1, 2, 3
"""Numbers of the fields, and what some of them say (parquet.thrift)."""

_CHECKED: set[str] = set()
"""Seals of footers that were found sound by this process: a stream over many shards opens each again and again."""
_MOST = 2**17


class _Leaf(NamedTuple):
    is_text: bool
    repetition: int
    definition: int
    """Its highest levels."""


def check_size_statistics(footer: memoryview, seal: str) -> None:
    """Asserts that each column has counts of as many levels as the schema gives it, or none; once for a seal.

    Raises:
        NoThriftError, IndexError, KeyError, TypeError, ValueError, AttributeError: it has not, or is no footer.
    """
    if seal in _CHECKED:
        return
    told, _ = parse_struct(footer, 0)
    leaves = _leaves(told[_SCHEMA])
    for group in told[_ROW_GROUPS]:
        for chunk, leaf in zip(group[_COLUMNS], leaves, strict=True):
            sizes = chunk[_METADATA].get(_SIZES, {})
            if _TEXT_BYTES in sizes and not leaf.is_text:
                raise NoThriftError("bytes of texts are told of a column that has none")
            for field, level in ((_REPETITIONS, leaf.repetition), (_DEFINITIONS, leaf.definition)):
                if len(sizes.get(field, ())) not in (0, level + 1):
                    raise NoThriftError("levels are counted that a column has not")
    if len(_CHECKED) >= _MOST:
        _CHECKED.clear()
    _CHECKED.add(seal)


def _leaves(elements: Sequence[Any]) -> list[_Leaf]:
    """The leaves of a schema, whose elements stand one after the other, each before its children."""
    found: list[_Leaf] = []
    open_: list[tuple[int, int, int]] = [(elements[0][_CHILDREN], 0, 0)]
    for element in elements[1:]:
        while not open_[-1][0]:
            open_.pop()
        left, repetition, definition = open_.pop()
        open_.append((left - 1, repetition, definition))
        own = element.get(_REPETITION)
        levels = repetition + (own == _REPEATED), definition + (own in (_OPTIONAL, _REPEATED))
        if element.get(_CHILDREN):
            open_.append((element[_CHILDREN], *levels))
        else:
            found.append(_Leaf(element.get(_TYPE) == _BYTE_ARRAY, *levels))
    return found
