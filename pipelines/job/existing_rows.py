"""What is already there, by document: rows of live shards, of orphans, and what the teacher could not score before.

A run joins tonight's documents with these by document hash, in buckets: equal ranges of hashes, so many that one is a
few megabytes, for an element a document would cost an engine more than all else that is done with it. `decide` then
says, for one document: what is still to be computed, which rows of orphans come in, and which live rows have no
document any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pipelines.corpus.documents import Document
from schemas.errors import CorruptionError
from schemas.rows.rows import Rows
from schemas.shards.reader import open_footer, read_identities
from schemas.shards.seal import Shard
from schemas.spec import Header
from schemas.storage.storage import Storage, StoredFile
from schemas.verify import check_shard
from schemas.versions.history import as_shard
from schemas.versions.memory import read_unscored

LIVE, ORPHAN, UNSCORED = "live", "orphan", "unscored"
BUCKET_BYTES, BUCKET_ROWS = 2**22, 2**15
"""Of the corpus, and of what is stored, in a bucket: what a worker holds of them at a time."""
LEAST_ROW_BYTES = 64
"""Of a shard that nobody has opened yet: it has no more rows than that gives."""
_MOST_BUCKETS = 2**24
_HELD = 2**15
"""Windows that are put into buckets at a time."""

Window = tuple[bytes, tuple[Any, ...]]


class Stored(NamedTuple):
    """One window of a document that needs no teacher: where it is.

    Between steps it is a plain tuple, which Beam's coder writes in 40 bytes where it would pickle a named one in 94.
    """

    kind: str
    window_index: int
    window_count: int
    shard: str = ""
    """Name of the shard that holds it; empty for what could not be scored."""
    example_id: bytes = b""
    document_id: str | None = None


class Decision(NamedTuple):
    """What becomes of one document."""

    document: Document | None
    """To be tokenised and scored, less the windows in `known`."""
    known: list[int]
    adopted: list[Stored]
    """Rows of orphans that come in: one for each window that is not live."""
    missing: list[Stored]
    """Live rows, when the document is not in the corpus."""
    outcome: str | None
    """How the document counts."""
    rejected: str | None = None
    """The id of a document of which the teacher could not score a window before: its old rows stay."""


def num_buckets(corpus_bytes: int, rows: int) -> int:
    """Buckets for a corpus of about so many bytes and a cache of so many rows."""
    return min(_MOST_BUCKETS, max(1, -(-corpus_bytes // BUCKET_BYTES), -(-rows // BUCKET_ROWS)))


def bucket_of(document_hash: bytes, buckets: int) -> int:
    """Which of equal ranges of hashes a document falls into."""
    return int.from_bytes(document_hash[:4], "big") * buckets >> 32


def in_buckets(
    source: Any, read: Callable[..., Iterable[Window]], buckets: int, **where: Any
) -> Iterator[tuple[int, list[Window]]]:
    """What `read` gives for a source, (document hash, window) each, as lists by bucket."""
    windows = iter(read(source, **where))
    while some := list(itertools.islice(windows, _HELD)):
        held: dict[int, list[Window]] = {}
        for window in some:
            held.setdefault(bucket_of(window[0], buckets), []).append(window)
        yield from held.items()


def decide(found: Sequence[Document], stored: Sequence[Stored]) -> Decision:
    """One document: its copies in the corpus, and all that is stored of it."""
    if not stored:
        return Decision(_first(found), [], [], [], "new_documents")
    by_kind: dict[str, dict[int, Stored]] = {LIVE: {}, ORPHAN: {}, UNSCORED: {}}
    windows: set[int] = set()
    total = 0
    for one in sorted(stored, key=lambda item: (item.window_index, item.shard)):
        by_kind[one.kind].setdefault(one.window_index, one)
        windows.add(one.window_index)
        total = one.window_count
    live = by_kind[LIVE]
    if not found:
        return Decision(None, [], [], list(live.values()), None)
    adopted = [one for window, one in by_kind[ORPHAN].items() if window not in live]
    complete = bool(windows) and len(windows) == total
    unscored = windows - live.keys() - by_kind[ORPHAN].keys()
    outcome = "new_documents"
    if complete:
        kinds = [(adopted, "adopted_documents"), (unscored, "remembered_documents")]
        outcome = next((name for part, name in kinds if part), "known_documents")
    first = _first(found)
    rejected = first.key if unscored else None
    return Decision(None if complete else first, sorted(windows), adopted, [], outcome, rejected)


def _first(found: Sequence[Document]) -> Document:
    return min(found, key=lambda document: (document.file, document.offset))


def live_windows(
    shard: Sequence[Any], root: str, header: Header, may_leave: bool
) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    """(document hash, window) of every row of a live shard; where it stands only if it may leave tonight."""
    storage, name = Storage.at(root), Shard(*shard).name
    windows = _windows(LIVE, name, read_identities(storage, name, open_footer(storage, name), header.spec))
    if may_leave:
        return windows
    return ((key, one[:3]) for key, one in windows)


def orphan_windows(file: Sequence[Any], root: str, header: Header) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    """(document hash, window) of every row of an orphan; of none if it is another cache's, or any byte is damaged."""
    storage, file = Storage.at(root), StoredFile(*file)
    try:
        opened = open_footer(storage, file.name)
        check_shard(storage, header, as_shard(file, opened.footer.totals.examples))
        rows = read_identities(storage, file.name, opened, header.spec)
    except CorruptionError:
        return iter(())
    return _windows(ORPHAN, file.name, rows)


def unscored_windows(name: str, root: str, header: Header) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    """(document hash, window) of everything that the teacher could not score, from one file of the cache's memory."""
    for one in read_unscored(Storage.at(root), header, name):
        yield one.document_hash, (UNSCORED, one.window_index, one.window_count)


def _windows(kind: str, name: str, rows: Rows) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    hashes = (row.tobytes() for row in rows.array("document_hash"))
    has_id = rows.spec.has_document_id
    ids = rows.array("document_id").tolist() if has_id else [None] * len(rows)
    columns = zip(
        rows.array("window_index").tolist(),
        rows.array("window_count").tolist(),
        itertools.repeat(name, len(rows)),
        rows.example_ids,
        ids,
        strict=True,
    )
    return zip(hashes, ((kind, *values) for values in columns), strict=True)
