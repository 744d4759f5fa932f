"""Words and what a corpus says of them: a list of words with a list of labels, or a text with labelled spans.

Labels are matched by *name*: a number means one class to a data set and another to the teacher, and nobody would see
it. Words are joined by blanks into the text that is tokenised; which characters each is, is kept.
"""

from __future__ import annotations

import itertools
from typing import Any

from pipelines.corpus.labels import LabelMap, named
from pipelines.rejects import (
    BAD_SPANS,
    BAD_WORDS,
    EMPTY,
    INVALID_UTF8,
    UNKNOWN_LABEL,
    RejectedError,
    kind_of,
)
from pipelines.tasks.windows import trimmed

_PREFIXES = "BIELSU"
"""Of the names of classes: a word begins an entity, is inside, ends it (E or L), or is all of it (S or U)."""


def read_words(value: Any, field: str) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    """The text of a list of words, where each stands in it, and what is hashed.

    Raises:
        RejectedError: it is no list of words.
    """
    odd = [kind_of(word) for word in value if not isinstance(word, str)] if isinstance(value, list) else []
    if odd or not isinstance(value, list):
        got = f"{kind_of(value)} that holds {odd[0]}" if odd else kind_of(value)
        raise RejectedError(BAD_WORDS, field=field, expected="a list of words", got=got)
    if not value or not all(word.strip() for word in value):
        got = "a blank one" if value else "none"
        raise RejectedError(EMPTY, field=field, expected="words that are not blank", got=got)
    text, spans, place = " ".join(value), list[int](), 0
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        expected, got = "words of whole characters", "half a surrogate pair"
        raise RejectedError(INVALID_UTF8, field=field, expected=expected, got=got) from None
    for word in value:
        spans += (place, place + len(word))
        place += len(word) + 1
    return text, tuple(spans), {"words": value}


def word_labels(value: Any, labels: LabelMap, field: str, count: int) -> tuple[int, ...]:
    """The class of each word.

    Raises:
        RejectedError: there are not as many as words, or one is no class's name.
    """
    if not isinstance(value, list) or len(value) != count:
        raise RejectedError(BAD_WORDS, field=field, expected=f"a list of {count} labels", got=kind_of(value))
    return tuple(named(name, labels, field, f", as label {at}") for at, name in enumerate(value, 1))


def span_labels(value: Any, labels: LabelMap, field: str, text: str) -> tuple[int, ...]:
    """Of each span its first and last character, exclusive, blanks at its edges left out, and the classes of its first
    word, of those between, of its last, and of its only one: six numbers, one span after the other, in the order of the
    text.

    Raises:
        RejectedError: one is no span of the text, two overlap, or a name is no class's.
    """
    if not isinstance(value, list):
        expected = "a list of {start, end, label}"
        raise RejectedError(BAD_SPANS, field=field, expected=expected, got=kind_of(value))
    found = sorted(_span(each, labels, field, text, f", as span {at}") for at, each in enumerate(value, 1))
    if any(one[1] > other[0] for one, other in itertools.pairwise(found)):
        expected, got = "spans apart from each other", "two that overlap"
        raise RejectedError(BAD_SPANS, field=field, expected=expected, got=got)
    return tuple(number for span in found for number in span)


def _span(value: Any, labels: LabelMap, field: str, text: str, which: str) -> tuple[int, ...]:
    told = value if isinstance(value, dict) else {}
    start, end = told.get("start"), told.get("end")
    if type(start) is not int or type(end) is not int:
        expected = "an object of start, end and label"
        raise RejectedError(BAD_SPANS, field=field, expected=expected, got=f"{kind_of(value)}{which}")
    if not 0 <= start < end <= len(text):
        expected = f"0 <= start < end <= {len(text)} characters"
        raise RejectedError(BAD_SPANS, field=field, expected=expected, got=f"{start} to {end}{which}")
    start, end = trimmed(text, start, end)
    if start == end:
        expected, got = "a span of some letters", f"one of blanks{which}"
        raise RejectedError(BAD_SPANS, field=field, expected=expected, got=got)
    return start, end, *_parts(told.get("label"), labels, field, which)


def _parts(name: Any, labels: LabelMap, field: str, which: str) -> tuple[int, int, int, int]:
    """The classes of a span's first word, of those between, of its last, and of its only one: by the teacher's names
    with a prefix (B-, I-, and E- or L-, S- or U-, where it has them), else the name itself."""
    parts = {prefix: f"{prefix}-{name}" for prefix in _PREFIXES} if isinstance(name, str) else {}
    if shared := [part for part in parts.values() if part in labels.shared]:
        return (named(shared[0], labels, field, which),) * 4  # which is refused
    found = {prefix: labels.ids[part] for prefix, part in parts.items() if part in labels.ids}
    if not found:
        whole = named(name, labels, field, which)
        if name[1:2] == "-" and name[:1] in _PREFIXES:
            expected, got = "what the span is, without a prefix", f"a class of one word{which}"
            raise RejectedError(UNKNOWN_LABEL, field=field, expected=expected, got=got)
        return whole, whole, whole, whole
    inside = next(found[prefix] for prefix in "IBELSU" if prefix in found)
    begin, last = found.get("B", inside), found.get("E", found.get("L", inside))
    return begin, inside, last, found.get("S", found.get("U", begin))
