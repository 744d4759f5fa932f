"""The command as a process: signals, reports that never lie, errors that nobody foresaw, and terminals of any kind."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import pipelines.job.pipeline
import schemas.versions.history as history
import teachonce
from pipelines.job import run as run_module
from pipelines.scoring import handler
from schemas import Cache
from schemas.storage.storage import Storage
from schemas.versions.history import living_runs
from tests.pipelines import models
from tests.pipelines.helpers import documents, write_jsonl


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return models.causal_teacher(tmp_path_factory.mktemp("process") / "teacher")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("process") / "corpus.jsonl", documents(8))


@pytest.fixture
def flags(tmp_path, teacher, corpus):
    given = {"corpus": corpus, "teacher": teacher, "task": "causal-lm", "cache": tmp_path / "cache"}
    return [f"--{name}={value}" for name, value in (given | {"max_length": 24}).items()] + ["--no_progress"]


@pytest.fixture
def report(tmp_path):
    """A report that says what last night's run did."""
    path = tmp_path / "report.json"
    path.write_text('{"outcome": "done", "status": 0, "committed": true}')
    return path


def told(capsys, *arguments):
    status = teachonce.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def said(report):
    value = json.loads(report.read_text())
    return value["outcome"], value["status"], value["reason"]


def killed_when(monkeypatch, owner, name, number=signal.SIGTERM):
    """The real signal, sent to this process at the next call of a function."""
    honest = getattr(owner, name)

    def kill(*given, **named):
        monkeypatch.setattr(owner, name, honest)
        value = honest(*given, **named)
        os.kill(os.getpid(), number)
        time.sleep(0.1)  # in a thread of its own, until the first thread has seen it
        return value

    monkeypatch.setattr(owner, name, kill)


NUMBERS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_the_teacher_works_frees_the_lease_and_is_reported(
    capsys, tmp_path, flags, report, monkeypatch, number
):
    before = signal.getsignal(number)
    killed_when(monkeypatch, handler.LazyScorer, "_opened", number)
    status, out, err = told(capsys, "precompute", *flags, f"--report={report}")
    name = signal.Signals(number).name
    assert (status, out, err) == (NUMBERS[number], "", f"teachonce precompute: ended by {name}\n")
    assert said(report) == ("ended", NUMBERS[number], f"ended by {name}")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert signal.getsignal(number) is before
    assert told(capsys, "precompute", *flags, f"--report={report}")[0] == 0
    assert said(report) == ("done", 0, None)


def test_the_first_moment_of_a_lease_is_no_moment_too_early(capsys, tmp_path, flags, monkeypatch):
    killed_when(monkeypatch, run_module, "take_lease")
    assert told(capsys, "precompute", *flags)[0] == 143
    assert living_runs(Storage.at(tmp_path / "cache")) == []


@pytest.fixture
def two_nights(capsys, tmp_path, flags, corpus):
    """A cache of two shards."""
    assert told(capsys, "precompute", *flags)[0] == 0
    more = write_jsonl(tmp_path / "more.jsonl", documents(9))
    assert told(capsys, "precompute", *flags, f"--corpus={more}")[0] == 0
    return tmp_path / "cache"


def test_every_holder_of_a_lease_gives_it_back(capsys, tmp_path, two_nights, monkeypatch):
    ids = tmp_path / "ids.txt"
    ids.write_text("0" * 32 + "\n")
    for verb in (
        ["compact", two_nights],
        ["forget", two_nights, "--ids", ids],
        ["thin", two_nights, "--keep=threshold:1/8", f"--out={tmp_path / 'small'}"],
        ["verify", two_nights, "--repair"],
    ):
        killed_when(monkeypatch, history, "take_lease")
        assert told(capsys, *verb)[0] == 143, verb
        for cache in (two_nights, tmp_path / "small"):
            assert living_runs(Storage.at(cache)) == [], verb
            assert [*cache.glob("_teachonce/holders/*")] == [], verb
    assert Cache.open(two_nights).verify().examples > 0


def test_a_signal_that_is_ignored_stays_ignored(capsys, flags, monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        killed_when(monkeypatch, handler.LazyScorer, "_opened", signal.SIGHUP)
        assert told(capsys, "precompute", *flags)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def fail_with(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pipelines.cli.precompute.run_precompute", fail)


UNFORESEEN = {
    "full": (OSError(28, "No space left on device", "/disk/x"), "the system refuses: /disk/x: No space left"),
    "memory": (MemoryError(), "out of memory"),
    "depth": (RecursionError("maximum recursion depth exceeded"), "is nested too deeply"),
    "reader": (BrokenPipeError(32, "Broken pipe"), "nobody reads the output any more"),
    "bug": (
        AttributeError("no attribute 'x'\nand more"),
        "AttributeError: no attribute 'x' and more. Run again",
    ),
}


@pytest.mark.parametrize("name", UNFORESEEN)
def test_what_nobody_foresaw_is_one_line_and_is_reported(capsys, flags, report, monkeypatch, name):
    error, words = UNFORESEEN[name]
    fail_with(monkeypatch, error)
    status, out, err = told(capsys, "precompute", *flags, f"--report={report}")
    assert (status, out, err.count("\n"), words in err) == (1, "", 1, True), err
    outcome, status, reason = said(report)
    assert (outcome, status, words in reason) == ("failed", 1, True)
    with pytest.raises(type(error)):
        teachonce.main(["precompute", *flags, f"--report={report}", "--traceback"])


BAD = {
    "a value": (["--max_length=0"], 2, "expected a whole number from 1"),
    "no such flag": (["--no_such_flag"], 2, "--no_such_flag"),
    "a missing flag": ([], 2, "required"),
    "a teacher": (["--teacher=./nothing-here"], 2, "no such folder"),
    "two reports": (["--report=other.json", "--stride=24"], 2, "leaves no room"),
    "rejects": (["--max_document_chars=3"], 3, "are rejected"),
}


@pytest.mark.parametrize("verb", ["precompute", "plan"])
@pytest.mark.parametrize("name", BAD)
def test_a_run_that_fails_says_so_in_its_report(capsys, flags, report, verb, name):
    more, status, words = BAD[name]
    if (verb, name) == ("plan", "rejects"):
        pytest.skip("a plan tells of rejects, and does not fail")
    given = flags if name != "a missing flag" else []
    assert told(capsys, verb, *given, *more, "--report", report)[0] == status
    outcome, found, reason = said(report)
    assert (outcome, found, words in reason) == ("failed", status, True), reason


def test_a_half_that_is_not_installed_is_reported(capsys, flags, report, monkeypatch):
    def missing(_):
        raise ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam")

    monkeypatch.setattr(teachonce.importlib, "import_module", missing)
    assert told(capsys, "precompute", *flags, f"--report={report}")[0] == 2
    assert said(report)[:2] == ("failed", 2)


def test_a_report_says_while_the_run_lives_that_it_does(capsys, flags, report, monkeypatch):
    seen, finish = [], pipelines.job.pipeline.finish
    monkeypatch.setattr(pipelines.job.pipeline, "finish", lambda *a: seen.append(said(report)) or finish(*a))
    assert told(capsys, "precompute", *flags, f"--report={report}")[0] == 0
    assert seen == [("running", None, None)]
    value = json.loads(report.read_text())
    assert (value["outcome"], value["documents"], value["process"]) == ("done", 8, os.getpid())
    assert told(capsys, "precompute", *flags, f"--report={report}")[0] == 0
    assert said(report) == ("nothing new", 0, None)


def test_help_leaves_a_report_alone(capsys, flags, report):
    before = report.read_text()
    with pytest.raises(SystemExit):
        teachonce.main(["precompute", f"--report={report}", "--help"])
    assert report.read_text() == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "nowhere"])
def test_a_report_that_is_no_file_is_refused_at_once(capsys, tmp_path, flags, kind):
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    if kind == "pipe":
        os.mkfifo(place)
    where = place if kind != "nowhere" else place / "report.json"
    status, out, err = told(capsys, "precompute", *flags, f"--report={where}")
    assert (status, out, err.count("\n"), "--report" in err) == (2, "", 1, True)


def test_a_link_to_a_report_stays_one(capsys, tmp_path, flags, report):
    link = tmp_path / "latest.json"
    link.symlink_to(report)
    assert told(capsys, "precompute", *flags, "--max_length=0", f"--report={link}")[0] == 2
    assert (link.is_symlink(), said(report)[0]) == (True, "failed")


def test_a_terminal_without_most_letters_gets_escapes(flags, tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    cache = tmp_path / "caché"
    assert teachonce.main(["precompute", *flags, f"--cache={cache}"]) == 0
    assert teachonce.main(["inspect", str(cache), "--rows=1"]) == 0
    assert teachonce.main(["inspect", str(tmp_path / "né")]) == 2
    sys.stderr.flush()
    assert b"cach\\xe9" in sys.stdout.buffer.getvalue()
    assert b"n\\xe9" in sys.stderr.buffer.getvalue()


def test_a_stdout_that_is_closed_or_full_is_one_line(flags, monkeypatch, capsys, tmp_path):
    assert told(capsys, "precompute", *flags)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert teachonce.main(["verify", str(tmp_path / "cache"), "--json"]) == 0
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        assert teachonce.main(["verify", str(tmp_path / "cache"), "--json"]) == 1
    assert capsys.readouterr().err == (
        "teachonce verify: the system refuses: No space left on device. Free some space, or choose another disk\n"
    )


TWICE = {
    "a verb that tidies up": """
with ended_by_signals():
    try:
        os.kill(os.getpid(), signal.{0})
    finally:
        os.kill(os.getpid(), signal.{0})
""",
    "a training whose step is not yet done": """
with watched() as signals, signals.waiting():
    os.kill(os.getpid(), signal.{0})
    print("remembered", flush=True)
    os.kill(os.getpid(), signal.{0})
""",
}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("held_up", TWICE)
def test_a_second_signal_ends_at_once(held_up, name):
    """By the signal itself, whatever still wanted to be done."""
    code = "import os, signal\nfrom schemas.cli.process import ended_by_signals\n"
    code += "from trainer.checkpoints.signals import watched\n" * ("watched" in TWICE[held_up])
    code += TWICE[held_up].format(name) + "\nprint('went on')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == -getattr(signal, name)
    assert "went on" not in done.stdout
    assert done.stdout == ("remembered\n" if "watched" in TWICE[held_up] else "")
