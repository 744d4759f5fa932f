"""Opening a cache: what is read when, and how little."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas import Cache
from schemas.rows.rows import Rows
from schemas.storage.storage import Storage
from schemas.versions.header import create_header, read_header
from tests.synthetic import (
    TOKENIZER_FILES,
    causal_spec,
    header_of,
    make_cache,
    random_rows,
)


@pytest.fixture
def reads(monkeypatch):
    """Every ranged read as (name, start, end)."""
    found, real = [], Storage.read_range

    def record(self, name, start, end):
        found.append((name, start, end))
        return real(self, name, start, end)

    monkeypatch.setattr(Storage, "read_range", record)
    return found


def test_opening_reads_no_shard_and_footers_once(own_cache, reads):
    cache = Cache.open(own_cache.storage.root)
    assert (cache.totals.examples, cache.size_bytes, len(cache.shards)) == (24, cache.size_bytes, 2)
    assert reads == []
    assert len(cache.row_groups) == len(cache.row_groups) == 4
    assert len(reads) == 2


def test_each_row_group_is_one_read(cache, reads):
    groups = cache.row_groups
    reads.clear()
    parts = [cache.read(ref) for ref in groups]
    assert reads == [(ref.shard.name, ref.group.start, ref.group.end) for ref in groups]
    assert [len(part) for part in parts] == [ref.group.examples for ref in groups]


def test_identities_are_read_without_the_rest(tmp_path, reads):
    cache = make_cache(tmp_path / "cache", causal_spec(max_length=400), num_rows=60, num_shards=1)
    footer_bytes = sum(len(opened.data) for opened in cache.footers.values())
    reads.clear()
    found = cache.identities(cache.shards[0])
    whole = Rows.concatenate(list(cache.read_all()))
    assert found.example_ids == whole.example_ids
    assert (found.array("document_hash") == whole.array("document_hash")).all()
    assert set(found.data) == {"example_id", "document_hash", "window_index", "window_count"}
    spent = sum(end - start for name, start, end in reads[: -2 * len(cache.row_groups)])
    assert spent < 60 * 60 + footer_bytes < cache.size_bytes / 10


def test_order_of_row_groups_is_by_name(cache):
    names = [ref.shard.name for ref in cache.row_groups]
    assert names == sorted(names)
    assert [ref.place for ref in cache.row_groups] == [0, 1, 0, 1]


def test_threads_share_a_cache(own_cache):
    expected = random_rows(own_cache.spec, 24).rows.example_ids
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(own_cache.read, own_cache.row_groups * 8))
    assert sorted(i for part in parts[:4] for i in part.example_ids) == expected
    assert len(parts) == 32


def test_a_header_is_created_once(tmp_path):
    storage = Storage.at(tmp_path)
    first, second = header_of(causal_spec()), header_of(causal_spec(stride=3))
    assert create_header(storage, first, TOKENIZER_FILES) == first
    assert create_header(storage, second, TOKENIZER_FILES) == first
    assert read_header(storage) == first


def test_a_saved_tokenizer_is_what_was_stored(cache, tmp_path):
    folder = cache.save_tokenizer(tmp_path / "new" / "folder")
    assert {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    } == TOKENIZER_FILES
