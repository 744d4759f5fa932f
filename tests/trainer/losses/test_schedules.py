"""Weights by step: a pure function of the share of steps taken, the same where a run is resumed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from schemas.cache import Cache
from schemas.errors import UsageError
from tests.trainer.tiny import VOCAB, llama_config
from trainer.batches.collate import Collation
from trainer.losses.objective import Objective
from trainer.losses.schedules import Schedule
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.distiller import Distiller


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("linear:1:0", [1, 0.75, 0.5, 0.25, 0]),
        ("linear:0:2", [0, 0.5, 1, 1.5, 2]),
        ("cosine:1:0", [(1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75, 1)]),
        ("hold:0.5:0.5", [0, 0.5, 1, 0.5, 0]),
        ("hold:0:1", [1, 1, 1, 1, 1]),
        ("hold:0.25:0.75", [0, 1, 1, 1, 0]),
        ("hold:0.5:1", [0, 0.5, 1, 1, 1]),
        ("hold:1:1", [0, 0.25, 0.5, 0.75, 1]),
        ("hold:0:0", [1, 0.75, 0.5, 0.25, 0]),
    ],
)
def test_factors(text: str, factors: list[float]) -> None:
    schedule = Schedule.parse(text)
    assert [schedule.factor(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(factors)
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ("kl=bent:1:0", "bent:1:0"),
        ("kl=linear:1", "linear:1"),
        ("kl=linear:a:b", "two numbers"),
        ("kl=linear:-1:0", "not negative"),
        ("kl=linear:nan:0", "not negative"),
        ("kl=linear:0:0", "from 0 to 0"),
        ("kl=hold:0.9:0.1", "W <= D"),
        ("ce=linear:1:0", "ce has no effect"),
    ],
)
def test_nonsense_is_refused(told: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Objective.parse(["kl=1"], schedules=[told])


def test_a_schedule_is_part_of_a_runs_identity() -> None:
    assert Objective.parse(["kl=1"], schedules=["kl=linear:1:0"]).told == {"kl schedule": "linear:1:0"}


def test_the_loss_goes_by_the_share_of_steps_in_training_alone(causal_cache: Cache) -> None:
    torch.manual_seed(0)
    objective = Objective.parse(
        ["kl=1", "ce=0.5", "feature=2"], schedules=["ce=linear:1:0", "feature=cosine:0:1"]
    )
    features = causal_cache.spec.features
    student = LlamaForCausalLM(llama_config())
    task = STUDENT_TASKS["causal-lm"]
    model = Distiller(student, objective, score="softmax", features=features, teacher_layers=2, task=task)
    rows = causal_cache.read(causal_cache.row_groups[0]).take(np.arange(4))
    batch = Collation(student_vocab=VOCAB, pad_id=0, features=features).batch(rows)
    for progress in (0.0, 0.5, 0.75):
        model.train().progress = progress
        found = model(batch)
        rise = (1 - math.cos(math.pi * progress)) / 2
        expected = found["kl"] + 0.5 * (1 - progress) * found["ce"] + 2 * rise * found["feature"]
        torch.testing.assert_close(found["loss"], expected)
        whole = model.eval()(batch)
        torch.testing.assert_close(whole["loss"], whole["kl"] + 0.5 * whole["ce"] + 2 * whole["feature"])
