"""Rejects: the reasons for which a record is not cached, and how its line, its field and the fault are told.

A reject says where the record stands, which field is at fault, what was expected there and what kind of value was
found. It never carries the value: a corpus may be private, and rejects are kept beside the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

NOT_JSON, INVALID_UTF8 = "not_json", "invalid_utf8"
LINE_TOO_LONG, REPEATED_FIELD = "line_too_long", "repeated_field"
FIELD_MISSING, NOT_A_STRING, EMPTY = "field_missing", "not_a_string", "empty"
BAD_MESSAGES, BAD_FIELD = "bad_messages", "bad_field"
UNKNOWN_LABEL, AMBIGUOUS_LABEL = "unknown_label", "ambiguous_label"
BAD_WORDS, BAD_SPANS, BAD_ANSWERS = "bad_words", "bad_spans", "bad_answers"
NOT_AN_IMAGE = "not_an_image"
BAD_OBJECTS, BOX_OUTSIDE_IMAGE, EMPTY_BOX = "bad_objects", "box_outside_image", "empty_box"
BAD_ROW = "bad_row"
BAD_PASSAGES, QUESTION_TOO_LONG = "bad_passages", "question_too_long"
TOO_LONG = "too_long"
NOTHING_SUPERVISED, CHAT_TEMPLATE = "nothing_supervised", "chat_template"

DAMAGED = (NOT_JSON, INVALID_UTF8, LINE_TOO_LONG, REPEATED_FIELD, BAD_ROW)
"""Reasons that leave open which document a record was."""


class Reject(NamedTuple):
    """One record that is not cached, and why."""

    reason: str
    file: str
    offset: int
    id: str | None
    line: int = 0
    """From 1, counted in the piece of the file that was read; 0 where it is not known."""
    field: str | None = None
    expected: str | None = None
    got: str | None = None


class RejectedError(Exception):
    """Carries the reason out of the checks of a record; never leaves the steps that read."""

    def __init__(
        self,
        reason: str,
        digest: bytes | None = None,
        *,
        field: str | None = None,
        expected: str | None = None,
        got: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.digest = digest
        """The document's hash, where it is known all the same."""
        self.field, self.expected, self.got = field, expected, got

    def told(self) -> str:
        """The field, what was expected in it, and what was found."""
        return fault(self.field, self.expected, self.got)

    def reject(self, file: str, offset: int, key: str | None, line: int) -> Reject:
        """The reject of a record that stands there."""
        return Reject(str(self), file, offset, key, line, self.field, self.expected, self.got)


def fault(field: str | None, expected: str | None, got: str | None) -> str:
    """What of them is known, in words."""
    parts = (("field", field), ("expected", expected), ("got", got))
    return ", ".join(f"{word} {value}" for word, value in parts if value is not None)


_KINDS = ((bool, "a boolean"), (int, "a whole number"), (float, "a fraction"), (str, "a string"))


def kind_of(value: Any) -> str:
    """What a value is, without the value: `a string`, `a list of 3`."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return next((name for kind, name in _KINDS if isinstance(value, kind)), f"a {type(value).__name__}")
