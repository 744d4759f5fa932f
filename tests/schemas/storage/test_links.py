"""Nothing below a cache is followed: no link is read, written, listed or deleted through, and no pipe is opened."""

import os
import shutil
import time
from pathlib import Path

import pytest

import teachonce
from schemas import Cache
from schemas.errors import CacheError, CorruptionError
from schemas.storage.storage import Storage
from schemas.versions.history import LEASES_FOLDER, new_run

OLD = 1_600_000_000

FOLDERS = ("_delta_log", "_teachonce", *(f"_teachonce/{name}" for name in ("commits", "tokenizer")))
FILES = ("_teachonce/spec.json", "_teachonce/tokenizer/tokenizer.json", f"_delta_log/{0:020d}.json")
ABSENT = tuple(f"_teachonce/{name}" for name in ("leases", "rejects", "runs", "unscored", "forgotten"))
"""Folders that the small cache has not got."""


def tell(capsys, *arguments):
    """Exit status and all that was printed."""
    status = teachonce.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def state(folder):
    """Every name below a folder, with its bytes and times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[path.relative_to(folder).as_posix()] = (
            status.st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
    return found


def lead_out(root: Path, name: str, outside: Path) -> Path:
    """Moves what stands there out of the cache, and leaves a link."""
    place, target = root / name, outside / "target"
    if place.exists():
        shutil.move(place, target)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir()
    for number in range(3):
        other = (target if target.is_dir() else outside) / f"{new_run()}{number}"
        other.write_bytes(b"1\n")
        os.utime(other, (OLD, OLD))
    place.symlink_to(target)
    return place


def verbs(root):
    return [
        ["inspect", root],
        ["verify", root],
        ["verify", root, "--repair"],
        ["vacuum", root, "--older_than", "0d"],
        ["export", root, "--out", root.parent / "plain"],
    ]


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", [*FOLDERS, *FILES, *ABSENT, "shard"])
def test_no_verb_follows_a_link(own_cache, outside, capsys, name):
    root = Path(own_cache.storage.root)
    place = lead_out(root, own_cache.shards[0].name if name == "shard" else name, outside)
    before = state(outside)
    refused = 0
    for arguments in verbs(root):
        status, text = tell(capsys, *arguments)
        assert status == 0 or ("symbolic link" in text and text.count("\n") == 1), text
        refused += status != 0
        assert state(outside) == before, arguments
        assert place.is_symlink()
    assert refused >= (1 if name in ABSENT else 3)


@pytest.mark.parametrize("lead", ["nowhere", "itself", "to the root"])
def test_links_that_lead_nowhere_or_in_a_circle(own_cache, capsys, lead):
    root = Path(own_cache.storage.root)
    place = root / "_teachonce" / "leases"
    place.symlink_to({"nowhere": "gone", "itself": "leases", "to the root": "../.."}[lead])
    status, text = tell(capsys, "vacuum", root, "--older_than", "0d")
    assert (status, text.count("\n")) == (1, 1)
    assert f"symbolic link stands in the cache, and none is followed there: {place}" in text


def test_a_link_of_one_name_is_seen_in_a_folder(own_cache, outside, capsys):
    root = Path(own_cache.storage.root)
    kept = outside / "kept"
    kept.write_bytes(b"1\n")
    (root / LEASES_FOLDER).mkdir()
    (root / LEASES_FOLDER / new_run()).symlink_to(kept)
    status, text = tell(capsys, "vacuum", root, "--older_than", "0d")
    assert (status, "symbolic link" in text) == (1, True)
    assert kept.exists()


def test_the_folder_itself_may_be_reached_by_a_link(own_cache, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(Path(own_cache.storage.root).parent)
    assert Cache.open(link / "cache").verify().examples


@pytest.mark.parametrize("name", [*FILES, "shard"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_never_opened(own_cache, capsys, name, kind):
    root = Path(own_cache.storage.root)
    place = root / (own_cache.shards[0].name if name == "shard" else name)
    place.unlink()
    os.mkfifo(place) if kind == "pipe" else place.mkdir()
    begun = time.monotonic()
    status, text = tell(capsys, "verify", root)
    assert (status, text.count("\n")) == (1, 1), text
    assert kind == "folder" or "a pipe stands where the cache has a file" in text
    assert time.monotonic() - begun < 30


def test_what_bears_no_name_of_ours_is_left_and_told(own_cache, outside, capsys):
    root = Path(own_cache.storage.root)
    theirs = [
        "notes.txt",
        "x.parquet.part-9",
        "data.part-0123abcd",
        "_teachonce/leases/notes.txt",
        "more/a.parquet",
    ]
    for name in theirs:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1\n")
        os.utime(root / name, (OLD, OLD))
    (root / "shortcut").symlink_to(outside)
    status, text = tell(capsys, "vacuum", root, "--older_than", "0d")
    assert status == 0
    assert all((root / name).exists() for name in theirs)
    assert "not this cache's, and left alone: _teachonce/leases/notes.txt, data.part-0123abcd" in text
    assert "and 1 more" in text


@pytest.fixture
def storage(tmp_path):
    return Storage.at(tmp_path / "root")


CALLS = {
    "read": lambda s, name: s.read(name),
    "range": lambda s, name: s.read_range(name, 0, 1),
    "size": lambda s, name: s.size(name),
    "exists": lambda s, name: s.exists(name),
    "put": lambda s, name: s.put(name, b"new"),
    "put if absent": lambda s, name: s.put_if_absent(name, b"new"),
    "sync": lambda s, name: s.make_durable(name),
    "delete": lambda s, name: s.delete([name]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", ["link", "folder/file", "folder/none", "a/b/link"])
def test_storage_follows_nothing(storage, outside, call, name):
    (outside / "file").write_bytes(b"theirs")
    storage.put("a/b/c", b"")
    root = Path(storage.root)
    (root / "folder").symlink_to(outside)
    for link in ("link", "a/b/link"):
        (root / link).symlink_to(outside / "file")
    with pytest.raises(CacheError, match="symbolic link") as caught:
        call(storage, name)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"file": b"theirs"}
    assert (root / "link").is_symlink()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", ["../file", "a/../../file", "/etc/passwd", "a//b", "a/./b", "nul\0"])
def test_no_name_leads_out(storage, call, name):
    storage.put("a/b", b"")
    with pytest.raises(CorruptionError, match="leads out"):
        call(storage, name)


@pytest.mark.parametrize("call", [v for k, v in CALLS.items() if k != "put if absent"])
def test_a_pipe_is_refused_at_once(storage, call):
    storage.put("a/b", b"")
    os.mkfifo(Path(storage.root) / "a" / "pipe")
    with pytest.raises(CorruptionError, match="a pipe stands"):
        call(storage, "a/pipe")
