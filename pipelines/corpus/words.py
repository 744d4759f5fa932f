"""Words and what a corpus says of them: a list of words with a list of labels, or a text with labelled spans.

Labels are matched by *name*: a number means one class to a data set and another to the teacher, and nobody would see
it. Words are joined by blanks into the text that is tokenised; which characters each is, is kept.
"""

from __future__ import annotations

import itertools
from typing import Any

from pipelines.corpus.labels import LabelMap
from pipelines.rejects import (
    AMBIGUOUS_LABEL,
    BAD_SPANS,
    BAD_WORDS,
    EMPTY,
    INVALID_UTF8,
    UNKNOWN_LABEL,
    RejectedError,
    kind_of,
)

OUTSIDE = "O"
"""The class of what is no entity."""


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
    return tuple(_class(name, labels, field) for name in value)


def span_labels(value: Any, labels: LabelMap, field: str, text: str) -> tuple[int, ...]:
    """Of each span its first and last character, exclusive, and the classes of its first word and of the others, one
    after the other, in the order of the text.

    Raises:
        RejectedError: one is no span of the text, two overlap, or a name is no class's.
    """
    if not isinstance(value, list):
        raise RejectedError(
            BAD_SPANS, field=field, expected="a list of {start, end, label}", got=kind_of(value)
        )
    if OUTSIDE not in labels.ids:
        raise RejectedError(
            UNKNOWN_LABEL,
            field=field,
            expected=f"a teacher that has a class {OUTSIDE}",
            got="one that has none",
        )
    found = sorted(_span(each, labels, field, text) for each in value)
    if any(one[1] > other[0] for one, other in itertools.pairwise(found)):
        expected, got = "spans apart from each other", "two that overlap"
        raise RejectedError(BAD_SPANS, field=field, expected=expected, got=got)
    return tuple(number for span in found for number in span)


def _span(value: Any, labels: LabelMap, field: str, text: str) -> tuple[int, int, int, int]:
    told = value if isinstance(value, dict) else {}
    start, end = told.get("start"), told.get("end")
    if type(start) is not int or type(end) is not int:
        expected = "an object of start, end and label"
        raise RejectedError(BAD_SPANS, field=field, expected=expected, got=kind_of(value))
    if not 0 <= start < end <= len(text):
        expected = f"0 <= start < end <= {len(text)} characters"
        raise RejectedError(BAD_SPANS, field=field, expected=expected, got=f"{start} to {end}")
    if not text[start:end].strip():
        raise RejectedError(BAD_SPANS, field=field, expected="a span of some letters", got="one of blanks")
    return start, end, *_parts(told.get("label"), labels, field)


def _parts(name: Any, labels: LabelMap, field: str) -> tuple[int, int]:
    """The classes of a span's first word and of its others: `B-` and `I-` of its name, where the teacher has them."""
    inside = labels.ids.get(f"I-{name}", labels.ids.get(f"B-{name}"))
    if inside is None:
        inside = _class(name, labels, field)
    return labels.ids.get(f"B-{name}", inside), inside


def _class(name: Any, labels: LabelMap, field: str) -> int:
    if isinstance(name, str) and name in labels.ids:
        return labels.ids[name]
    if isinstance(name, str) and name in labels.shared:
        raise RejectedError(
            AMBIGUOUS_LABEL, field=field, expected="a name of one class", got="one that several classes have"
        )
    folded = {known.strip().casefold() for known in labels.ids}
    near = isinstance(name, str) and name.strip().casefold() in folded
    got = "a name that but for case or blanks is one" if near else kind_of(name)
    raise RejectedError(UNKNOWN_LABEL, field=field, expected="a class by the teacher's name", got=got)
