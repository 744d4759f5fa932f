"""The verbs that write: no link below a cache is followed, and what the system refuses is one line."""

import contextlib
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest

import teachonce
from schemas import Cache
from schemas.versions.history import new_run, strangers
from tests.pipelines import models
from tests.pipelines.helpers import write_jsonl
from tests.pipelines.people import people


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Those of a precompute, less its cache."""
    folder = tmp_path_factory.mktemp("strangers")
    corpus = write_jsonl(folder / "corpus.jsonl", [*people(6), {"id": "x", "text": 7}])
    teacher = models.causal_teacher(folder / "teacher")
    return [
        f"--corpus={corpus}",
        f"--teacher={teacher}",
        "--task=causal-lm",
        "--id_field=id",
        "--max_length=24",
        "--max_reject_fraction=1",
        "--no_progress",
    ]


@pytest.fixture(scope="module")
def made(flags, tmp_path_factory):
    cache = tmp_path_factory.mktemp("made") / "cache"
    assert teachonce.main(["precompute", *flags, f"--cache={cache}"]) == 0
    return cache


@pytest.fixture
def own(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "cache"))


def told(capsys, *arguments):
    capsys.readouterr()
    status = teachonce.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def state(folder):
    return {
        path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")
    }


def verbs(cache, flags, ids):
    return {
        "precompute": ["precompute", *flags, f"--cache={cache}"],
        "forget": ["forget", cache, "--ids", ids, "--no_progress"],
        "compact": ["compact", cache, "--no_progress"],
        "thin": ["thin", cache, "--keep=threshold:1/8", f"--out={cache.parent / 'thin'}", "--no_progress"],
        "thin into": [
            "thin",
            cache.parent / "source",
            "--keep=threshold:1/8",
            f"--out={cache}",
            "--no_progress",
        ],
        "repair": ["verify", cache, "--repair"],
    }


@pytest.mark.parametrize(
    "name",
    [
        "_teachonce",
        "_delta_log",
        *(f"_teachonce/{n}" for n in ("rejects", "runs", "leases", "forgotten", "unscored")),
    ],
)
def test_no_verb_that_writes_follows_a_link(own, made, flags, tmp_path, capsys, name):
    outside, ids = tmp_path / "outside", tmp_path / "ids.txt"
    ids.write_text("user-1\n")
    (tmp_path / "source").symlink_to(made)
    place = own / name
    shutil.move(place, outside) if place.exists() else outside.mkdir()
    for number in range(2):
        (outside / f"{new_run()}{number}").write_bytes(b"1\n")
    place.symlink_to(outside)
    before, inside = state(outside), {path.name for path in own.rglob("*")}
    for verb, arguments in verbs(own, flags, ids).items():
        if verb != "thin" or name in ("_teachonce", "_delta_log"):  # else it reads nothing there
            status, out, err = told(capsys, *arguments)
            assert state(outside) == before, verb
            statuses = (1, 2) if verb == "thin into" else (1,)
            assert (status in statuses, out, err.count("\n")) == (True, "", 1), (verb, err)
            # A cache of another policy is refused as that, before anything is written into it.
            assert "symbolic link" in err or verb == "thin into", (verb, err)
    assert {path.name for path in own.rglob("*")} == inside


def test_a_new_cache_beside_a_link(flags, tmp_path, capsys):
    outside = tmp_path / "outside"
    for name, target in (("_teachonce", outside), ("_delta_log", outside), ("_teachonce", tmp_path / "none")):
        cache = tmp_path / f"{name}-{target.name}"
        cache.mkdir()
        outside.mkdir(exist_ok=True)
        (cache / name).symlink_to(target)
        status, _, err = told(capsys, "precompute", *flags, f"--cache={cache}")
        assert (status, err.count("\n"), "symbolic link" in err) == (1, 1, True), err
        assert list(outside.iterdir()) == []
        assert [path.name for path in cache.iterdir() if path.name != "_teachonce"] in ([], ["_delta_log"])


def test_an_orphan_that_is_a_link_is_not_adopted(own, flags, tmp_path, capsys):
    shard = Cache.open(own).shards[0].name
    orphan = own / f"{'0' * 32}-{shard[33:]}"
    shutil.copy(own / shard, tmp_path / "outside")
    orphan.symlink_to(tmp_path / "outside")
    for arguments in verbs(own, flags, tmp_path / "ids.txt").values():
        if arguments[0] in ("precompute", "forget"):
            (tmp_path / "ids.txt").write_text("user-1\n")
            status, _, err = told(capsys, *arguments)
            assert (status, err.count("\n"), "symbolic link" in err) == (1, 1, True), err
    assert orphan.is_symlink()
    assert (tmp_path / "outside").exists()


@contextlib.contextmanager
def limited(kind, value):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_a_limit_on_the_size_of_files_is_one_line(flags, own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be cut
    ids = tmp_path / "ids.txt"
    ids.write_text("user-1\n")
    calls = {
        "precompute": ["precompute", *flags, f"--cache={tmp_path / 'new'}"],
        "forget": ["forget", own, "--ids", ids, "--no_progress"],
        "thin": ["thin", own, "--keep=threshold:1/8", f"--out={tmp_path / 'thin'}", "--no_progress"],
    }
    for verb, arguments in calls.items():
        with limited(resource.RLIMIT_FSIZE, 2_000):
            status, _, err = told(capsys, *arguments)
        assert (status, err.count("\n")) == (1, 1), (verb, err)
        assert "`ulimit -f`" in err, (verb, err)
    assert teachonce.main(["forget", str(own), "--ids", str(ids), "--no_progress"]) == 0
    assert Cache.open(own).verify().examples


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file/cache", "file"),
        ("/proc/cache", "folder"),
        ("n" * 300, "shorter path"),
        ("/dev/full/cache", "file"),
    ],
)
def test_places_where_nothing_can_be_written(flags, tmp_path, monkeypatch, capsys, place, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    status, _, err = told(capsys, "precompute", *flags, f"--cache={place}")
    assert (status in (1, 2), err.count("\n"), words in err) == (True, 1, True), err


def test_names_are_those_that_the_writers_give(made):
    assert strangers(Cache.open(made).storage) == []
    assert os.listdir(made / "_teachonce" / "rejects")
