"""What the commands say of a cache that is broken, strange, or somebody else's: one line, and a status."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import teachonce
from schemas import Cache
from schemas.errors import BrokenShardsError, CorruptionError, NoCacheError
from schemas.shards.rewrite import seal_rows
from schemas.storage.storage import Storage
from schemas.versions.header import create_header, read_header
from schemas.versions.memory import Unscored, read_memory, write_unscored
from tests.schemas.shards.test_hostile import changed, header_saying, put
from tests.synthetic import TOKENIZER_FILES, add, begin, causal_spec, header_of, make_cache, random_rows

READERS = (["verify"], ["inspect"], ["inspect", "--rows", "2"], ["export", "--out"])


def said(capsys, *arguments):
    """Status, output and the one line of an error."""
    status = teachonce.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1, err
    return status, out, err


def reads(capsys, path, tmp_path):
    """What each verb that reads says: status and line."""
    for number, (verb, *more) in enumerate(READERS):
        extra = [*more, tmp_path / f"out{number}"] if verb == "export" else more
        status, _, err = said(capsys, verb, path, *extra)
        yield verb, status, err


def test_verify_names_every_broken_shard(tmp_path, capsys):
    cache = make_cache(tmp_path / "c", num_rows=24, num_shards=4)
    for shard in cache.shards[:3]:
        (tmp_path / "c" / shard.name).write_bytes(b"no shard at all")
    status, out, err = said(capsys, "verify", tmp_path / "c", "--json")
    found = json.loads(out)
    assert (status, found["status"]) == (1, "broken")
    assert [one["shard"] for one in found["broken"]] == [shard.name for shard in cache.shards[:3]]
    assert all(one["what"] for one in found["broken"])
    assert "3 of 4 shards are broken" in err
    status, out, err = said(capsys, "verify", tmp_path / "c")
    assert status == 1
    assert [shard.name in out for shard in cache.shards] == [True, True, True, False]
    with pytest.raises(BrokenShardsError) as caught:
        Cache.open(tmp_path / "c").verify()
    kind, arguments, state = caught.value.__reduce__()
    again = kind(*arguments)
    again.__dict__.update(state)
    assert again.faults == caught.value.faults


def test_verify_says_how_many_more(tmp_path, capsys):
    cache = make_cache(tmp_path / "c", num_rows=25, num_shards=25)
    for shard in cache.shards:
        (tmp_path / "c" / shard.name).unlink()
    status, out, _ = said(capsys, "verify", tmp_path / "c")
    assert (status, out.count("broken: ")) == (1, 20)
    assert "5 more" in out


def test_verify_json_of_a_whole_cache_and_of_a_broken_log(tmp_path, capsys):
    make_cache(tmp_path / "c")
    status, out, _ = said(capsys, "verify", tmp_path / "c", "--json")
    assert (status, json.loads(out)["status"], json.loads(out)["broken"]) == (0, "whole", [])
    (tmp_path / "c" / "_delta_log" / f"{0:020d}.json").write_text("{}")
    status, out, _ = said(capsys, "verify", tmp_path / "c", "--json")
    assert (status, json.loads(out)["status"], json.loads(out)["broken"]) == (1, "broken", [])


def test_a_lost_spec_is_told_as_that(tmp_path, capsys):
    path = tmp_path / "c"
    make_cache(path)
    spec = (path / "_teachonce" / "spec.json").read_bytes()
    (path / "_teachonce" / "spec.json").unlink()
    for verb, status, err in reads(capsys, path, tmp_path):
        assert (status, "spec.json is lost" in err) == (1, True), verb
        assert "make one with" not in err
        assert "Restore it from a copy" in err
    with pytest.raises(CorruptionError, match="lost"):
        create_header(Storage.at(path), header_of(causal_spec()), TOKENIZER_FILES)
    assert not (path / "_teachonce" / "spec.json").exists()
    shutil.rmtree(path / "_delta_log")
    with pytest.raises(CorruptionError, match="lost"):
        read_header(Storage.at(path))
    (path / "_teachonce" / "spec.json").write_bytes(spec)


def test_shards_of_a_run_that_never_committed_are_no_cache(tmp_path):
    storage = Storage.at(tmp_path)
    storage.put(f"{'0' * 32}-{'1' * 32}.parquet", b"orphan")
    with pytest.raises(NoCacheError, match="no cache is there"):
        read_header(storage)


@pytest.mark.parametrize(
    "changes", [{"keep": "threshold:1e999999999"}, {"vocab_size": 2**60}, {"max_length": 1e300}]
)
def test_a_strangers_spec(tmp_path, capsys, changes):
    make_cache(tmp_path / "c")
    (tmp_path / "c" / "_teachonce" / "spec.json").write_bytes(header_saying(**changes))
    for verb, status, err in reads(capsys, tmp_path / "c", tmp_path):
        assert (status, "does not know" in err) == (1, True), verb


@pytest.mark.parametrize(
    "name", ["_teachonce/spec.json", f"_delta_log/{0:020d}.json", "_delta_log/_last_checkpoint", "shard"]
)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_not_waited_for(tmp_path, name, make):
    path = tmp_path / "c"
    cache = make_cache(path)
    target = path / (cache.shards[0].name if name == "shard" else name)
    target.unlink(missing_ok=True)
    make(target)
    code = "import sys, teachonce; sys.exit(teachonce.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
    said = f"a {'pipe' if make is os.mkfifo else 'folder'} stands where the cache has a file"
    if make is os.mkdir and name.startswith("_delta_log"):
        said = "the log holds what is no plain file"
    assert f"teachonce verify: {said}: {target}" in done.stderr


def test_a_poisoned_shard_of_an_earlier_release_has_a_way_out(tmp_path, capsys):
    """Its bad row is told, and leaves; the others stay."""
    path = tmp_path / "c"
    rows = random_rows(causal_spec(), 12).rows
    add(begin(path, rows.spec), None, [changed(rows, "window_count", put(5, 0))])
    status, out, err = said(capsys, "verify", path)
    assert (status, "window_index" in out, "--repair" in err) == (1, True, True)
    assert said(capsys, "verify", path, "--repair")[0] == 0
    assert said(capsys, "verify", path)[0] == 0
    cache = Cache.open(path)
    kept = {example for part in cache.read_all() for example in part.example_ids}
    assert kept == {*rows.example_ids} - {rows.example_ids[5]}
    with pytest.raises(CorruptionError):
        seal_rows(changed(rows, "window_count", put(5, 0)), header_of(rows.spec), 100)


def test_the_memory_of_somebody_else(tmp_path):
    storage = begin(tmp_path, causal_spec())
    write_unscored(storage, header_of(causal_spec()), [Unscored(b"u" * 16, 0, 2, "not_finite")])
    read_memory(storage)
    for place, bad in enumerate(
        ([["zz", 0, 1, "x"]], [["00", -1, 1, "x"]], [["00", True, 1, "x"]], [5], {"a": 1})
    ):
        write_raw(storage, {"maker": ["a", "b"], "windows": bad})
        with pytest.raises(CorruptionError, match="not what was written"):
            read_memory(storage)
        for file in Path(storage.root, "_teachonce/unscored").iterdir():
            file.unlink()
        assert place >= 0


def write_raw(storage, value):
    from schemas.versions.memory import UNSCORED_FOLDER, _write

    _write(storage, UNSCORED_FOLDER, value)
