"""The steps that read: pieces to documents, documents to what is still to be done, and that to examples.

Each is a thin `DoFn` over a plain function elsewhere; beside its main output it gives counts and rejects. Values
between steps are tuples of plain types, which Beam encodes without pickling, in lists: an engine takes some 10
microseconds for each element of each step, a fast teacher not more for a short text.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from pipelines.config import PrecomputeConfig
from pipelines.corpus.documents import Document, Source, is_blank, read_document, record_id
from pipelines.corpus.files import LINES_OF, Piece, is_part, read_piece
from pipelines.corpus.labels import LabelMap
from pipelines.corpus.lines import Record
from pipelines.corpus.tokenization import Tokeniser
from pipelines.fingerprint.fingerprint import corpus_kind, resolve
from pipelines.job import lists
from pipelines.job.existing_rows import Stored, bucket_of, decide
from pipelines.job.lists import in_lists, size_of
from pipelines.job.preflight import columns_of
from pipelines.progress import PROGRESS
from pipelines.rejects import DAMAGED, Reject, RejectedError
from pipelines.tolerances import LINES, READ_AS, Run
from pipelines.versions import check_versions
from schemas.storage.storage import Storage
from schemas.versions.memory import Forgotten, read_forgotten

COUNTS, REJECTS, SEEN, ADOPTED, MISSING = "counts", "rejects", "seen", "adopted", "missing"
MAIN = "main"
_COUNTS = ("documents", "blank_lines", "duplicates", "forgotten_documents", "unidentified")
FOUND, REJECTED = "found", "rejected"
_TOLD = 64
"""Documents that are read between two times that the progress is told."""
DISTINCT = 2**17
"""Documents of one piece that are known again; then forgotten all, so that they take no more than some 10 MB."""


class ReadDocuments(beam.DoFn):  # type: ignore[misc]
    """Piece -> (hash, document); counts and rejects beside, and which documents were seen at all.

    Repeats inside a piece are only counted: else a text that stands a million times in a corpus would meet itself as
    often in the join, in one worker's memory. There it meets one copy a piece.
    """

    def __init__(
        self,
        config: PrecomputeConfig,
        run: Run,
        labels: LabelMap | None,
        variables: Sequence[str] = (),
    ) -> None:
        """`variables` are what the teacher's chat template reads beside the messages."""
        self._run, self._labels, self._variables = run, labels, tuple(variables)
        self._corpus = config.corpus
        self._forgotten = Forgotten()

    def setup(self) -> None:
        self._forgotten = read_forgotten(Storage.at(self._run.root), self._run.forgotten)

    def process(self, piece: Piece) -> Iterator[Any]:
        piece = Piece(*piece)
        counts = dict.fromkeys(_COUNTS, 0)
        met = set[bytes]()
        columns = columns_of(self._corpus, self._variables)
        line = 0
        for record in read_piece(piece, columns, self._corpus.max_line_bytes):
            line += 1
            if is_blank(record):
                counts["blank_lines"] += 1
                continue
            counts["documents"] += 1
            if counts["documents"] % _TOLD == 0:
                PROGRESS.add(documents=_TOLD)
            source = Source(piece.path, record.offset, line if piece.format in LINES_OF else 0)
            yield from self._outputs(record, piece.format, source, counts, met)
        PROGRESS.add(documents=counts["documents"] % _TOLD)
        if is_part(piece):
            counts[f"{LINES}{piece.start}:{piece.path}"] = line
        for item in counts.items():
            yield TaggedOutput(COUNTS, item)

    def _outputs(
        self, record: Record, kind: str, source: Source, counts: dict[str, int], met: set[bytes]
    ) -> Iterator[Any]:
        try:
            document, reading = read_document(
                record, source, self._corpus, self._labels, kind, variables=self._variables
            )
        except RejectedError as error:
            yield from self._rejected(record, error, source, counts)
            return
        if self._is_forgotten(document.hash, document.key):
            counts["forgotten_documents"] += 1
            return
        if reading is not None:
            counts[f"{READ_AS}{reading}"] = counts.get(f"{READ_AS}{reading}", 0) + 1
        if document.hash in met:
            counts["duplicates"] += 1
            return
        if len(met) >= DISTINCT:
            met.clear()
        met.add(document.hash)
        yield document.hash, tuple(document)
        if self._run.may_leave and document.key is not None:
            yield TaggedOutput(SEEN, (document.key, FOUND))

    def _is_forgotten(self, digest: bytes | None, key: str | None) -> bool:
        if not self._forgotten.salts:
            return False
        return any(item and self._forgotten.has(item) for item in (digest, key))

    def _rejected(
        self, record: Record, error: RejectedError, source: Source, counts: dict[str, int]
    ) -> Iterator[Any]:
        key = record_id(record, self._corpus)
        if self._is_forgotten(error.digest, key):  # not even among the rejects is it to be named
            counts["forgotten_documents"] += 1
            return
        yield from rejected(error.reject(source.file, source.offset, key, source.line))
        if not self._run.may_leave:
            return
        if self._corpus.id_field is None:
            counts["unidentified"] += str(error) in DAMAGED
            key = error.digest.hex() if error.digest else None
        else:
            counts["unidentified"] += key is None
        if key is not None:
            yield TaggedOutput(SEEN, (key, REJECTED))


class ReadBuckets(beam.DoFn):  # type: ignore[misc]
    """The same, but documents as lists by bucket: piece -> (bucket, documents)."""

    def __init__(self, reader: ReadDocuments, buckets: int) -> None:
        self._reader, self._buckets = reader, buckets

    def setup(self) -> None:
        self._reader.setup()

    def process(self, piece: Piece) -> Iterator[Any]:
        held: dict[int, list[tuple[Any, ...]]] = {}
        size = 0
        for found in self._reader.process(piece):
            if isinstance(found, TaggedOutput):
                yield found
                continue
            digest, document = found
            held.setdefault(bucket_of(digest, self._buckets), []).append(document)
            size += size_of(document)
            if size > lists.HELD_BYTES:
                yield from held.items()
                held, size = {}, 0
        yield from held.items()


class DropKnown(beam.DoFn):  # type: ignore[misc]
    """(bucket, documents and what is stored of them) -> lists of documents, each with the windows that need no
    teacher."""

    def process(self, element: tuple[int, dict[str, Iterable[list[Any]]]]) -> Iterator[Any]:
        found: dict[bytes, list[Document]] = {}
        stored: dict[bytes, list[Stored]] = {}
        for part in element[1]["stored"]:
            for digest, one in part:
                stored.setdefault(digest, []).append(Stored(*one))
        for documents in element[1]["found"]:
            for document in documents:
                found.setdefault(document[0], []).append(Document(*document))
        counts: Counter[str] = Counter()
        yield from in_lists(
            itertools.chain.from_iterable(
                self._decided(digest, found.get(digest, []), stored.get(digest, []), counts)
                for digest in {**found, **stored}
            )
        )
        for count in counts.items():
            yield TaggedOutput(COUNTS, count)

    def _decided(
        self, digest: bytes, found: list[Document], stored: list[Stored], counts: Counter[str]
    ) -> Iterator[Any]:
        decision = decide(found, stored)
        for one in decision.adopted:
            yield TaggedOutput(ADOPTED, (one.shard, one.example_id))
        for one in (one for one in decision.missing if one.shard):  # where rows may leave tonight
            key = digest.hex() if one.document_id is None else one.document_id
            yield TaggedOutput(MISSING, (key, (one.shard, one.example_id)))
        if decision.outcome is not None:
            counts["duplicates"] += len(found) - 1
            counts[decision.outcome] += 1
        if decision.rejected is not None:
            yield TaggedOutput(SEEN, (decision.rejected, REJECTED))
        if decision.document is not None:
            yield tuple(decision.document), decision.known


class Tokenise(beam.DoFn):  # type: ignore[misc]
    """Documents, each with the windows that need no teacher -> examples, in lists; counts and rejects beside."""

    def __init__(self, config: PrecomputeConfig, run: Run) -> None:
        self._config, self._run = config, run
        self._tokeniser: Tokeniser | None = None
        self._forgotten = Forgotten()

    def setup(self) -> None:
        os.environ.setdefault(
            "TOKENIZERS_PARALLELISM", "false"
        )  # its threads would be beside all other workers'
        check_versions(self._run.versions)
        teacher = resolve(self._config.teacher)
        header = self._run.header
        self._tokeniser = Tokeniser.of(
            teacher.tokenizer, header.spec, corpus_kind(self._config.corpus), header.fingerprint.tokenizer
        )
        self._forgotten = read_forgotten(Storage.at(self._run.root), self._run.forgotten)

    def process(self, element: list[tuple[tuple[Any, ...], list[int]]]) -> Iterator[Any]:
        assert self._tokeniser is not None
        counts = dict.fromkeys(("tokens", "positions", "image_bytes", "truncated_pairs"), 0)
        made: list[tuple[Any, ...]] = []
        size, written = 0, self._tokeniser.spec.generation
        answer = 0 if written is None else written.max_new_tokens  # at most; units have room for that
        documents = [(Document(*document), known) for document, known in element]
        for (document, _), found in zip(documents, self._tokeniser.batch(documents), strict=True):
            if isinstance(found, RejectedError):
                yield from rejected(found.reject(document.file, document.offset, document.key, document.line))
                if document.key is not None:
                    yield TaggedOutput(SEEN, (document.key, REJECTED))
                continue
            examples = found
            if self._forgotten.salts:
                examples = [example for example in found if not self._forgotten.has(example.id)]
            for example in examples:
                counts["tokens"] += example.num_tokens + answer
                counts["positions"] += example.num_positions + answer
                counts["image_bytes"] += len(example.image or b"")
                made.append(tuple(example))
                size += size_of(example)
            if size > lists.EXAMPLES_BYTES:
                yield made
                made, size = [], 0
            if any(self._tokeniser.is_cut(document, example) for example in examples):
                counts["truncated_pairs"] += 1
        PROGRESS.add(tokens_found=counts["tokens"])
        for count in counts.items():
            yield TaggedOutput(COUNTS, count)
        if made:
            yield made


def leaving(
    element: tuple[str, dict[str, Iterable[Any]]], *, prune: bool, replace: bool
) -> Iterator[tuple[str, tuple[str, bytes, bool]]]:
    """(document, (shard, example id, whether it is pruned)) of rows that leave, by document id or hash.

    A row whose id stands in the corpus with other content is replaced; one whose document is nowhere is pruned. Neither
    leaves where a record of that id was rejected: what would replace it is not there.
    """
    seen = set(element[1]["seen"])
    pruned = FOUND not in seen
    if REJECTED in seen or not (prune or (replace and not pruned)):
        return
    for shard, example in element[1]["missing"]:
        yield element[0], (shard, example, pruned)


def spared(element: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[tuple[str, tuple[bytes, bool]]]:
    """(shard, (example id, whether it is pruned)) of rows that leave; of none whose document the teacher rejected."""
    if not any(True for _ in element[1]["rejected"]):
        for shard, example, pruned in element[1]["leaving"]:
            yield shard, (example, pruned)


def rejected(reject: Reject) -> Iterator[TaggedOutput]:
    """A reject, and its count."""
    yield TaggedOutput(REJECTS, tuple(reject))
    yield TaggedOutput(COUNTS, (f"reject:{reject.reason}", 1))


def tagged(work: beam.DoFn, *tags: str) -> beam.PTransform:
    """A step with counts and other outputs beside its main one."""
    return beam.ParDo(work).with_outputs(COUNTS, *tags, main=MAIN)
