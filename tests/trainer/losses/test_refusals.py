"""Every loss on every policy and score is served, or refused with what to do: by the table that its formula gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.errors import StudentError, UsageError
from schemas.features import Feature
from schemas.policies import KeepAll, KeepPolicy, Sampled, Threshold, TopK, TopP
from schemas.spec import Spec
from tests.trainer.caches import causal_spec
from trainer.losses.objective import Objective
from trainer.losses.registry import LOSSES

LINEAR = {"kl", "brier", "kl_entropy", "kl_student_unsure", "kl_teacher_unsure", "dkd", "nkd"}
FINITE = {"jsd", "tvd", "hellinger", "skew_kl", "skew_rkl", "alpha_beta"}
EXACT = {"rkl", "kl_kept", "pld", "bild", "pearson", "akl"}
WHOLE = {"kl_standard"}
LOGITS = {"mse_logits"}
LABELS = {"ce", "ce_smoothed", "ce_symmetric", "ce_generalised"}
POOLED = {
    *(
        "feature",
        "feature_relative",
        "pkd",
        "rkd_distance",
        "rkd_angle",
        "similarity",
        "cka",
        "correlation",
        "flow",
    ),
    *("info_nce", "vib", "info_head"),
}
CHUNKS, PROJECTED = {"alm"}, {"projected_kl"}
"""Of a student of another tokenizer."""
LISTS = {"margin_mse", "listwise_kl"}
"""Of rows that hold a list each, which none here do."""
BY_ORIGIN = {"contrast"}
"""Of two caches, by who wrote the texts; as `FINITE` then."""
BOTH = (True, False)
BOXES = {"boxes", "gold_boxes"}
"""Of detectors, which none here are."""
NEVER = {"attention", "hidden_states"}
NEEDS_GOLD = {"dkd", "nkd", "pld", "alm"}
NEEDS_ENTROPY = {"kl_entropy", "kl_teacher_unsure"}
SIGMOID = {"kl", "ce", "ce_smoothed", "mse_logits", "rkl", "brier", *FINITE, *POOLED}
"""What has a meaning for classes that are apart."""
IDENTITY = {"ce", "mse_logits", *POOLED}
"""What has a meaning for values."""

POLICIES: Mapping[str, KeepPolicy] = {
    "all": KeepAll(),
    "top_k": TopK(k=8),
    "top_p": TopP(p=0.9, k=8),
    "threshold": Threshold(tau=1 / 8),
    "sampled": Sampled(n=13),
}
STORED: Mapping[str, Mapping[str, Any]] = {
    "nothing": {"scalars": ()},
    "gold": {"scalars": ("gold",)},
    "entropy": {"scalars": ("entropy",)},
    "logsumexp": {"scalars": ("logsumexp",)},
    "own": {"scalars": ("entropy", "gold", "logsumexp"), "own_logits": True},
}


def spec_of(policy: str, stored: str, features: int = 2) -> Spec | None:
    changes = dict(STORED[stored])
    if changes.get("own_logits") and policy not in ("threshold", "sampled"):
        changes["own_logits"] = False
    pooled = tuple(Feature(pooling="mean", layer=layer, width=4) for layer in range(features))
    return causal_spec(POLICIES[policy], temperatures=(1.0,), features=pooled, **changes)


def is_served(name: str, policy: str, spec: Spec, written: tuple[bool, ...] = (False,)) -> bool:
    """By the formula: what it needs of p, and of texts."""
    draws = policy in ("threshold", "sampled")
    if name in NEVER | LISTS | BOXES or (name in BY_ORIGIN and len(set(written)) < 2):
        return False
    if name in WHOLE and policy != "all":
        return False
    if name in EXACT and draws:
        return False
    if name in (FINITE | BY_ORIGIN) and draws and not spec.own_logits:
        return False
    if name in LOGITS:
        return "logsumexp" in spec.scalars and (policy != "sampled" or spec.own_logits)
    gold = name not in NEEDS_GOLD or policy == "all" or "gold" in spec.scalars
    return gold and (name not in NEEDS_ENTROPY or policy == "all" or "entropy" in spec.scalars)


def test_every_loss_stands_in_one_class() -> None:
    classes = [
        LINEAR,
        FINITE,
        EXACT,
        WHOLE,
        LOGITS,
        LABELS,
        POOLED,
        LISTS,
        CHUNKS,
        PROJECTED,
        BY_ORIGIN,
        BOXES,
        NEVER,
    ]
    assert sorted(name for each in classes for name in each) == sorted(LOSSES)


@pytest.mark.parametrize("written", [(False,), (True, True), BOTH])
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_whole_table(name: str, policy: str, stored: str, written: tuple[bool, ...]) -> None:
    """Of one cache, and of two by who wrote their texts."""
    spec = spec_of(policy, stored)
    objective = Objective(weights={name: 1.0})
    if is_served(name, policy, spec, written):
        objective.check(spec, written)
        return
    with pytest.raises(StudentError) as caught:
        objective.check(spec, written)
    text = str(caught.value)
    assert name in text
    assert re.search(r"Precompute a cache with --|Use --losses \w+=1", text), text


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("score", ["sigmoid", "identity"])
def test_other_scores(name: str, score: Any) -> None:
    spec = Spec(
        task="sequence-classification",
        score=score,
        vocab_size=3,
        keep=KeepAll(),
        max_length=8,
        features=(Feature(pooling="mean", layer=0, width=4), Feature(pooling="mean", layer=1, width=4)),
    )
    objective = Objective(weights={name: 1.0})
    if name in (SIGMOID if score == "sigmoid" else IDENTITY):
        objective.check(spec)
        if "tail" in LOSSES[name].parameters:
            flat = Objective(weights={name: 1.0}, settings={name: {"tail": "uniform"}})
            with pytest.raises(StudentError, match=f"{name} has no tail here.*Leave tail out"):
                flat.check(spec)
        return
    said = (
        f"^{name} (goes|compares) "
        if name in (NEVER | BY_ORIGIN) or (name in LISTS and score == "identity")
        else f"(^|: ){name} has no meaning"
    )
    with pytest.raises(StudentError, match=said) as caught:
        objective.check(spec)
    assert re.search("[Uu]se --losses ", str(caught.value))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_temperature_that_is_not_declared(name: str, policy: str) -> None:
    spec = spec_of(policy, "own")
    if not is_served(name, policy, spec):
        return
    objective = Objective(weights={name: 1.0}, temperature=3.0)
    draws = policy in ("threshold", "sampled")
    if policy == "all" or name == "kl_kept" or not (LOSSES[name].has_temperature or draws):
        objective.check(spec)
        return
    with pytest.raises(StudentError, match="--temperatures 1 3"):
        objective.check(spec)


@pytest.mark.parametrize("name", sorted(POOLED))
def test_pooled_losses_need_features(name: str) -> None:
    least = LOSSES[name].least_features
    Objective(weights={name: 1.0}).check(spec_of("top_k", "nothing", least))
    with pytest.raises(StudentError, match="Precompute a cache with --features"):
        Objective(weights={name: 1.0}).check(spec_of("top_k", "nothing", least - 1))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if "tail" in loss.parameters])
def test_draws_have_no_tail_to_choose(name: str) -> None:
    objective = Objective.parse([f"{name}=1,tail={LOSSES[name].parameters['tail'].choices[-1]}"])
    objective.check(spec_of("top_p", "own"), BOTH)
    if is_served(name, "threshold", spec_of("threshold", "own"), BOTH):
        with pytest.raises(StudentError, match="Leave tail out"):
            objective.check(spec_of("threshold", "own"), BOTH)


@pytest.mark.parametrize("name", LOSSES)
def test_parameters_are_read_and_refused(name: str) -> None:
    for key, parameter in LOSSES[name].parameters.items():
        told = f"{name}=0.5,{key}={parameter.default}"
        assert Objective.parse([told]).settings_of(name)[key] == parameter.default
        for bad in ("much", "nan", *(["1.5"] if parameter.whole else [])):
            with pytest.raises(UsageError, match=f"got {name}'s {key} must be .*, but got '?{bad}"):
                Objective.parse([f"{name}=1,{key}={bad}"])
        if not (parameter.choices or parameter.several):
            for edge in (parameter.low, parameter.high):
                outside = edge if parameter.beyond else edge + (1 if edge > parameter.low else -1)
                said = rf"got {name}'s {key} must be .*, but got {re.escape(f'{outside:g}')}"
                with pytest.raises(UsageError, match=said):
                    Objective.parse([f"{name}=1,{key}={outside}"])
    with pytest.raises(UsageError, match="no parameter 'sharpness'"):
        Objective.parse([f"{name}=1,sharpness=2"])


@pytest.mark.parametrize(
    ("told", "got"),
    [
        ("0", "0"),
        ("8+70000", "70000"),
        ("16+8", "'16+8'"),
        ("8+8", "'8+8'"),
        ("8+", "'8+'"),
        ("8.5", "'8.5'"),
    ],
)
def test_cuts_are_ascending_numbers(told: str, got: str) -> None:
    assert Objective.parse(["pkd=1,cuts=08+16"]).settings_of("pkd")["cuts"] == "8+16"
    with pytest.raises(UsageError, match=f"cuts must be none, or ascending .*, but got {re.escape(got)}"):
        Objective.parse([f"pkd=1,cuts={told}"])


def test_a_parameter_that_stands_twice() -> None:
    with pytest.raises(UsageError, match="twice"):
        Objective.parse(["jsd=1,beta=0.1,beta=0.2"])
