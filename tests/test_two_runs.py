"""Runs that know of each other: what a lease tells, what the loser of two says, and what is neither new nor known."""

import json
import os
import subprocess
import sys

import teachonce
from schemas.storage.storage import Storage
from schemas.versions import history
from schemas.versions.history import living_runs, told_of
from tests.pipelines.helpers import documents, write_jsonl
from tests.pipelines.job.test_faults import runs_meanwhile
from tests.test_process import corpus, flags, report, teacher, told

__all__ = ["corpus", "flags", "report", "teacher"]


def test_a_run_that_lives_is_told_at_the_start_with_its_age_and_place(capsys, tmp_path, flags):
    storage = Storage.at(tmp_path / "cache")
    history.take_lease(storage, history.new_run())
    status, _, err = told(capsys, "precompute", *flags)
    assert (status, err.count("\n")) == (0, 1)
    assert "another run lives in" in err
    assert f"by process {os.getpid()} on host " in err
    assert "begun 0 min" in err
    assert "last sign of life 0 min" in err


def test_a_lease_tells_what_is_known_of_it_and_nothing_that_a_terminal_obeys(tmp_path):
    storage = Storage.at(tmp_path)
    storage.put("_teachonce/leases/old", b"100\n")
    assert history.dead_runs(storage) == []  # no name that a run bears: told, and never deleted
    assert told_of(storage, ["old"]).startswith("old (last sign of life ")
    history.take_lease(storage, "thin-20260101T000000Z-abcdef12")
    text = told_of(storage, living_runs(storage))
    assert text.startswith("thin-20260101T000000Z-abcdef12 (begun ")
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    holder = {"host": f"{history.socket.gethostname()}", "process": done.pid}
    storage.put("_teachonce/holders/old", json.dumps(holder).encode())
    assert told_of(storage, ["old"]).endswith(
        f"by process {done.pid} on host {holder['host']}, which is gone)"
    )
    storage.put("_teachonce/holders/old", json.dumps({"host": "\x1b]52;c;x\x07", "process": 1}).encode())
    assert "\x1b" not in told_of(storage, ["old\x1b[2J"]) + told_of(storage, ["old"])
    storage.put("_teachonce/holders/old", b"no JSON")
    assert "process" not in told_of(storage, ["old"])


def test_the_run_that_is_overtaken_says_what_it_scored_and_what_was_adopted(
    capsys, tmp_path, flags, corpus, monkeypatch, report
):
    more = write_jsonl(tmp_path / "more.jsonl", documents(20))
    other = [*flags, f"--corpus={corpus}"]
    runs_meanwhile(monkeypatch, lambda: teachonce.main(["precompute", *other]))
    status, out, err = told(capsys, "precompute", *flags, f"--corpus={more}", f"--report={report}")
    value = json.loads(report.read_text())
    assert (status, value["overtaken"], value["committed"], value["version"]) == (0, True, True, 1)
    assert value["overtaken_examples"] > value["adopted_examples"] > 0 == value["totals"]["tokens"]
    mine = out.replace("\n", " ")
    assert (
        f"overtaken: another run committed first, when this one had scored {value['overtaken_examples']:,}"
        in mine
    )
    assert f"{value['adopted_examples']:,} of them were adopted" in mine
    assert "nothing new" not in mine
    assert "another run lives in" in err, "the other run was told of this one"
    runs = [json.loads(path.read_text()) for path in (tmp_path / "cache/_teachonce/runs").glob("*.json")]
    lost = next(run for run in runs if run["totals"]["tokens"] == value["overtaken_tokens"])
    assert (lost["committed"], lost["overtaken"]) == (False, True)


def test_nothing_new_says_what_was_neither_new_nor_known(capsys, tmp_path, flags):
    records = [*documents(8), *[{"text": ""}] * 10]
    mixed = write_jsonl(tmp_path / "mixed.jsonl", records)
    tolerant = [*flags, f"--corpus={mixed}", "--max_reject_fraction=1"]
    assert told(capsys, "precompute", *tolerant)[0] == 0
    _, out, _ = told(capsys, "precompute", *tolerant)
    assert "nothing new: of 18 documents 8 known, 10 rejected; the teacher" in out.replace("\n", " ")
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    _, out, _ = told(capsys, "precompute", *flags, f"--corpus={empty}")
    assert "nothing new: the corpus holds no documents" in out.replace("\n", " ")
