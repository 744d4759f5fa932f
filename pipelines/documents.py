"""Documents: what a record of the corpus says, or why it is rejected.

Checks that need no teacher stand here, so a wrong `--text_field` is found before the teacher starts. A reject carries
its source and its reason, never its text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipelines.config import CorpusConfig
from pipelines.corpus import Record
from schemas.identity import document_hash

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127

Label = int | float | tuple[float, ...] | None


class Source(NamedTuple):
    """Where a record stands: its file, and its first byte there (after decompression) or its row number."""

    file: str
    offset: int


class Document(NamedTuple):
    """One checked record. `text` is the text, the messages as JSON, or the prompt; `pair` a second text or completion.

    All members are of plain types, so that Beam shuffles documents without pickling.
    """

    hash: bytes
    key: str | None
    text: str
    pair: str | None
    label: Label
    file: str
    offset: int


class Reject(NamedTuple):
    """One record that is not cached, and why."""

    reason: str
    file: str
    offset: int
    id: str | None


class LabelMap(NamedTuple):
    """How labels of the corpus become classes: by the teacher's own names, or by number."""

    ids: Mapping[str, int]
    num_classes: int
    score: str


class RejectedError(Exception):
    """Carries the reason out of the checks below; never leaves this module's callers."""

    def __init__(self, reason: str, digest: bytes | None = None) -> None:
        super().__init__(reason)
        self.digest = digest
        """The document's hash, where it is known all the same."""


NOT_JSON, INVALID_UTF8 = "not_json", "invalid_utf8"
FIELD_MISSING, NOT_A_STRING, EMPTY = "field_missing", "not_a_string", "empty"
UNKNOWN_LABEL, TOO_LONG = "unknown_label", "too_long"

DAMAGED = (NOT_JSON, INVALID_UTF8)
"""Reasons that leave open which document a record was."""


def is_blank(record: Record) -> bool:
    """Whether a line holds nothing: it separates documents, and is none itself."""
    return isinstance(record.value, bytes) and not record.value.strip()


def parse(
    record: Record, source: Source, corpus: CorpusConfig, labels: LabelMap | None, kind: str
) -> Document:
    """The document in a record; `kind` is the file's format.

    Raises:
        RejectedError: with the reason.
    """
    fields = _fields(record, corpus, kind)
    text, pair, content = _content(fields, corpus)
    key = _key(fields, corpus)
    label = _label(fields, corpus, labels)
    stored = list(label) if isinstance(label, tuple) else label
    digest = document_hash(content, key=key or "", label=stored)
    if len(text) + len(pair or "") > corpus.max_document_chars:
        raise RejectedError(TOO_LONG, digest)
    return Document(digest, key, text, pair, label, source.file, source.offset)


def record_id(record: Record, corpus: CorpusConfig) -> str | None:
    """The id of a record that may be broken, for its reject."""
    try:
        return _key(_fields(record, corpus, "jsonl"), corpus)
    except RejectedError:
        return None


def _fields(record: Record, corpus: CorpusConfig, kind: str) -> Mapping[str, Any]:
    if isinstance(record.value, dict):
        return record.value
    try:
        text = record.value.removeprefix(codecs.BOM_UTF8 if record.offset == 0 else b"").decode("utf-8")
    except UnicodeDecodeError:
        raise RejectedError(INVALID_UTF8) from None
    if kind == "text":
        return {corpus.text_field: text.removesuffix("\r")}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise RejectedError(NOT_JSON) from None
    if not isinstance(value, dict):
        raise RejectedError(NOT_JSON)
    return value


def _content(fields: Mapping[str, Any], corpus: CorpusConfig) -> tuple[str, str | None, dict[str, Any]]:
    """Text, second text, and what is hashed."""
    if corpus.messages_field:
        messages = _messages(_field(fields, corpus.messages_field))
        return json.dumps(messages, ensure_ascii=False), None, {"messages": messages}
    if corpus.prompt_field and corpus.completion_field:
        prompt = _text(fields, corpus.prompt_field)
        completion = _text(fields, corpus.completion_field)
        return prompt, completion, {"prompt": prompt, "completion": completion}
    text = _text(fields, corpus.text_field)
    if corpus.text_pair_field is None:
        return text, None, {"text": text}
    pair = _text(fields, corpus.text_pair_field)
    return text, pair, {"text": text, "text_pair": pair}


def _field(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None:
        raise RejectedError(FIELD_MISSING)
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    return _checked_text(_field(fields, name))


def _checked_text(value: Any) -> str:
    if not isinstance(value, str):
        raise RejectedError(NOT_A_STRING)
    if not value.strip():
        raise RejectedError(EMPTY)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RejectedError(INVALID_UTF8) from None
    return value


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RejectedError(NOT_A_STRING)
    if not value:
        raise RejectedError(EMPTY)
    return [{name: _text(message, name) for name in ("role", "content")} for message in value]


def _key(fields: Mapping[str, Any], corpus: CorpusConfig) -> str | None:
    if corpus.id_field is None:
        return None
    value = _field(fields, corpus.id_field)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RejectedError(NOT_A_STRING)
    return _checked_text(str(value))


def _label(fields: Mapping[str, Any], corpus: CorpusConfig, labels: LabelMap | None) -> Label:
    if corpus.label_field is None or labels is None:
        return None
    value = _field(fields, corpus.label_field)
    if labels.score == "softmax":
        return _class_of(value, labels)
    if labels.score == "sigmoid":
        return _multi_hot(value, labels)
    values = value if isinstance(value, list) else [value]
    if len(values) != labels.num_classes or not all(_is_number(item) for item in values):
        raise RejectedError(UNKNOWN_LABEL)
    return tuple(float(item) for item in values)


def _class_of(value: Any, labels: LabelMap) -> int:
    if isinstance(value, str) and value in labels.ids:
        return labels.ids[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < labels.num_classes:
        return value
    raise RejectedError(UNKNOWN_LABEL)


def _multi_hot(value: Any, labels: LabelMap) -> tuple[float, ...]:
    """From a list of classes, by name or number."""
    if not isinstance(value, list):
        raise RejectedError(UNKNOWN_LABEL)
    classes = {_class_of(item, labels) for item in value}
    return tuple(float(index in classes) for index in range(labels.num_classes))


def _is_number(value: Any) -> bool:
    """Whether a value is a number that float32 holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FLOAT32_MAX
