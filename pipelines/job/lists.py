"""How long the lists are in which documents and examples go through the engine: by bytes, for both are held whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from apache_beam.pvalue import TaggedOutput

HELD_BYTES = 2**23
"""Of documents that are held until they are handed on by bucket."""
LIST_DOCUMENTS, LIST_BYTES = 256, 2**18
"""Documents that are tokenised together, and their bytes: enough to share a call, few enough to be spread."""
EXAMPLES_BYTES = 2**22
"""Of examples that are handed on together."""
_OWN_BYTES, _NUMBER_BYTES = 300, 36
"""Of a document, or of an example, beside its texts and arrays: what Python takes for the rest of it; and for a number
in a tuple."""


def in_lists(found: Iterable[Any]) -> Iterator[Any]:
    """Documents, each with its windows, as lists that are short enough to be spread over workers; what is tagged goes
    by as it comes."""
    held: list[Any] = []
    size = 0
    for one in found:
        if isinstance(one, TaggedOutput):
            yield one
            continue
        held.append(one)
        size += size_of(one[0])
        if len(held) >= LIST_DOCUMENTS or size > LIST_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def size_of(value: tuple[Any, ...]) -> int:
    """About the bytes of a document or an example, its carried fields among them."""
    size = _OWN_BYTES
    for part in value:  # called three times a document: two sums with `isinstance` took four times as long
        kind = type(part)
        if kind is str or kind is bytes:
            size += len(part)
        elif isinstance(part, tuple):
            size += _NUMBER_BYTES * len(part)
    return size
