"""Storage: objects appear whole or not at all, and errors are one line."""

import os
import threading
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from schemas.errors import CacheError, CorruptionError, UsageError
from schemas.storage.storage import Storage


@pytest.fixture
def storage(tmp_path):
    return Storage.at(tmp_path / "root")


@pytest.fixture(params=["local", "remote"])
def either(request, storage):
    """A folder, and an object store (in memory, behind the same calls as S3's)."""
    return storage if request.param == "local" else Storage(root="s3://bucket", store=MemoryStore())


def test_what_is_put_is_read(either):
    either.put("a/b/c", b"hello")
    assert either.read("a/b/c") == b"hello"
    assert either.read_range("a/b/c", 1, 4) == b"ell"
    assert either.size("a/b/c") == 5
    assert either.exists("a/b/c")
    either.put("a/b/c", memoryview(b"again"))
    assert either.read("a/b/c") == b"again"


def test_put_if_absent_never_replaces(either):
    assert either.put_if_absent("a", b"first")
    assert not either.put_if_absent("a", b"second")
    assert either.read("a") == b"first"


def test_put_if_absent_has_one_winner(either):
    either.put("begin", b"")
    barrier, won = threading.Barrier(8), []

    def race(number):
        barrier.wait()
        if either.put_if_absent("a", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % number for number in won] == [either.read("a")]
    assert either.names() == ["a", "begin"]


@pytest.mark.parametrize("name", ["none", "file/under"])
def test_what_is_not_there(either, name):
    either.put("file", b"x")
    assert not either.exists(name)
    for ask in (either.read, either.size, lambda n: either.read_range(n, 0, 1)):
        with pytest.raises(FileNotFoundError, match=name):
            ask(name)


def test_a_short_file_is_corruption(either):
    either.put("a", b"12345")
    for start in (2, 5, 7):
        with pytest.raises(CorruptionError, match="expected 9 bytes, got 5"):
            either.read_range("a", start, 9)


def test_a_store_that_refuses_a_range_of_a_whole_object_is_no_corruption(monkeypatch):
    storage = Storage(root="s3://bucket", store=MemoryStore())
    storage.put("a", b"12345")

    def refuse(*_, **__):
        raise GenericError("503 slow down")

    monkeypatch.setattr(obstore, "get_range", refuse)
    with pytest.raises(CacheError, match=r"refuses.*slow down") as caught:
        storage.read_range("a", 2, 5)
    assert not isinstance(caught.value, CorruptionError)


def test_names_are_sorted_and_hide_unfinished_parts(storage):
    for name in ("b", "a/z", "a/y"):
        storage.put(name, b"")
    (Path(storage.root) / "a" / "y.part-0000abcd").write_bytes(b"half")
    assert storage.names() == ["a/y", "a/z", "b"]
    assert storage.names("a") == ["a/y", "a/z"]
    assert storage.names("none") == []


def test_names_of_an_object_store():
    storage = Storage(root="s3://bucket", store=MemoryStore())
    for name in ("b", "a/z", "a/y", "ab"):
        storage.put(name, b"x")
    assert storage.names() == ["a/y", "a/z", "ab", "b"]
    assert storage.names("a") == ["a/y", "a/z"]
    storage.make_durable("b")


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_a_write_that_fails_leaves_nothing(storage, method, monkeypatch):
    storage.put("a", b"before")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CacheError, match="No space left") as caught:
        getattr(storage, method)("b", b"after")
    assert "\n" not in str(caught.value)
    assert [path.name for path in Path(storage.root).iterdir()] == ["a"]


def test_a_put_is_durable_file_first_then_its_folders(storage, monkeypatch):
    synced, real = [], os.fsync

    def record(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    storage.put("x/a", b"1")
    folders = [path for path in synced if ".part-" not in path]
    part = next(place for place, path in enumerate(synced) if ".part-" in path)
    assert folders == [os.path.dirname(storage.root), storage.root, f"{storage.root}/x"]
    assert synced[part + 1 :] == [f"{storage.root}/x"]


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_a_file_where_a_folder_should_be(tmp_path, method):
    (tmp_path / "root").write_bytes(b"I am a file")
    with pytest.raises(CacheError, match=f"{tmp_path}/root.*Choose another"):
        getattr(Storage.at(tmp_path / "root"), method)("a/b", b"")


@pytest.mark.parametrize(
    "call", [lambda s: s.read("a"), lambda s: s.put("a/b", b""), lambda s: s.size("a/b")]
)
def test_permission_denied_is_one_line(storage, call, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("open", "stat"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(CacheError, match=r"storage refuses: .*Permission denied.*permissions") as caught:
        call(storage)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "root"),
    [("s3://bucket/x/", "s3://bucket/x"), ("gs://bucket/x", "gs://bucket/x")],
)
def test_object_stores_open_without_a_word_on_the_wire(url, root, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    storage = Storage.at(url)
    assert storage.root == root
    assert not storage.is_local


@pytest.mark.parametrize("url", ["nonsense://x", "s3://", "ftp://host/x"])
def test_no_place_for_a_cache(url):
    with pytest.raises(UsageError, match="no place for a cache"):
        Storage.at(url)


def test_a_percent_escape_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="percent"):
        Storage.at(tmp_path / "per%20cent")


def test_local_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Storage.at("run:1").root == str(tmp_path / "run:1")
    assert Storage.at((tmp_path / "a b").as_uri()).root == str(tmp_path / "a b")
    assert Storage.at("100% sure").root == str(tmp_path / "100% sure")
