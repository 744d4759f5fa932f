"""Progress and the closing table: plain for logs, one changing line for a terminal, true in both."""

import contextlib
import io
import os
import re
import select
import time
import tty
from dataclasses import replace

import pytest
from rich.console import Console

import teachonce
from pipelines import progress
from pipelines.cli.run_tables import summary_lines, summary_table
from pipelines.progress import PROGRESS, SHARDS, Progress, Shards, shown
from schemas import Cache
from tests.pipelines.helpers import run
from tests.pipelines.people import document_of

INF = float("inf")


@contextlib.contextmanager
def screen(tmp_path, *, terminal):
    """A real stream, of a pseudo-terminal or of a file, and a function that tells all that was written to it."""
    if not terminal:
        file = tmp_path / "log"
        with file.open("w") as stream:
            yield stream, file.read_text
        return
    master, slave = os.openpty()
    tty.setraw(slave)
    with os.fdopen(master, "rb", buffering=0) as shown_to_people, os.fdopen(slave, "w") as stream:
        yield stream, lambda: b"".join(_until_silence(shown_to_people)).decode()


def _until_silence(stream):
    """What a terminal has to say; it may come in pieces."""
    while select.select([stream], [], [], 1.0)[0]:
        yield stream.read(2**16)


def test_a_line_tells_what_how_much_how_fast_and_how_long(monkeypatch):
    state = Progress()
    state.add(documents=1200, tokens_found=90_000)
    assert state.line() == "reading: 1,200 documents, 90,000 new tokens"
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
    state.start_teacher()
    assert state.line() == "teacher: 0 examples, 0 of 90,000 tokens (0%), 0 tokens/s, unknown time left"
    monkeypatch.setattr(progress.time, "monotonic", lambda: 110.0)
    state.start_teacher()
    state.add(examples=10, tokens=30_000)
    assert state.line() == "teacher: 10 examples, 30,000 of 90,000 tokens (33%), 3,000 tokens/s, 0:20 left"
    state.add(examples=20, tokens=59_900)
    assert "(99%)" in state.line(), "nothing is done before its time"
    state.add(examples=1, tokens=100)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 130.0)
    told = "teacher: all of 90,000 tokens scored; encoding, sealing and committing the last shards (for 0:20)"
    assert state.line() == told
    state.start_commit()
    assert state.line() == "committing: 1,200 documents read, 90,000 tokens scored"
    state.reset()
    assert state.line() == "reading: 0 documents, 0 new tokens"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00"),
        (59.6, "1:00"),
        (61.0, "1:01"),
        (3600.0, "1:00:00"),
        (7325.0, "2:02:05"),
        (INF, "unknown time"),
    ],
)
def test_a_duration_is_read_at_a_glance(seconds, text):
    assert progress._duration(seconds) == text


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_are_rewritten_on_a_terminal_and_plain_elsewhere(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr("schemas.cli.progress._TERMINAL_SECONDS", 0.01)
    monkeypatch.setattr("schemas.cli.progress._PLAIN_SECONDS", 0.01)
    with screen(tmp_path, terminal=terminal) as (stream, told):
        with shown(True, stream):
            for _ in range(3):
                PROGRESS.add(documents=1)
                time.sleep(0.05)
        written = told()
    assert "reading: 1 documents" in written
    if terminal:
        assert "\n" not in written
        assert written.endswith("\r\x1b[K"), "the line is gone when the table comes"
        return
    assert "\r" not in written
    assert "\x1b" not in written
    assert len(written.splitlines()) == len(set(written.splitlines())), (
        "a line that did not change stays unsaid"
    )


def test_nothing_is_shown_where_nothing_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr("schemas.cli.progress._PLAIN_SECONDS", 0.01)
    with screen(tmp_path, terminal=False) as (stream, told):
        with shown(False, stream):
            time.sleep(0.03)
        assert told() == ""


def test_a_block_that_fails_stops_the_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("schemas.cli.progress._PLAIN_SECONDS", 0.01)
    with screen(tmp_path, terminal=False) as (stream, told):
        with pytest.raises(KeyError), shown(True, stream):
            raise KeyError
        length = len(told())
        PROGRESS.add(documents=5)
        time.sleep(0.05)
        assert len(told()) == length


def test_a_run_ends_at_all_of_its_tokens(tmp_path, corpus, teacher, whole):
    run(corpus, teacher, tmp_path / "c")
    totals = whole[1].totals
    assert (PROGRESS.documents, PROGRESS.examples) == (24, totals.examples)
    assert PROGRESS.tokens == PROGRESS.tokens_found == totals.tokens
    assert PROGRESS.line() == f"committing: 24 documents read, {totals.tokens:,} tokens scored"


def test_shards_are_looked_at_and_then_finished():
    state = Shards()
    state.expect("thin", sources=1200, units=3)
    state.add(seen=600)
    assert state.line() == "thin: 600 of 1,200 shards looked at (50%)"
    state.add(seen=600)
    assert state.line() == "thin: all of 1,200 shards looked at; writing"
    state.add(finished=1)
    assert state.line() == "thin: 1 of 3 shards finished (33%)"
    state.expect("forget", sources=0)
    assert state.line() == "forget: 0 of 0 shards looked at (0%)"


def test_the_verbs_without_a_teacher_tell_how_far_they_are(nights, tmp_path, capfd, monkeypatch):
    """Each in the same words, on stderr alone, and to its end; `--no_progress` leaves the lines out."""
    monkeypatch.setattr("schemas.cli.progress._PLAIN_SECONDS", 0.001)
    cache, out, ids = str(nights[0]), str(tmp_path / "out"), tmp_path / "ids.txt"
    ids.write_text(document_of(cache, "user-9")[0].hex() + "\n")
    count = len(Cache.open(cache).shards)
    assert count > 2
    for call, last in (
        (
            ["thin", cache, "--keep=top_k:3", f"--out={out}"],
            f"thin: all of {count} shards finished; committing",
        ),
        (["compact", cache], "compact: all of 1 shards finished; committing"),
        (["forget", cache, f"--ids={ids}"], f"forget: all of {count + 1} shards looked at; committing"),
    ):
        assert teachonce.main(call) == 0
        told = capfd.readouterr()
        times, lines = zip(*(line.split(" ", 1) for line in told.err.splitlines()), strict=True)
        assert all(re.fullmatch(r"[0-9T:+-]{24}", at) for at in times), call
        assert all(line.startswith(f"{call[0]}: ") and " shards " in line for line in lines), lines
        assert SHARDS.line() == last
        assert call[0] + ": " not in told.out
        SHARDS.expect("", sources=0)
    assert teachonce.main(["thin", out, "--keep=top_k:2", f"--out={tmp_path / 'less'}", "--no_progress"]) == 0
    assert capfd.readouterr().err == ""


def table(summary):
    console = Console(file=io.StringIO(), width=200)
    summary_table(summary, "./cache", console)
    return console.file.getvalue()


def test_the_table_tells_a_run(whole):
    summary = replace(whole[1], rejects={"not_json": 1200, "empty": 3})
    text = table(summary)
    assert "nothing new" not in text
    for words in (
        "precompute into ./cache",
        "documents read",
        "1,203",
        "not_json",
        "kept mass",
        "bytes a token",
    ):
        assert words in text
    lines = dict(summary_lines(summary))
    assert lines["examples"] == f"{summary.totals.examples:,}"
    assert lines["kept mass"] == "1.0000"
    assert lines["version"] == "0"


def test_the_table_says_when_nothing_was_new(whole):
    nothing = replace(whole[1], committed=False, version=-1, new_documents=0, totals=type(whole[1].totals)())
    text = table(nothing)
    assert "nothing new: 24 documents, all known" in text
    assert dict(summary_lines(nothing))["version"] == "none"
    assert "tokens" not in dict(summary_lines(nothing))
