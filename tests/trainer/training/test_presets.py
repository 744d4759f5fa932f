"""A recipe is the flags that it stands for, no more and no less."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from schemas.errors import StudentError, UsageError
from schemas.features import Feature
from schemas.policies import KeepAll, Threshold, TopP
from tests.trainer.caches import causal_spec
from trainer.cli.parsing import Parser
from trainer.training.config import TrainConfig
from trainer.training.presets import PRESETS

NEEDED = ["--cache", "c", "--student", "s.json"]


def parsed(*words: str) -> Any:
    return Parser([TrainConfig], description="train tests", examples="").values([*NEEDED, *words])[0]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_flags(name: str) -> None:
    short, long = parsed("--preset", name), parsed(*shlex.split(PRESETS[name].flags))
    assert short.objective == long.objective
    for field in ("losses", "stages", "temperature", "feature_loss"):
        assert getattr(short, field) == getattr(long, field)
    spec = causal_spec(KeepAll(), features=(Feature(pooling="mean", layer=1, width=4),))
    short.objective.check(spec)


def test_a_flag_beside_it_is_refused_with_the_flags() -> None:
    with pytest.raises(
        UsageError, match=r"--preset hinton says --temperature already.*--losses kl=0.9 ce=0.1"
    ):
        parsed("--preset", "hinton", "--temperature", "3")
    for flag, usual in (("--temperature", "1"), ("--losses", "kl=1.0")):
        with pytest.raises(UsageError, match=f"--preset hinton says {flag} already"):
            parsed("--preset", "hinton", flag, usual)
    with pytest.raises(UsageError, match="names no recipe: expected hinton, distilbert"):
        parsed("--preset", "hintom")


def test_stages_beside_a_recipe_are_refused() -> None:
    for name in ("hinton", "mobilebert-stages"):
        with pytest.raises(UsageError, match=f"--preset {name} says --stages already"):
            parsed("--preset", name, "--stages", "share=0.5 kl=1", "ce=1")
    with pytest.raises(UsageError, match="--preset mobilebert-stages says --losses already"):
        parsed("--preset", "mobilebert-stages", "--losses", "kl=1")


@pytest.mark.parametrize("name", ["pkd", "distilbert", "info-distil", "mobilebert-stages"])
def test_recipes_on_pooled_states_need_some(name: str) -> None:
    with pytest.raises(StudentError, match=r"needs features.*Precompute a cache with --features"):
        parsed("--preset", name).objective.check(causal_spec(KeepAll(), features=()))


def test_reverse_kl_on_the_caches_texts_needs_exact_entries() -> None:
    objective = parsed("--preset", "minillm-offline").objective
    objective.check(causal_spec(TopP(p=0.9, k=8)))
    with pytest.raises(StudentError, match="rkl needs exact entries"):
        objective.check(causal_spec(Threshold(tau=1 / 8), own_logits=True))
