"""Five nights of a corpus in which documents are added, moved, repeated, edited and deleted; then what keeps it tidy.

What each night says of itself is asserted number by number, and after each night the rows are those that one run over
that night's corpus alone would give.
"""

import itertools

import pytest

from pipelines import CompactConfig, ForgetConfig, compact, forget
from schemas import Cache, vacuum
from tests.pipelines.helpers import documents, read, run, write_jsonl
from tests.pipelines.job.test_orphans import Asked

UNITS = {"unit_tokens": 1000, "row_group_tokens": 200, "max_prune_fraction": 0.5}
EDITED = {4: "an edited text", 9: "another edited text"}

DELETED = (1, 2, 17)


def texts(numbers, edited=()):
    every = documents(20)
    return {n: EDITED[n] if n in edited else every[n]["text"] for n in numbers}


NIGHTS = {
    "begun": texts(range(12)),
    "added": texts(range(20)),
    "moved and repeated": texts(range(20)),
    "edited": texts(range(20), EDITED),
    "deleted": texts(set(range(20)) - set(DELETED), EDITED),
}


def write(folder, night, *, ids):
    """The night's files: moved ones are cut elsewhere, in another order, and some stand there twice."""
    records = [{**({"id": f"d{n}"} if ids else {}), "text": text} for n, text in NIGHTS[night].items()]
    if night != "moved and repeated":
        return [write_jsonl(folder / "corpus.jsonl", records)]
    parts = [records[::-2], records[::2], records[:3]]
    return [write_jsonl(folder / f"part{n}.jsonl", part) for n, part in enumerate(parts)]


COUNTS = {
    # documents read, repeats, known, new
    "begun": (12, 0, 0, 12),
    "added": (20, 0, 12, 8),
    "moved and repeated": (23, 3, 20, 0),
    "edited": (20, 0, 18, 2),
    "deleted": (17, 0, 17, 0),
}


def alone(cache, corpus, teacher, flags):
    """The rows of one run over one night's corpus."""
    run(corpus, teacher, cache, **flags)
    return read(cache)


@pytest.mark.parametrize("ids", [True, False])
def test_five_nights(tmp_path, teacher, monkeypatch, ids):
    flags = {**UNITS, **({"id_field": "id"} if ids else {})}
    asked, cache, version, after = Asked(monkeypatch), tmp_path / "cache", -1, {}
    for night, (found, repeats, known, new) in COUNTS.items():
        corpus = write(tmp_path / night, night, ids=ids)
        before = after.keys()
        asked.clear()
        summary = run(corpus, teacher, cache, prune=True, **flags)
        scored = list(asked)
        after = read(cache)
        assert (summary.documents, summary.duplicates) == (found, repeats), night
        assert (summary.known_documents, summary.new_documents) == (known, new), night
        left = before - after.keys()
        assert summary.pruned_examples + summary.replaced_examples == len(left), night
        assert bool(summary.replaced_examples) == (ids and night == "edited"), night
        assert set(scored) == after.keys() - before, night
        assert len(scored) == len(set(scored)), night
        assert after.keys() == alone(tmp_path / night / "alone", corpus, teacher, flags).keys(), night
        version += summary.committed
        assert summary.committed == (night != "moved and repeated")
        assert Cache.open(cache).version == summary.version == version
        assert Cache.open(cache).verify().examples == len(after)
    tidy(cache, after, teacher, corpus, flags, ids=ids)


def tidy(cache, rows, teacher, corpus, flags, *, ids):
    """Merged, then two documents forgotten, then what nothing needs deleted: the same rows less two documents'."""
    before = len(Cache.open(cache).shards)
    merged = compact(CompactConfig(cache=str(cache)))
    assert merged.shards == 1 < before
    assert read(cache).keys() == rows.keys()
    gone = [key for key, row in rows.items() if row["document_hash"].tobytes() in two_documents(rows)]
    names = {rows[key]["document_id"] if ids else rows[key]["document_hash"].tobytes().hex() for key in gone}
    assert forget(ForgetConfig(cache=str(cache), ids=tuple(sorted(names)))).examples == len(gone)
    assert read(cache).keys() == rows.keys() - set(gone)
    vacuum(cache, 0.0)
    live = {shard.name for shard in Cache.open(cache).shards}
    assert {path.name for path in cache.glob("*.parquet")} == live
    again = run(corpus, teacher, cache, prune=True, **flags)
    assert (again.committed, again.forgotten_documents, again.known_documents) == (False, 2, 15)
    assert Cache.open(cache).verify().examples == len(rows) - len(gone)


def two_documents(rows):
    return set(itertools.islice(sorted({row["document_hash"].tobytes() for row in rows.values()}), 2))


def test_without_prune_what_was_deleted_or_edited_stays(tmp_path, teacher):
    cache, seen = tmp_path / "cache", set()
    for night in NIGHTS:
        run(write(tmp_path / night, night, ids=False), teacher, cache, **UNITS)
        rows = read(cache)
        assert seen <= rows.keys()
        seen = rows.keys()
    hashes = {row["document_hash"].tobytes() for row in rows.values()}
    assert len(hashes) == 20 + len(EDITED)
