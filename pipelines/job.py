"""The pipeline: Beam only wires; what each step does is a plain function elsewhere.

    read pieces -> parse -> (reject) -> drop repeats and what the cache holds -> tokenise -> gate
       -> units -> teacher on a unit, encode, seal, write -> commit one version

Inputs are shuffled, outputs never: a unit's codes become a shard inside the teacher's step. The cache is listed once,
before the run, and passed in by value; its ids are read from its shards here. Values between steps are tuples of plain
types, which Beam encodes without pickling.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import AsDict, AsIter, AsSingleton, TaggedOutput

from pipelines.config import CorpusConfig, PrecomputeConfig
from pipelines.corpus import Piece, read_piece
from pipelines.documents import (
    Document,
    LabelMap,
    Reject,
    RejectedError,
    Source,
    is_blank,
    parse,
    record_id,
)
from pipelines.fingerprint import corpus_kind, resolve
from pipelines.handler import TeacherHandler, TeacherJob
from pipelines.outcome import MAX_REJECT_LINES, Run, RunSummary, check_rejects, finish
from pipelines.progress import PROGRESS
from pipelines.tokenise import Example, Tokeniser
from pipelines.units import ENTRIES_A_TOKEN, ShardLine
from schemas.commits import Shard
from schemas.identity import unit_number
from schemas.shard_reader import open_footer, read_identities
from schemas.spec import Spec
from schemas.storage import Storage

COUNTS, REJECTS = "counts", "rejects"


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that the pipeline is built from."""

    config: PrecomputeConfig
    run: Run
    pieces: Sequence[Piece]
    known_shards: Sequence[Shard]
    labels: LabelMap | None


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Wires one run."""
    config, run = job.config, job.run
    parsed = (
        pipeline
        | "list pieces" >> beam.Create(list(job.pieces))
        | "spread pieces" >> beam.Reshuffle()
        | "read documents" >> _tagged(ReadDocuments(config.corpus, job.labels))
    )
    known = (
        pipeline
        | "list shards" >> beam.Create(list(job.known_shards))
        | "spread shards" >> beam.Reshuffle()
        | "read known ids" >> beam.FlatMap(known_windows, root=run.root, spec=run.header.spec)
    )
    new = (
        {"found": parsed.main, "known": known}
        | "meet by hash" >> beam.CoGroupByKey()
        | "drop repeats and known" >> _tagged(DropKnown())
    )
    examples = (
        new.main | "spread documents" >> beam.Reshuffle() | "tokenise" >> _tagged(Tokenise(config, run))
    )
    counts = AsDict(
        (parsed[COUNTS], new[COUNTS], examples[COUNTS])
        | "gather counts" >> beam.Flatten()
        | "add counts" >> beam.CombinePerKey(sum)
    )
    rejects = AsIter(
        (parsed[REJECTS], examples[REJECTS]) | "gather rejects" >> beam.Flatten() | FewPerReason()
    )
    once = pipeline | "once" >> beam.Create([None])
    gate = once | "keep the tolerance" >> beam.Map(pass_gate, run, config.unit_tokens, counts, rejects)
    teacher = TeacherJob(
        config=config.teacher,
        header=run.header,
        root=run.root,
        batch_tokens=config.batch_tokens,
        row_group_tokens=config.row_group_tokens,
    )
    _ = (
        examples.main
        | "assign units" >> beam.Map(in_unit, AsSingleton(gate))
        | "group units" >> beam.GroupByKey()
        | "unpack units" >> beam.Map(members)
        | "ask the teacher" >> RunInference(TeacherHandler(teacher).with_no_batching())
        | "gather lines" >> beam.combiners.ToList()
        | "commit" >> beam.Map(commit_run, run, counts, rejects)
    )


class ReadDocuments(beam.DoFn):  # type: ignore[misc]
    """Piece -> (hash, document); counts and rejects beside."""

    def __init__(self, corpus: CorpusConfig, labels: LabelMap | None) -> None:
        self._corpus, self._labels = corpus, labels

    def process(self, piece: Piece) -> Iterator[Any]:
        piece = Piece(*piece)
        counts = {"documents": 0, "blank_lines": 0}
        for record in read_piece(piece, self._corpus.required_fields):
            if is_blank(record):
                counts["blank_lines"] += 1
                continue
            counts["documents"] += 1
            PROGRESS.add(documents=1)
            source = Source(piece.path, record.offset)
            try:
                document = parse(record, source, self._corpus, self._labels, piece.format)
                yield document.hash, tuple(document)
            except RejectedError as error:
                yield from _rejected(Reject(str(error), *source, record_id(record, self._corpus)))
        for item in counts.items():
            yield TaggedOutput(COUNTS, item)


class DropKnown(beam.DoFn):  # type: ignore[misc]
    """(hash, documents and known windows) -> one document with its known windows, if any is missing."""

    def process(self, element: tuple[bytes, dict[str, Iterable[Any]]]) -> Iterator[Any]:
        found = sorted(element[1]["found"], key=lambda document: Document(*document)[-2:])
        if not found:
            return
        cached = list(element[1]["known"])
        windows = sorted({index for index, _ in cached})
        complete = bool(cached) and len(windows) == cached[0][1]
        yield TaggedOutput(COUNTS, ("duplicates", len(found) - 1))
        yield TaggedOutput(COUNTS, ("known_documents" if complete else "new_documents", 1))
        if not complete:
            yield found[0], windows


class Tokenise(beam.DoFn):  # type: ignore[misc]
    """(document, known windows) -> examples; counts and rejects beside."""

    def __init__(self, config: PrecomputeConfig, run: Run) -> None:
        self._config, self._run = config, run
        self._tokeniser: Tokeniser | None = None

    def setup(self) -> None:
        teacher = resolve(self._config.teacher)
        fingerprint = self._run.header.fingerprint
        self._tokeniser = Tokeniser.of(
            teacher.tokenizer, self._run.header.spec, corpus_kind(self._config.corpus), fingerprint.tokenizer
        )

    def process(self, element: tuple[tuple[Any, ...], list[int]]) -> Iterator[Any]:
        document, known = Document(*element[0]), element[1]
        assert self._tokeniser is not None
        try:
            examples = list(self._tokeniser.examples(document, known))
        except RejectedError as error:
            yield from _rejected(Reject(str(error), document.file, document.offset, document.key))
            return
        tokens = sum(example.num_tokens for example in examples)
        PROGRESS.add(tokens_found=tokens)
        yield TaggedOutput(COUNTS, ("tokens", tokens))
        yield TaggedOutput(COUNTS, ("positions", sum(example.num_positions for example in examples)))
        if any(self._tokeniser.is_cut(document, example) for example in examples):
            yield TaggedOutput(COUNTS, ("truncated_pairs", 1))
        yield from (tuple(example) for example in examples)


class FewPerReason(beam.PTransform):  # type: ignore[misc]
    """Keeps enough rejects a reason, those that stand first in the corpus."""

    def expand(self, rejects: beam.PCollection) -> beam.PCollection:
        return (
            rejects
            | "by reason" >> beam.Map(lambda reject: (reject[0], reject))
            | "first of each" >> beam.combiners.Top.SmallestPerKey(MAX_REJECT_LINES, key=_place)
            | "rejects" >> beam.FlatMap(lambda item: item[1])
        )


def known_windows(shard: tuple[Any, ...], root: str, spec: Spec) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """(document hash, (window, number of windows)) of every row of a live shard."""
    storage, name = Storage.at(root), Shard(*shard).name
    rows = read_identities(storage, name, open_footer(storage, name), spec)
    hashes = (row.tobytes() for row in rows.array("document_hash"))
    pairs = zip(rows.array("window_index").tolist(), rows.array("window_count").tolist(), strict=True)
    return zip(hashes, pairs, strict=True)


def pass_gate(
    _: None, run: Run, unit_tokens: int, counts: dict[str, int], rejects: Iterable[tuple[Any, ...]]
) -> int:
    """How many units the run makes; fails it before the teacher starts if too many documents were rejected."""
    check_rejects(run, counts, _reject_lines(rejects))
    entries = counts.get("positions", 0) * run.header.spec.max_kept
    weight = max(counts.get("tokens", 0), entries // ENTRIES_A_TOKEN)
    return max(1, -(-weight // unit_tokens))


def in_unit(example: tuple[Any, ...], num_units: int) -> tuple[int, tuple[Any, ...]]:
    """An example with the number of its unit."""
    return unit_number(example[0], num_units), example


def members(unit: tuple[int, Iterable[tuple[Any, ...]]]) -> list[Example]:
    """A unit's examples, each id once, in id order."""
    examples = sorted((Example(*example) for example in unit[1]), key=lambda example: example.id)
    return [next(same) for _, same in itertools.groupby(examples, key=lambda example: example.id)]


def commit_run(
    lines: list[Any], run: Run, counts: dict[str, int], rejects: Iterable[tuple[Any, ...]]
) -> RunSummary:
    """The pipeline's last step."""
    return finish(run, [ShardLine(*line) for line in lines], counts, _reject_lines(rejects))


def _reject_lines(rejects: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [tuple(reject) for reject in rejects]


def _rejected(reject: Reject) -> Iterator[TaggedOutput]:
    yield TaggedOutput(REJECTS, tuple(reject))
    yield TaggedOutput(COUNTS, (f"reject:{reject.reason}", 1))


def _place(reject: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(reject[1:3])


def _tagged(work: beam.DoFn) -> beam.PTransform:
    return beam.ParDo(work).with_outputs(COUNTS, REJECTS, main="main")
