"""An export that is killed goes on, and its folder says whether it is complete."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import teachonce
from schemas import Cache
from schemas.upkeep.export_folder import MARK
from tests.synthetic import make_cache

KILLED_IN = """
import os, signal, sys
import pyarrow.parquet as pq
import teachonce
import schemas.cli.export
number = int(sys.argv[1])
calls = 0
def dying(call):
    def wrapped(*a, **k):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*a, **k)
    return wrapped
os.open, os.rename, os.fsync, os.link = map(dying, (os.open, os.rename, os.fsync, os.link))
os.mkdir, pq.ParquetWriter.close = dying(os.mkdir), dying(pq.ParquetWriter.close)
status = teachonce.main(["export", sys.argv[2], "--out", sys.argv[3]])
print("calls", calls)
sys.exit(status)
"""


def process(arguments):
    root = Path(teachonce.__file__).parent
    return subprocess.run(arguments, check=False, capture_output=True, text=True, cwd=root)


def mark_of(folder):
    return json.loads((folder / MARK).read_text())


def exported(capsys, cache, out, *flags):
    status = teachonce.main(["export", str(cache), "--out", str(out), *flags])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A cache of five shards, and its export that nothing disturbed."""
    folder = tmp_path_factory.mktemp("export")
    cache = make_cache(folder / "cache", num_rows=40, num_shards=5)
    assert teachonce.main(["export", cache.storage.root, "--out", str(folder / "plain")]) == 0
    return Path(cache.storage.root), folder / "plain"


def tables(folder):
    return {path.name: pq.read_table(path) for path in folder.glob("*.parquet")}


def test_a_complete_export_says_so(source, capsys):
    cache, plain = source
    mark = mark_of(plain)
    assert (mark["complete"], mark["asked"]["version"]) == (True, 0)
    assert {name: found["bytes"] for name, found in mark["files"].items()} == {
        path.name: path.stat().st_size for path in plain.glob("*.parquet")
    }
    assert sum(found["examples"] for found in mark["files"].values()) == Cache.open(cache).totals.examples
    before = {path.name: path.stat().st_mtime_ns for path in plain.iterdir() if path.name != MARK}
    status, out, _ = exported(capsys, cache, plain)
    assert (status, "5 files (5 of them were there)" in out) == (0, True)
    assert before == {path.name: path.stat().st_mtime_ns for path in plain.iterdir() if path.name != MARK}


@pytest.mark.parametrize("number", [36, 56, 76])
def test_killed_at_any_instant_it_goes_on(source, tmp_path, capsys, number):
    cache, plain = source
    out = tmp_path / "plain"
    arguments = [sys.executable, "-c", KILLED_IN, str(number), str(cache), str(out)]
    killed = process(arguments)
    assert killed.returncode == -signal.SIGKILL, (killed.stdout, killed.stderr)
    assert not out.exists() or not (out / MARK).exists() or not mark_of(out)["complete"]
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    for path in out.glob("*.parquet"):
        pq.read_table(path)
    assert exported(capsys, cache, out)[0] == 0
    assert mark_of(out)["complete"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in plain.iterdir())
    assert all((out / name).stat().st_mtime_ns == at for name, at in finished.items())
    assert all(table.equals(tables(plain)[name]) for name, table in tables(out).items())


def test_a_file_that_is_not_whole_is_written_again(source, tmp_path, capsys):
    cache, plain = source
    out = tmp_path / "plain"
    assert exported(capsys, cache, out)[0] == 0
    one, two, three, *_ = sorted(out.glob("*.parquet"))
    one.write_bytes(one.read_bytes()[:100])
    two.unlink()
    pq.write_table(pq.read_table(three).slice(1), three)
    status, told, _ = exported(capsys, cache, out)
    assert (status, "(2 of them were there)" in told) == (0, True)
    assert all(table.equals(tables(plain)[name]) for name, table in tables(out).items())


def test_another_export_is_refused_and_overwritten_when_asked(source, tmp_path, capsys):
    cache, _ = source
    out = tmp_path / "plain"
    assert exported(capsys, cache, out, "--columns", "ids")[0] == 0
    status, _, err = exported(capsys, cache, out, "--columns", "ids,input_ids")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds a whole export of something else" in err
    assert "expected columns ['ids', 'input_ids'], got columns ['ids']. Say --overwrite" in err
    assert exported(capsys, cache, out, "--columns", "ids,input_ids", "--overwrite")[0] == 0
    assert {tuple(table.column_names) for table in tables(out).values()} == {("ids", "input_ids")}
    (out / "mine.txt").write_text("mine")
    status, _, err = exported(capsys, cache, out, "--overwrite")
    assert (status, "mine.txt" in err) == (2, True)
    assert len(tables(out)) == 5


def test_files_of_an_export_without_a_mark_are_kept_unless_overwritten(source, tmp_path, capsys):
    cache, _ = source
    out = tmp_path / "plain"
    assert exported(capsys, cache, out)[0] == 0
    (out / MARK).unlink()
    assert exported(capsys, cache, out)[0] == 2
    assert exported(capsys, cache, out, "--overwrite")[0] == 0
    assert mark_of(out)["complete"]


@pytest.mark.parametrize("which", ["file", "mark", "dangling"])
def test_a_link_in_the_folder_is_not_followed(source, tmp_path, capsys, which):
    cache, _ = source
    out, theirs = tmp_path / "plain", tmp_path / "theirs"
    assert exported(capsys, cache, out)[0] == 0
    theirs.write_bytes(b"theirs")
    place = out / MARK if which == "mark" else next(out.glob("*.parquet"))
    place.unlink()
    place.symlink_to(theirs if which != "dangling" else tmp_path / "gone")
    for flags in ((), ("--overwrite",)):
        status, _, err = exported(capsys, cache, out, *flags)
        assert (status, err.count("\n")) != (0, 0)
        assert "symbolic link" in err
    assert theirs.read_bytes() == b"theirs"
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("limit", "words"),
    [("ulimit -f 4", "`ulimit -f`"), ("ulimit -n 14", "`ulimit -n`")],
)
def test_limits_of_the_shell_are_one_line(source, tmp_path, limit, words):
    cache, _ = source
    call = f'{limit}; exec "$0" -m teachonce export "$1" --out "$2"'
    arguments = ["bash", "-c", call, sys.executable, str(cache), str(tmp_path / "plain")]
    done = process(arguments)
    assert done.returncode in (1, 2), done.stderr
    assert (done.stderr.count("\n"), words in done.stderr) == (1, True), done.stderr


def test_a_limit_cuts_no_bytecode_that_later_starts_would_read(source, tmp_path):
    """Of verbs that nobody has run yet: Python writes it without noticing where the limit cuts it."""
    root = Path(teachonce.__file__).parent
    for package in ("schemas", "pipelines", "trainer"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "teachonce.py", tmp_path)
    call = 'ulimit -f 4; exec "$0" -m teachonce export "$1" --out "$2"'
    arguments = [sys.executable, str(source[0]), str(tmp_path / "plain")]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    run = functools.partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run([sys.executable, "-m", "teachonce", "--help"], check=False).returncode == 0
    assert run(["bash", "-c", call, *arguments], check=False).returncode in (1, 2)
    again = run(
        [sys.executable, "-m", "teachonce", "export", arguments[1], "--out", arguments[2]], check=False
    )
    assert again.returncode == 0, again.stderr
    assert list(tmp_path.glob("schemas/cli/__pycache__/export*.pyc"))
