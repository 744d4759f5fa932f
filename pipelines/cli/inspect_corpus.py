"""The verb `inspect --corpus`: what of each record the teacher would be shown, and what of it is supervised."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from pipelines.cli import inspect_flags
from pipelines.cli.logs import quiet, warnings_on_stderr
from pipelines.cli.precompute import run_config
from pipelines.config import PrecomputeConfig
from pipelines.corpus.documents import Document, Source, is_blank, read_document
from pipelines.corpus.examples import Example
from pipelines.corpus.files import find_pieces, read_piece
from pipelines.corpus.labels import LabelMap
from pipelines.corpus.tables import TABLES
from pipelines.corpus.tokenization import Tokeniser
from pipelines.fingerprint.fingerprint import corpus_kind, make_spec, resolve
from pipelines.job.preflight import check_teacher, columns_of, first_records, template_variables
from pipelines.rejects import RejectedError
from pipelines.tasks.image_classification import Views
from pipelines.tasks.tasks import TEACHER_TASKS
from schemas.cli.terminal import print_json, print_lines
from schemas.printable import printable
from schemas.tasks import TASKS

_ANSWER, _NO_ANSWER = "answer", "no answer"


class Stretch(NamedTuple):
    """A stretch of an example's text, all of it supervised, or none."""

    text: str
    supervised: bool
    label: str | None = None
    """The class of the word that begins here, where the corpus says one; or that this is the answer."""


def inspect(argv: Sequence[str]) -> int:
    """`teachonce inspect --corpus FILES --teacher DIR`."""
    quiet()
    arguments = inspect_flags.inspect(argv)
    config = run_config(arguments, ())
    with warnings_on_stderr():
        shown = look(config, arguments.rows)
        if arguments.json:
            print_json([_told(one) for one in shown])
            return 0
        first = next(shown, None)
        if first is None:
            print_lines("the corpus holds no record")
            return 0
        console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        for one in itertools.chain([first], shown):
            _print(one, console, by_text=not TASKS[config.teacher.task].predicts_tokens)
    return 0


class Shown(NamedTuple):
    """One record, and what would become of it."""

    source: Source
    document: Document | None
    reading: str | None
    reject: RejectedError | None
    examples: list[tuple[Example, list[Stretch]]]
    format: str


def look(config: PrecomputeConfig, rows: int) -> Iterator[Shown]:
    """The first records of a corpus, read, rendered and tokenised as a run does it.

    Raises:
        UsageError: a flag, a path, or the teacher's tokenizer or chat template will not do.
    """
    pieces = find_pieces(config.corpus)
    first = first_records(config.corpus, pieces)
    teacher = resolve(config.teacher)
    task, given = config.teacher.task, config.task_settings
    if not TASKS[task].has_positions and not TEACHER_TASKS[task].defaults(teacher.folder, given).features:
        config = replace(config, features=("mean:-1",))  # how states are pooled changes nothing that is shown
    spec = make_spec(config, teacher)
    labels = LabelMap.for_spec(spec)
    check_teacher(config, teacher, labels, first)
    maker = Tokeniser.of(teacher.tokenizer, spec, corpus_kind(config.corpus), "")
    variables = template_variables(config)
    left = rows
    for piece in pieces:
        records = read_piece(piece, columns_of(config.corpus, variables), config.corpus.max_line_bytes)
        for line, record in enumerate(records, 1):
            if is_blank(record):
                continue
            if not left:
                return
            left -= 1
            by_line = piece.format not in ("parquet", *TABLES)
            source = Source(piece.path, record.offset, line if by_line else 0)
            try:
                document, reading = read_document(
                    record, source, config.corpus, labels, piece.format, variables=variables
                )
                examples = [(one, shown_of(one, maker)) for one in maker.examples(document)]
            except RejectedError as error:
                yield Shown(source, None, None, error, [], piece.format)
                continue
            yield Shown(source, document, reading, None, examples, piece.format)


def shown_of(example: Example, maker: Tokeniser) -> list[Stretch]:
    """What people see of an example: its text, or its image's size and bytes."""
    if example.image is None or not isinstance(maker.inputs, Views):
        return stretches(example, maker)
    image = maker.inputs.pictures.decoded(example.image)
    (view,) = example.columns
    told = f"{image.width} x {image.height} pixels, {len(example.image):,} bytes, view {view}"
    return [Stretch(told, False)]


def stretches(example: Example, maker: Tokeniser) -> list[Stretch]:
    """An example's text in stretches; joined they are all of it. Of a whole text no token is supervised, but where a
    position chooses among tokens those are shown so; a token with a label of its own is a stretch of its own, and an
    answer is."""
    ids = np.frombuffer(example.input_ids, np.int32)
    supervised, places = np.zeros(len(ids), np.bool_), np.empty(0, np.int64)
    if (kind := maker.spec.kind).predicts_tokens:
        places = np.arange(len(ids) - 1)
        if example.position_index is not None:
            places = np.frombuffer(example.position_index, np.int32)
        supervised[places + 1 if kind.precedes_tokens else places] = True
    gold: dict[int, str] = {}
    if example.gold_ids is not None and maker.spec.label_names:
        told = np.frombuffer(example.gold_ids, np.int32).tolist()
        gold = {place: maker.spec.label_names[own] for place, own in zip(places.tolist(), told, strict=True)}
    cuts = list[int]()
    if kind.class_columns is not None:
        begin, end = (example.columns[kind.column_index(name)] for name in kind.class_columns)
        supervised[begin:end] = True
        if example.gold_ids is not None:
            begin, end = np.frombuffer(example.gold_ids, np.int32).tolist()
            gold, cuts = {begin: _ANSWER if begin else _NO_ANSWER}, [begin, end + 1]
            supervised[0] |= not begin
    every = supervised[1:] if maker.spec.label_names and gold else False
    edges = np.flatnonzero(np.diff(supervised) | every) + 1
    ends = sorted({*edges.tolist(), *cuts, len(ids)} - {0})
    found, start, before = [], 0, ""
    for end in ends:
        upto = _decoded(maker.tokenizer, ids[:end])
        # a tokenizer may leave out a text's first blank: what a stretch adds is seen in the whole
        text = upto[len(before) :] if upto.startswith(before) else _decoded(maker.tokenizer, ids[start:end])
        found.append(Stretch(text, bool(supervised[start]), gold.get(start)))
        start, before = end, upto
    return found


def _decoded(tokenizer: Any, ids: np.ndarray) -> str:
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _print(one: Shown, console: Console, *, by_text: bool) -> None:
    """`by_text`: positions are no tokens."""
    place = f"line {one.source.line}" if one.source.line else f"row {one.source.offset}"
    place = f"byte {one.source.offset}" if one.format in TABLES else place
    console.print(Text(f"{printable(one.source.file)} {place}", style="bold"))
    if one.reject is not None:
        console.print(Text(printable(f"  rejected: {one.reject}: {one.reject.told()}"), style="red"))
    if (
        one.document is not None
        and one.reading is not None
        and not any(stretch.label for _, found in one.examples for stretch in found)
    ):
        console.print(f"  label {one.document.label}, read as {one.reading}")
    for example, found in one.examples:
        window = f"window {example.window_index + 1} of {example.window_count}"
        targets = f"{example.num_positions} of {example.num_tokens} tokens supervised"
        if not example.num_positions:
            targets = f"{example.num_tokens} tokens, which the teacher answers"
        if example.label is not None or by_text:
            targets = f"{example.num_tokens} tokens"
        console.print(f"  {window}: {targets}")
        console.print(_coloured(found, colours=_has_colours(console)))


def _has_colours(console: Console) -> bool:
    return console.is_terminal and not console.no_color and "NO_COLOR" not in os.environ


def _coloured(found: Sequence[Stretch], *, colours: bool) -> Text:
    """The text, its line ends marked so that none can pass for a line of ours."""
    text = Text("    ")
    for stretch in found:
        lines = "\\n\n    ".join(printable(line) for line in stretch.text.split("\n"))
        if stretch.supervised and not colours:
            lines = f"[[{lines}]]"
        text.append(lines, style="bold green" if stretch.supervised else "dim")
        if stretch.label is not None:
            text.append(f"/{printable(stretch.label)}", style="cyan")
    return text


def _told(one: Shown) -> dict[str, Any]:
    """One record as JSON."""
    reject = one.reject
    return {
        **one.source._asdict(),
        "reject": None
        if reject is None
        else {"reason": str(reject), "field": reject.field, "expected": reject.expected, "got": reject.got},
        "label": None if one.document is None else one.document.label,
        "label_read_as": one.reading,
        "examples": [
            {
                "window_index": example.window_index,
                "window_count": example.window_count,
                "tokens": example.num_tokens,
                "positions": example.num_positions,
                "text": [stretch._asdict() for stretch in found],
            }
            for example, found in one.examples
        ],
    }
