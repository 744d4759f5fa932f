"""`--json` of the verbs that end with one object: there is one too where they failed, or were stopped."""

import json
import os
import signal

import pytest

import teachonce
from pipelines.scoring import handler
from tests import every_verb
from tests.pipelines import models
from tests.pipelines.helpers import documents, write_jsonl
from tests.test_process import killed_when
from trainer.checkpoints.signals import Stopped
from trainer.cli import commands


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    models.causal_teacher(folder / "teacher")
    write_jsonl(folder / "corpus.jsonl", documents(8))
    write_jsonl(folder / "blank.jsonl", [{"text": "a text"}, {"text": " "}])
    return folder


RUN = "--corpus corpus.jsonl --teacher ./teacher --task causal-lm --cache cache --max_length 24 --no_progress"
CALLS = {
    "precompute, a wrong flag": (f"precompute {RUN} --max_length 0 --json", 2, "expected a whole number"),
    "precompute, rejects": (f"precompute {RUN} --corpus blank.jsonl --json", 3, "are rejected"),
    "plan, no teacher": (f"plan {RUN} --teacher ./nowhere --json", 2, "no such folder"),
    "train, no cache": (
        "train --cache ./nowhere --student s.json --output_dir o --json",
        2,
        "no cache is there",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_failure_is_one_object(place, monkeypatch, capsys, name):
    line, status, words = CALLS[name]
    monkeypatch.chdir(place)
    assert teachonce.main(line.split()) == status
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["outcome"], told["status"]) == ("failed", status)
    assert words in told["reason"]
    assert err.endswith(f"{told['reason']}\n")


@pytest.mark.parametrize("verb", every_verb.lines("/place"))
def test_every_verb_tells_of_its_failure_in_one_object(tmp_path, monkeypatch, capsys, verb):
    """Nothing is there: no cache, no corpus, no teacher, no student."""
    monkeypatch.chdir(tmp_path)
    status = teachonce.main([*every_verb.lines(tmp_path)[verb], "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status in (1, 2)
    if verb == "verify":
        assert (told["status"], told["broken"]) == ("broken", [])
    else:
        assert (told["outcome"], told["status"]) == ("failed", status)
        assert str(tmp_path) in told["reason"]


def test_a_run_that_is_ended_is_one_object(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    killed_when(monkeypatch, handler.LazyScorer, "_opened")
    assert teachonce.main(f"precompute {RUN} --json".split()) == 143
    assert json.loads(capsys.readouterr().out) == {
        "outcome": "ended",
        "status": 143,
        "reason": "ended by SIGTERM",
    }


def test_a_training_that_is_stopped_is_one_object(place, monkeypatch, capsys):
    def stop(*_):
        raise Stopped(signal.SIGTERM, "stopped by SIGTERM at step 3")

    monkeypatch.chdir(place)
    monkeypatch.setattr(commands, "run_train", stop)
    assert (
        teachonce.main(["train", "--cache", "c", "--student", "s.json", "--output_dir", "o", "--json"]) == 143
    )
    told = json.loads(capsys.readouterr().out)
    assert told == {"outcome": "ended", "status": 143, "reason": "stopped by SIGTERM at step 3"}


def test_nobody_who_did_not_ask_gets_one(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert teachonce.main(f"precompute {RUN} --max_length 0".split()) == 2
    assert teachonce.main(f"precompute {RUN} --max_length 0 -- --json".split()) == 2
    monkeypatch.setitem(os.environ, "RANK", "1")
    assert (
        teachonce.main(
            ["train", "--cache", "./nowhere", "--student", "s.json", "--output_dir", "o", "--json"]
        )
        == 2
    )
    assert capsys.readouterr().out == ""
