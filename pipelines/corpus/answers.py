"""Answers to a question, as stretches of its context: what the corpus says of them, checked against the text.

Offsets count code points, from the context's first. A record has as many answers as people gave; the first of them is
what is taught, and all are right where they are kept. One without any says that the context holds none.
"""

from __future__ import annotations

import itertools
from typing import Any

from pipelines.corpus.labels import ANSWERED, UNANSWERABLE
from pipelines.rejects import BAD_ANSWERS, RejectedError, kind_of
from pipelines.tasks.windows import trimmed
from schemas.tasks import ANSWERS

_EXPECTED = "{text: [...], answer_start: [...]}, or a list of {text, answer_start}"


def read_answers(
    value: Any, field: str, context: str, *, always: bool, most: int = 1
) -> tuple[tuple[int, ...], str]:
    """First and last character, exclusive, of the first answer, or of each of up to `most` different ones, one after
    the other, without blanks at its edges, or nothing where there is none; and how it was read. `always` says that
    there must be one.

    Raises:
        RejectedError: it is no list of answers, one does not stand in the context where it says, one is missing, or
            there are more than are kept.
    """
    texts, starts = _lists(value, field)
    if len(texts) != len(starts):
        expected = "as many texts as places"
        raise RejectedError(
            BAD_ANSWERS, field=field, expected=expected, got=f"{len(texts)} and {len(starts)}"
        )
    found = [
        _span(text, start, field, context, f", as answer {at}")
        for at, (text, start) in enumerate(zip(texts, starts, strict=True), 1)
    ]
    different = [*dict.fromkeys(found)][: None if most > 1 else 1]
    if len(different) > most:
        expected = f"at most {most} different answers (--{ANSWERS})"
        raise RejectedError(BAD_ANSWERS, field=field, expected=expected, got=f"{len(different)}")
    if different:
        return tuple(itertools.chain.from_iterable(different)), ANSWERED
    if always:
        expected = "an answer (--always_answerable)"
        raise RejectedError(BAD_ANSWERS, field=field, expected=expected, got="none")
    return (), UNANSWERABLE


def _lists(value: Any, field: str) -> tuple[list[Any], list[Any]]:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [one.get("text") for one in value], [one.get("answer_start") for one in value]
    texts, starts = (
        (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    )
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise RejectedError(BAD_ANSWERS, field=field, expected=_EXPECTED, got=kind_of(value))
    return texts, starts


def _span(text: Any, start: Any, field: str, context: str, which: str) -> tuple[int, int]:
    if not isinstance(text, str) or type(start) is not int:
        expected, got = "a text and a whole number", f"{kind_of(text)} and {kind_of(start)}"
        raise RejectedError(BAD_ANSWERS, field=field, expected=expected, got=got + which)
    if not text.strip():
        raise RejectedError(
            BAD_ANSWERS, field=field, expected="an answer of some letters", got=f"blanks{which}"
        )
    if not 0 <= start <= start + len(text) <= len(context):
        expected = f"a place within the context's {len(context)} characters"
        raise RejectedError(
            BAD_ANSWERS, field=field, expected=expected, got=f"{start} to {start + len(text)}{which}"
        )
    if context[start : start + len(text)] != text:
        expected = "the answer's text at its place in the context"
        raise RejectedError(BAD_ANSWERS, field=field, expected=expected, got=f"another there{which}")
    return trimmed(context, start, start + len(text))
