"""Documents: what a record of the corpus says, or why it is rejected.

Checks that need no teacher stand here, so a wrong `--text_field` is found before the teacher starts. What labels and
conversations may be stands in `labels.py` and `messages.py`, and what a reject tells in `rejects.py`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pipelines.config import CorpusConfig
from pipelines.corpus.answers import read_answers
from pipelines.corpus.images import read_image
from pipelines.corpus.labels import NAMES, VALUES, Label, LabelMap, read_label
from pipelines.corpus.lines import BadRow, LongLine, Record
from pipelines.corpus.messages import read_given, read_messages
from pipelines.corpus.objects import read_objects
from pipelines.corpus.passages import read_passages, relevances
from pipelines.corpus.tables import TABLES, with_number
from pipelines.corpus.words import read_words, span_labels, word_labels
from pipelines.rejects import (
    EMPTY,
    FIELD_MISSING,
    INVALID_UTF8,
    LINE_TOO_LONG,
    NOT_A_STRING,
    NOT_JSON,
    REPEATED_FIELD,
    TOO_LONG,
    RejectedError,
    kind_of,
)
from schemas.identity import document_hash


class Source(NamedTuple):
    """Where a record stands: its file, and its first byte there (after decompression) or its row number."""

    file: str
    offset: int
    line: int = 0
    """From 1, counted in the piece that was read; 0 in Parquet, CSV, TSV and tars."""


class Document(NamedTuple):
    """One checked record. `text` is the text, the messages as JSON, or the prompt; `pair` a second text, the
    completion, the target, or the passages as JSON.

    All members are of plain types, so that Beam shuffles documents without pickling.
    """

    hash: bytes
    key: str | None
    text: str
    pair: str | None
    label: Label
    file: str
    offset: int
    given: str | None = None
    """JSON of what else the chat template is given: tools, documents and other variables that it reads."""
    line: int = 0
    words: tuple[int, ...] | None = None
    """First and last character, exclusive, of each word, one after the other, where the corpus says them."""
    image: bytes | None = None
    """An image's bytes, where documents are images."""


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
    return read_document(record, source, corpus, labels, kind)[0]


def read_document(
    record: Record,
    source: Source,
    corpus: CorpusConfig,
    labels: LabelMap | None,
    kind: str,
    *,
    variables: Collection[str] = (),
) -> tuple[Document, str | None]:
    """The document in a record, and how its label was read; `variables` are what the chat template reads.

    Raises:
        RejectedError: with the reason.
    """
    fields = record_fields(record, corpus, kind)
    own = corpus.words_field or corpus.image_field
    text, pair, content = ("", None, {}) if own else _content(fields, corpus)
    given = read_given(fields, variables, corpus.tools_field) if corpus.messages_field else {}
    if given:
        content["given"] = given
    key = _key(fields, corpus)
    words = None
    if corpus.words_field:
        text, words, content = read_words(_field(fields, corpus.words_field), corpus.words_field)
    image = None
    if corpus.image_field:
        image, content = read_image(_field(fields, corpus.image_field), corpus.image_field)
    parts = None if words is None else len(words) // 2
    if corpus.passages_field:
        parts = len(content["passages"])
    typed = with_number(fields, corpus.label_field, labels) if kind in TABLES else fields
    label, reading = _label(typed, corpus, labels, pair or text, parts)
    stored = list(label) if isinstance(label, tuple) else label
    digest = document_hash(content, key=key or "", label=stored)
    extra = json.dumps(given, ensure_ascii=False) if given else None
    length = len(text) + len(pair or "") + len(extra or "")
    if length > corpus.max_document_chars:
        expected = f"at most {corpus.max_document_chars:,} characters"
        raise RejectedError(TOO_LONG, digest, expected=expected, got=f"{length:,}")
    told = (source.file, source.offset, extra, source.line, words, image)
    return Document(digest, key, text, pair, label, *told), reading


def record_id(record: Record, corpus: CorpusConfig) -> str | None:
    """The id of a record that may be broken, for its reject."""
    try:
        return _key(record_fields(record, corpus, "jsonl"), corpus)
    except RejectedError:
        return None


def record_fields(record: Record, corpus: CorpusConfig, kind: str) -> Mapping[str, Any]:
    """A record's fields by name.

    Raises:
        RejectedError: it has none.
    """
    if isinstance(record.value, dict):
        return record.value
    if isinstance(record.value, BadRow):
        raise RejectedError(record.value.reason, expected=record.value.expected, got=record.value.got)
    if isinstance(record.value, LongLine):
        expected = f"at most {corpus.max_line_bytes:,} bytes a line (--max_line_bytes)"
        raise RejectedError(LINE_TOO_LONG, expected=expected, got=f"{record.value.size_bytes:,} bytes")
    try:
        text = record.value.removeprefix(codecs.BOM_UTF8 if record.offset == 0 else b"").decode("utf-8")
    except UnicodeDecodeError:
        raise RejectedError(INVALID_UTF8, expected="UTF-8", got="other bytes") from None
    if kind == "text":
        return {corpus.text_field: text.removesuffix("\r")}
    return _parsed(text, corpus)


class _RepeatedError(ValueError):
    """A name stands twice in an object: which, and whether that matters, is looked at then."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _RepeatedError
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _parsed(text: str, corpus: CorpusConfig) -> Mapping[str, Any]:
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return _parsed_with_names(text, corpus)
    return value if isinstance(value, dict) else _parsed_with_names(text, corpus)


def _parsed_with_names(text: str, corpus: CorpusConfig) -> Mapping[str, Any]:
    """The same, of what is no object or has a name twice in one.

    Raises:
        RejectedError: unless the repeated names are none that is read.
    """
    repeated: list[set[str]] = []

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        names = [name for name, _ in pairs] if len(value) < len(pairs) else []
        repeated.append({name for name in names if names.count(name) > 1})
        return value

    try:
        value = json.loads(text, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        got = "nesting without end" if isinstance(error, RecursionError) else "no JSON"
        raise RejectedError(NOT_JSON, expected="one JSON object a line", got=got) from None
    if not isinstance(value, dict):
        raise RejectedError(NOT_JSON, expected="one JSON object a line", got=kind_of(value))
    twice = repeated[-1] & {*corpus.required_fields, corpus.tools_field}
    if corpus.messages_field and any(repeated[:-1]):
        twice |= {corpus.messages_field}
    if twice:
        raise RejectedError(REPEATED_FIELD, field=min(twice), expected="each name once", got="one twice")
    return value


def _content(fields: Mapping[str, Any], corpus: CorpusConfig) -> tuple[str, str | None, dict[str, Any]]:
    """Text, second text, and what is hashed."""
    if corpus.messages_field:
        messages = read_messages(_field(fields, corpus.messages_field), corpus.messages_field)
        return json.dumps(messages, ensure_ascii=False), None, {"messages": messages}
    if corpus.prompt_field:
        prompt = _text(fields, corpus.prompt_field)
        if corpus.completion_field is None:
            return prompt, None, {"prompt": prompt}
        completion = _text(fields, corpus.completion_field)
        return prompt, completion, {"prompt": prompt, "completion": completion}
    text = _text(fields, corpus.text_field)
    if corpus.passages_field:
        passages = read_passages(_field(fields, corpus.passages_field), corpus.passages_field)
        return text, json.dumps(passages, ensure_ascii=False), {"text": text, "passages": passages}
    if corpus.target_field is not None:
        target = _text(fields, corpus.target_field)
        return text, target, {"source": text, "target": target}
    if corpus.text_pair_field is None:
        return text, None, {"text": text}
    pair = _text(fields, corpus.text_pair_field)
    return text, pair, {"text": text, "text_pair": pair}


def _field(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None:
        got = "null" if name in fields else "no such field"
        raise RejectedError(FIELD_MISSING, field=name, expected="a value", got=got)
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    return _checked_text(_field(fields, name), name)


def _checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RejectedError(NOT_A_STRING, field=name, expected="a string", got=kind_of(value))
    if not value.strip():
        raise RejectedError(EMPTY, field=name, expected="a string that is not blank", got="a blank one")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        expected, got = "a string of whole characters", "half a surrogate pair"
        raise RejectedError(INVALID_UTF8, field=name, expected=expected, got=got) from None
    return value


def _key(fields: Mapping[str, Any], corpus: CorpusConfig) -> str | None:
    if corpus.id_field is None:
        return None
    value = _field(fields, corpus.id_field)
    if isinstance(value, bool) or not isinstance(value, str | int):
        expected = "a string or a whole number"
        raise RejectedError(NOT_A_STRING, field=corpus.id_field, expected=expected, got=kind_of(value))
    return _checked_text(str(value), corpus.id_field)


def _label(
    fields: Mapping[str, Any],
    corpus: CorpusConfig,
    labels: LabelMap | None,
    text: str,
    parts: int | None,
) -> tuple[Label, str | None]:
    """`text` is what spans are of: the second text of a pair."""
    if corpus.label_field is None or labels is None:
        return None, None
    if corpus.passages_field:
        value = _field(fields, corpus.label_field)
        return relevances(value, corpus.label_field, parts or 0), VALUES
    if labels.by_word:
        value = _field(fields, corpus.label_field)
        if parts is None:
            return span_labels(value, labels, corpus.label_field, text), NAMES
        return word_labels(value, labels, corpus.label_field, parts), NAMES
    if labels.by_answer:
        value = _field(fields, corpus.label_field)
        most = labels.answers
        return read_answers(value, corpus.label_field, text, always=labels.always_answerable, most=most)
    if labels.by_object:
        return read_objects(_field(fields, corpus.label_field), labels, corpus.label_field)
    return read_label(_field(fields, corpus.label_field), labels, corpus.label_field)
