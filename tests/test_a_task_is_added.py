"""A task is added by one value and one entry a side: nothing else of the project is touched, and all verbs know it."""

from dataclasses import replace

import numpy as np
import pytest

import schemas.spec
from pipelines.tasks.causal_lm import NextTokens
from pipelines.tasks.tasks import TEACHER_TASKS
from schemas import Cache
from schemas.task import TaskColumn
from schemas.tasks import TASKS
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents, write_jsonl
from trainer.tasks.tasks import STUDENT_TASKS

NAME = "last-token-lm"


class LastTokens(NextTokens):
    """Only each window's last token is predicted; how long the window was is a column."""

    def windows(self, tokens):
        found = super().windows(tokens)
        return [one._replace(positions=one.positions[-1:], columns=(len(one.tokens),)) for one in found]


@pytest.fixture
def _added(monkeypatch):
    columns = (TaskColumn("window_tokens", 1, 999),)
    task = replace(TASKS["causal-lm"], name=NAME, is_declared=True, columns=columns)
    teacher = replace(TEACHER_TASKS["causal-lm"], inputs=lambda tokenizer, spec: LastTokens(spec))
    monkeypatch.setitem(TASKS, NAME, task)
    monkeypatch.setitem(TEACHER_TASKS, NAME, teacher)
    monkeypatch.setitem(STUDENT_TASKS, NAME, STUDENT_TASKS["causal-lm"])
    known = schemas.spec.KNOWN_FEATURES | {f"task:{NAME}"}
    monkeypatch.setattr(schemas.spec, "KNOWN_FEATURES", known)


@pytest.mark.usefixtures("_added")
def test_every_verb_knows_it(tmp_path):
    teacher, cache = models.causal_teacher(tmp_path / "t"), tmp_path / "cache"
    corpus = write_jsonl(tmp_path / "c.jsonl", documents(40))
    run = ("--corpus", corpus, "--teacher", teacher, "--task", NAME, "--cache", cache, "--max_length", "24")
    student, quiet = tmp_path / "s", "--no_progress"
    shrunk = ("--student", "shrink:layers=1", "--teacher", teacher, "--output_dir", student)
    small = ("--max_steps", "3", "--use_cpu", "--eval_fraction", "0.3")
    for verb in (
        ("precompute", *run, quiet),
        ("precompute", *run, quiet),
        ("plan", *run),
        ("inspect", cache, "--rows", "1"),
        ("verify", cache, "--teacher", teacher),
        ("compact", cache, quiet),
        ("thin", cache, "--out", tmp_path / "thin", "--keep", "threshold:1/8", quiet),
        ("export", tmp_path / "thin", "--out", tmp_path / "plain"),
        ("train", "--cache", cache, *shrunk, *small),
        ("evaluate", "--cache", cache, "--student", student, "--speed_seconds", "0"),
    ):
        status, said = teachonce_main(*verb)
        assert status == 0, (verb, said)
    opened = Cache.open(cache)
    assert opened.header.to_json()["required_features"][-1] == f"task:{NAME}"
    rows = [*opened.read_all()]
    assert all((np.diff(part.position_offsets) == 1).all() for part in rows)
    assert all((part.array("window_tokens") == part.input_ids.lengths).all() for part in rows)
