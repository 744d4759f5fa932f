"""Losses that need more of a cache than entries train through shards on disk, are logged, measured and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import StudentError, UsageError
from schemas.policies import Threshold
from tests.trainer.caches import write_cache
from tests.trainer.draws import some_rows

TOLD = ["jsd=1,beta=0.3", "dkd=0.1,beta=2", "kl_teacher_unsure=0.5", "ce=0.1"]


def test_a_mix_trains_and_another_parameter_is_another_run(run: Callable[..., Path], tmp_path: Path) -> None:
    scalars = ("entropy", "gold", "logsumexp")
    rows = some_rows(
        Threshold(tau=1 / 8),
        60,
        scalars=scalars,
        own_logits=True,
        temperatures=(1.0, 2.0),
        scalar_step_nats=2**-11,
    )
    cache = write_cache(tmp_path / "cache", rows)
    changes = {
        "cache": cache,
        "temperature": 2.0,
        "loss_schedule": ["ce=linear:1:0"],
        "adversarial": "fgm=0.1",
    }
    folder = run(losses=TOLD, eval_strategy="steps", eval_steps=11, max_steps=12, **changes)
    state = json.loads((folder / "checkpoint-12" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "jsd" in entry]
    assert logged
    measured = {"agreement", "teacher_entropy", "grad_norm"}
    terms = {"jsd", "dkd", "kl_teacher_unsure", "ce", "adversarial"}
    assert all(terms | measured <= set(entry) for entry in logged)
    assert any({"eval_jsd", "eval_dkd", "eval_agreement"} <= set(entry) for entry in state["log_history"])
    again = {
        **changes,
        "max_steps": 14,
        "resume_from_checkpoint": "last",
        "eval_strategy": "steps",
        "eval_steps": 11,
    }
    other = ["jsd=1,beta=0.4", *TOLD[1:]]
    with pytest.raises(UsageError, match=r"another jsd beta: .*expected 0.3, got 0.4"):
        run(losses=other, **again)
    with pytest.raises(UsageError, match="another ce schedule"):
        run(losses=TOLD, **{**again, "loss_schedule": ["ce=linear:1:0.5"]})
    with pytest.raises(UsageError, match="another adversarial fgm"):
        run(losses=TOLD, **{**again, "adversarial": None})
    run(losses=TOLD, **again)


def test_a_cache_that_cannot_serve_is_said_before_any_training(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    cache = write_cache(tmp_path / "cache", some_rows(Threshold(tau=1 / 8), 20))
    with pytest.raises(StudentError, match=r"jsd is not linear.*--own_logits"):
        run(cache=cache, losses=["kl=1", "jsd=1"])
    assert not list(tmp_path.glob("out/checkpoint-*"))


def test_a_resume_with_another_distance_is_refused(run: Callable[..., Path]) -> None:
    """However either is told: a flag and a parameter say the same."""
    told = {"max_steps": 4, "save_steps": 2, "losses": ["kl=1", "feature=0.1"]}
    checkpoint = str(run(**told) / "checkpoint-2")
    told["losses"] = ["kl=1", "feature=0.1,distance=cosine"]
    with pytest.raises(UsageError, match=r"another feature_loss: .*expected mse, got cosine"):
        run("again", resume_from_checkpoint=checkpoint, **told)
