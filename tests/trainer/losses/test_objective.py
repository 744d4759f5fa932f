"""The losses of a run as a value: what is written, what is refused, and what a cache can serve."""

from dataclasses import replace

import pytest

from schemas.errors import StudentError, UsageError
from schemas.policies import KeepAll, Sampled, Threshold
from schemas.spec import Scalar, Spec
from tests.trainer.caches import causal_spec
from trainer.losses.objective import Objective


def test_what_is_written_is_what_is_meant() -> None:
    found = Objective.parse(["kl=1.0", "ce=0.5", "feature"], 2.0, "cosine")
    assert found.weights == {"kl": 1.0, "ce": 0.5, "feature": 1.0}
    assert found.head_losses == ("kl", "ce")
    assert found.uses_features
    assert found.feature_loss == "cosine"


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ([], "at least one loss"),
        (["kll=1"], "kll"),
        (["kl=-1"], "-1"),
        (["kl=nan"], "nan"),
        (["kl=much"], "kl=much"),
        (["kl=0"], "above 0"),
        (["kl=1", "kl=2"], "twice"),
    ],
)
def test_nonsense_is_refused_by_name(losses: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Objective.parse(losses)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf")])
def test_a_temperature_of_nonsense_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=str(temperature)):
        Objective.parse(["kl"], temperature)


def test_another_feature_loss_is_refused() -> None:
    with pytest.raises(UsageError, match="l1"):
        Objective.parse(["feature"], 1.0, "l1")


def test_an_undeclared_temperature_says_what_to_do() -> None:
    objective = Objective.parse(["kl"], 3.0)
    with pytest.raises(StudentError, match=r"expected one of 1, 2, got 3.*--temperatures 1 3"):
        objective.check(causal_spec())
    objective.check(causal_spec(KeepAll()))
    Objective.parse(["kl"], 2.0).check(causal_spec())
    Objective.parse(["ce"], 3.0).check(causal_spec())


def test_advice_for_draws_with_replacement_is_a_spec_that_can_be() -> None:
    """They serve temperature 1 alone: what is advised must not be refused in its turn."""
    draws = causal_spec(Sampled(n=50), temperatures=(1.0,), features=())
    objective = Objective.parse(["kl"], 2.0)
    advised = r"Precompute a cache with --keep threshold:1/32 --temperatures 1 2, or with --keep all$"
    with pytest.raises(StudentError, match=advised):
        objective.check(draws)
    objective.check(replace(draws, keep=Threshold(tau=1 / 32), temperatures=(1.0, 2.0), own_logits=True))
    objective.check(replace(draws, keep=KeepAll()))
    with pytest.raises(StudentError, match=r"cache with --temperatures 1 2, or with --keep all$"):
        objective.check(replace(draws, keep=Threshold(tau=1 / 32)))


@pytest.mark.parametrize(
    ("scalars", "own_logits", "advised"),
    [
        (("entropy", "gold"), False, "--scalars entropy gold logsumexp --own_logits,"),
        ((), False, "--scalars logsumexp --own_logits,"),
        (("gold",), True, "--scalars gold logsumexp,"),
        (("gold", "logsumexp"), False, "--scalars gold logsumexp --own_logits,"),
    ],
)
def test_all_that_logits_of_draws_lack_is_said_at_once(
    scalars: tuple[Scalar, ...], own_logits: bool, advised: str
) -> None:
    draws = causal_spec(Sampled(n=5), temperatures=(1.0,), scalars=scalars, own_logits=own_logits)
    objective = Objective.parse(["mse_logits"])
    with pytest.raises(StudentError, match=advised):
        objective.check(draws)
    objective.check(replace(draws, scalars=("gold", "logsumexp"), own_logits=True))


def test_where_every_score_is_kept_the_gold_ids_is_among_them() -> None:
    """So it is known at any temperature; what is stored beside it is that of the declared ones."""
    objective = Objective.parse(["dkd"], 3.0)
    objective.check(causal_spec(KeepAll()))
    assert objective.stored(causal_spec(KeepAll())) == frozenset()
    assert Objective.parse(["dkd"]).stored(causal_spec()) == {"gold"}


def test_features_must_be_in_the_cache() -> None:
    with pytest.raises(StudentError, match="--features"):
        Objective.parse(["feature"]).check(causal_spec(features=()))


def test_a_regression_teacher_has_no_kl() -> None:
    spec = Spec(task="sequence-classification", score="identity", vocab_size=1, keep=KeepAll(), max_length=8)
    with pytest.raises(StudentError, match="mse_logits"):
        Objective.parse(["kl"]).check(spec)
    Objective.parse(["ce", "mse_logits"]).check(spec)


def test_a_default_that_is_told_is_the_same_run() -> None:
    assert (
        Objective.parse(["jsd=1,beta=0.5"])
        == Objective.parse(["jsd=1"])
        != Objective.parse(["jsd=1,beta=0.4"])
    )


def test_a_distance_that_is_told_twice_is_refused() -> None:
    assert Objective.parse(["feature=1,distance=cosine"], feature_loss="cosine").feature_loss == "cosine"
    with pytest.raises(UsageError, match="told twice, and not alike"):
        Objective.parse(["feature=1,distance=mse"], feature_loss="cosine")
