"""What is looked at before a run: the first records, and whether the teacher's tokenizer can do what is asked.

A flag that names no field, a tokenizer without a chat template, or with one that cannot be rendered, would reject every
document after hours of reading. Each is one error here, before the teacher's weights are opened.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from pipelines.config import CorpusConfig, PrecomputeConfig
from pipelines.corpus.chat_templates import Chat
from pipelines.corpus.documents import Source, is_blank, read_document, record_fields
from pipelines.corpus.files import Piece, is_compressed, open_file, read_piece
from pipelines.corpus.labels import LabelMap
from pipelines.corpus.messages import KWARGS
from pipelines.corpus.tables import TABLES
from pipelines.fingerprint.fingerprint import ResolvedTeacher, resolve
from pipelines.job.headers import check_headers, fields_by_flag
from pipelines.rejects import AMBIGUOUS_LABEL, RejectedError
from pipelines.tasks.teacher_task import refuse_no_offsets, tells_words
from schemas.errors import UsageError
from schemas.printable import printable
from schemas.tasks import OUTSIDE, TASKS

_FILES, _RECORDS = 8, 50
"""Pieces that are looked into, spread over all, and records of each."""
_SHOWN = 30
"""Names of fields that a message lists."""
_TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_SIMPLEST: tuple[list[dict[str, Any]], ...] = (
    _TURNS,
    [{"role": "system", "content": "c"}, *_TURNS],
    [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in _TURNS],
)
"""Conversations of which a template must take one."""
_ALWAYS = {"role", "content"}
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_LOG = logging.getLogger(__name__)


class First(NamedTuple):
    """A record from the beginning of a file, and its fields."""

    record: Any
    format: str
    source: Source
    fields: Mapping[str, Any]


def columns_of(corpus: CorpusConfig, variables: Sequence[str]) -> tuple[str, ...]:
    """The fields that are read of each record."""
    given = tuple(corpus.tools_field if name == "tools" else name for name in variables)
    return tuple(dict.fromkeys((*corpus.required_fields, *given)))


def template_variables(config: PrecomputeConfig) -> tuple[str, ...]:
    """What the teacher's chat template reads of a record beside its messages; nothing without messages.

    Raises:
        UsageError: there is no chat template, or it is none.
    """
    if not config.corpus.messages_field:
        return ()
    return variables_of(resolve(config.teacher).tokenizer, config.corpus)


def variables_of(tokenizer: Any, corpus: CorpusConfig) -> tuple[str, ...]:
    """The same, of an open tokenizer."""
    _refuse_no_template(tokenizer)
    reply = Chat(tokenizer).variables()
    if "error" in reply:
        raise _bad_template(reply)
    own = {corpus.messages_field, "messages", "add_generation_prompt", *tokenizer.special_tokens_map}
    return tuple(sorted({*reply["variables"], KWARGS} - own))


def first_records(corpus: CorpusConfig, pieces: Sequence[Piece]) -> list[First]:
    """Some records from the beginnings of some files.

    Raises:
        UsageError: none of them has a field that a flag names, or one table's header does not.
        CorpusError: a file cannot be read.
    """
    check_headers(corpus, pieces)
    step = -(-len(pieces) // _FILES)
    chosen = pieces[::step] if pieces else []
    found = [first for piece in chosen for first in _first_of(corpus, piece)]
    if found:
        _check_fields(corpus, found, {name for piece in chosen for name in _column_names(piece)})
    return found


def _first_of(corpus: CorpusConfig, piece: Piece) -> Iterator[First]:
    records = read_piece(piece, columns_of(corpus, ()), corpus.max_line_bytes)
    for line, record in enumerate(itertools.islice(records, _RECORDS), 1):
        if is_blank(record):
            continue
        try:
            fields = record_fields(record, corpus, piece.format)
        except RejectedError:
            continue
        yield First(record, piece.format, Source(piece.path, record.offset, line), fields)


def _column_names(piece: Piece) -> list[str]:
    """The columns of a Parquet file; of others none."""
    if piece.format != "parquet" or is_compressed(piece.path):
        return []
    with open_file(piece.path) as file:
        try:
            return list(pq.read_schema(file).names)
        except (OSError, pa.ArrowException):
            return []


def _check_fields(corpus: CorpusConfig, found: Sequence[First], columns: set[str]) -> None:
    there = sorted({name for first in found for name in first.fields} | columns)
    for flag, name in fields_by_flag(corpus).items():
        if name not in there:
            shown = ", ".join(printable(one) for one in there[:_SHOWN]) or "no field at all"
            raise UsageError(
                f"{flag} {printable(name)}: none of the first {len(found):,} records has such a field",
                where=printable(found[0].source.file),
                expected=f"one of the fields that there are: {shown}",
                do=f"Say {flag} with one of them" if there else "Look into the files",
            )


def check_teacher(
    config: PrecomputeConfig, teacher: ResolvedTeacher, labels: LabelMap | None, found: Sequence[First]
) -> None:
    """Whether labels have one meaning, and tokenizer and template can show what is supervised.

    Raises:
        UsageError: they cannot.
    """
    _check_labels(config.corpus, labels, found)
    corpus, tokenizer = config.corpus, teacher.tokenizer
    by_answer = config.supervise == "assistant" and TASKS[config.teacher.task].predicts_tokens
    by_answer = by_answer and config.generation is None
    if by_answer and (corpus.messages_field or corpus.prompt_field):
        refuse_no_offsets(tokenizer, otherwise=", or say --supervise all")
    if TASKS[config.teacher.task].labels == "word" and not corpus.words_field:
        _check_words(config, tokenizer, labels)
    if corpus.messages_field:
        variables = variables_of(tokenizer, corpus)
        if corpus.tools_field != "tools" and "tools" not in variables:
            raise UsageError(
                "--tools_field: the teacher's chat template reads no tools",
                where=config.teacher.path,
                do="Leave the flag out, or take a template that knows tools",
            )
        _check_template(
            corpus, tokenizer, found, variables, supervise=by_answer, prompt=config.generation is not None
        )
        if (by_answer or config.generation) and (
            words := Chat(tokenizer).unheeded(prompt=config.generation is not None)
        ):
            _LOG.warning(
                "the chat template does not heed add_generation_prompt: %s, which begins an answer, %s",
                printable(repr(words)),
                "is not said when the teacher is asked"
                if config.generation
                else "is supervised as part of it",
            )
        if unread := _unread(corpus, Chat(tokenizer), found[:_FILES], variables):
            told = ", ".join(printable(f"{name} ({count} of them)") for name, count in sorted(unread.items()))
            _LOG.warning(
                "of the first %d conversations the chat template does not read: %s. The teacher will not see it",
                len(found[:_FILES]),
                told,
            )


def _check_words(config: PrecomputeConfig, tokenizer: Any, labels: LabelMap | None) -> None:
    """Where the corpus does not say its words, the tokenizer must; and what no span labels is of a class of its own."""
    if not tells_words(tokenizer):
        raise UsageError(
            "the teacher's tokenizer does not split a text into words",
            where=config.teacher.path,
            got=type(tokenizer).__name__,
            do="Say the words: --words_field, with a list of them",
        )
    if config.corpus.label_field and labels is not None and OUTSIDE not in labels.ids:
        raise UsageError(
            f"the teacher has no class {OUTSIDE}, which words are of that no span holds",
            where=config.teacher.path,
            got=", ".join(printable(name) for name in list(labels.ids)[:_SHOWN]),
            do="Say a label for each word: --words_field, and --label_field with a list of names",
        )


def _check_labels(corpus: CorpusConfig, labels: LabelMap | None, found: Sequence[First]) -> None:
    if corpus.label_field is None or labels is None or not (labels.shared or labels.numbers_mislead):
        return
    for first in found:
        try:
            read_document(first.record, first.source, corpus, labels, first.format)
        except RejectedError as error:
            if str(error) == AMBIGUOUS_LABEL:
                unit = "row" if first.format in TABLES else "line"
                raise UsageError(
                    f"--label_field {corpus.label_field}: these labels could mean several of the teacher's classes",
                    where=f"{printable(first.source.file)} {unit} {first.source.line}",
                    expected=error.expected,
                    got=error.got,
                    do="Say them so, or mend id2label in the teacher's config.json",
                ) from None


def _refuse_no_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "--messages_field: the teacher's tokenizer has no chat template",
            expected="chat_template.jinja in the teacher's folder, or chat_template in tokenizer_config.json",
            do="Give it the template that it was trained with, or say --prompt_field and --completion_field",
        )
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        raise UsageError(
            "--messages_field: the teacher's tokenizer renders conversations by code of its own, not by a template",
            got=type(tokenizer).__name__,
            do="Render them yourself, and say --prompt_field and --completion_field",
        )


def _check_template(
    corpus: CorpusConfig, tokenizer: Any, found: Sequence[First], variables: Sequence[str], **how: bool
) -> None:
    """The simplest conversations, else the corpus's own: a template must take one, asked as `how` says."""
    chat = Chat(tokenizer)
    reply = {}
    for messages in _SIMPLEST:
        reply = chat.reply(messages, {}, **how)
        if "error" not in reply:
            return
        if reply.get("limit"):
            raise _bad_template(reply)
    for first in found[:_FILES]:
        try:
            document, _ = read_document(
                first.record, first.source, corpus, None, first.format, variables=variables
            )
            chat.of(document.text, document.given, **how)
        except RejectedError:
            continue
        return
    raise _bad_template(chat.reply(_TURNS, {}, **how))


def _unread(
    corpus: CorpusConfig, chat: Chat, found: Sequence[First], variables: Sequence[str]
) -> dict[str, int]:
    """What messages say beside role and content, and the record of tools, and no text shows: in how many records."""
    has: Counter[str] = Counter()
    read: set[str] = set()
    for first in found:
        with contextlib.suppress(RejectedError):
            document, _ = read_document(
                first.record, first.source, corpus, None, first.format, variables=variables
            )
            messages, given = json.loads(document.text), json.loads(document.given or "{}")
            whole = chat.reply(messages, given, supervise=False)
            if whole.get("limit"):
                break
            said = [name for message in messages for name, value in message.items() if value not in _NOTHING]
            names = {*said} - _ALWAYS
            for name in names if "error" not in whole else ():
                has[name] += 1
                less = [{key: value for key, value in one.items() if key != name} for one in messages]
                if chat.reply(less, given, supervise=False) != whole:
                    read.add(name)
            if corpus.tools_field in first.fields and "tools" not in variables:
                has[corpus.tools_field] += 1
    return {name: count for name, count in has.items() if name not in read}


def _bad_template(reply: Mapping[str, Any]) -> UsageError:
    return UsageError(
        "the teacher's chat template cannot be used",
        expected="one that renders a question and its answer",
        got=printable(f"one that {reply['error']}"),
        do="Mend chat_template.jinja, or chat_template in tokenizer_config.json",
    )
