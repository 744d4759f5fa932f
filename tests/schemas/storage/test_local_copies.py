"""Local copies: the store is asked once, nothing kept is trusted, the limit holds, and the disk is never an error."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from schemas import Cache
from schemas.errors import CorruptionError, SealedError, UsageError
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from schemas.shards.reader import open_footer, open_shard, read_group
from schemas.storage.local_copies import LocalCopies, read_again
from schemas.storage.storage import Storage
from tests.s3_server import serving
from tests.schemas.hostile import stored
from tests.synthetic import SPECS, header_of, make_cache, random_rows, seal, table_of

ROOT = "s3://bucket/cache"


@pytest.fixture
def s3(tmp_path, monkeypatch):
    make_cache(tmp_path / "store" / "cache")
    with serving(tmp_path / "store") as (server, env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield server


def copies(tmp_path, max_bytes=10**9):
    return LocalCopies(folder=str(tmp_path / "copies"), max_bytes=max_bytes)


def read(kept):
    """All that a run reads."""
    cache = Cache.open(ROOT, copies=kept)
    for shard in cache.shards:
        cache.identities(shard)
    return [table_of(rows) for rows in cache.read_all()]


def held(tmp_path):
    return sorted((tmp_path / "copies").iterdir())


def test_the_store_is_asked_once(s3, tmp_path):
    right = read(None)
    s3.asked.clear()
    assert read(copies(tmp_path)) == right
    assert len(s3.shards) == len(set(s3.shards)) == len(held(tmp_path))
    s3.asked.clear()
    assert read(copies(tmp_path)) == right
    assert s3.shards == []


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied"])
def test_a_damaged_copy_is_fetched_anew(s3, tmp_path, caplog, how):
    right = read(copies(tmp_path))
    for path in held(tmp_path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes({"flipped": data, "cut": data[:-9], "emptied": b""}[how])
    with caplog.at_level(logging.WARNING):
        assert read(copies(tmp_path)) == right
    assert "fetched anew" in caplog.text
    s3.asked.clear()
    caplog.clear()
    assert read(copies(tmp_path)) == right
    assert (s3.shards, caplog.text) == ([], "")


def test_what_the_store_has_damaged_is_an_error_also_with_copies(s3, tmp_path):
    (path, *_) = sorted((s3.folder / "cache").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=f"{path.name}, row group 0"):
        read(copies(tmp_path))


def test_verify_reads_the_store(s3, tmp_path):
    read(copies(tmp_path))
    (path, *_) = sorted((s3.folder / "cache").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=path.name):
        Cache.open(ROOT, copies=copies(tmp_path)).verify()


def test_the_limit_holds_and_strangers_stay(s3, tmp_path):
    right = read(None)
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "mine.txt").write_text("not a copy" * 10_000)
    for limit in (1, 3_000, 20_000):
        assert read(copies(tmp_path, limit)) == right
        kept = [path.stat().st_size for path in held(tmp_path) if path.name != "mine.txt"]
        assert sum(kept) <= limit
        assert bool(kept) == (limit > 1)
    assert (tmp_path / "copies" / "mine.txt").exists()


def test_the_least_recently_used_goes_first(tmp_path):
    kept, name = copies(tmp_path, 300), f"{'a' * 32}-{'b' * 32}.parquet"
    for start in (0, 100, 200):
        kept.read(name, start, start + 100, lambda: b"x" * 100)
    for age, start in ((3, 0), (2, 100), (1, 200)):
        os.utime(tmp_path / "copies" / f"{name}.{start}-{start + 100}", (10**9 - age, 10**9 - age))
    kept.read(name, 0, 100, lambda: pytest.fail("it is there"))
    kept.read(name, 300, 400, lambda: b"y" * 100)
    assert [path.name.partition("parquet.")[2] for path in held(tmp_path)] == ["0-100", "200-300", "300-400"]


def test_a_disk_that_refuses_is_one_warning(s3, tmp_path, caplog):
    right = read(None)
    Path(tmp_path / "copies").write_text("a file stands there")
    with caplog.at_level(logging.WARNING):
        assert read(copies(tmp_path)) == right
    assert caplog.text.count("no more local copies are kept") == len(caplog.records) == 1


def test_copies_of_a_folder_have_no_effect(tmp_path):
    with pytest.raises(UsageError, match="no effect"):
        Storage.at(tmp_path, copies(tmp_path))


def test_what_was_sealed_wrong_is_asked_for_once(s3, tmp_path):
    """Its bytes are those that were sealed: the store would give them again."""
    rows = random_rows(SPECS["top_p"], 6).rows
    logsumexp = rows.data["logsumexp"]
    wrong = Ragged(values=np.full_like(logsumexp.values, np.nan), offsets=logsumexp.offsets)
    sealed = seal(Rows(spec=rows.spec, data={**rows.data, "logsumexp": wrong}))
    _, shard = stored(tmp_path / "store" / "wrong", rows.spec, sealed.name, bytes(sealed.data))
    storage = Storage.at("s3://bucket/wrong", copies(tmp_path))
    opened = read_again(storage, lambda store: open_footer(store, shard.name))
    s3.asked.clear()
    with pytest.raises(SealedError, match=f"column logsumexp .*{shard.name}, row group 0"):
        read_again(storage, lambda store: read_group(store, shard.name, opened, 0, rows.spec))
    assert len(s3.shards) == 1
    s3.asked.clear()
    storage = Storage.at("s3://bucket/wrong")
    with pytest.raises(SealedError, match="number of rows is not the cache's"):
        read_again(storage, lambda store: open_shard(store, header_of(rows.spec), shard))
    assert len(s3.shards) == 1


def test_an_answer_that_is_empty(s3):
    """Is not told as too much, nor as a file that is cut short."""
    (name, *_) = sorted(path.name for path in (s3.folder / "cache").glob("*.parquet"))
    size = (s3.folder / "cache" / name).stat().st_size
    s3.instead = lambda asked, right: right._replace(body=b"")
    with pytest.raises(
        CorruptionError, match=f"gives nothing.*expected 90 bytes, got none, of a file of {size}"
    ):
        Storage.at(ROOT).read_range(name, 10, 90)
    s3.instead = lambda asked, right: right._replace(body=right.body + b"x")
    with pytest.raises(CorruptionError, match=r"other bytes|more than was asked for"):
        Storage.at(ROOT).read_range(name, 10, 90)
    s3.instead = lambda asked, right: None
    with pytest.raises(CorruptionError, match="shorter than what was written"):
        Storage.at(ROOT).read_range(name, 10, size + 1)
