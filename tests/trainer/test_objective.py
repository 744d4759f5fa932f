"""The losses of a run as a value: what is written, what is refused, and what a cache can serve."""

import pytest

from schemas.errors import StudentError, UsageError
from schemas.policies import KeepAll
from schemas.spec import Spec
from tests.trainer.caches import causal_spec
from trainer.objective import Objective


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


def test_features_must_be_in_the_cache() -> None:
    with pytest.raises(StudentError, match="--features"):
        Objective.parse(["feature"]).check(causal_spec(features=()))


def test_a_regression_teacher_has_no_kl() -> None:
    spec = Spec(task="sequence-classification", score="identity", vocab_size=1, keep=KeepAll(), max_length=8)
    with pytest.raises(StudentError, match="mse_logits"):
        Objective.parse(["kl"]).check(spec)
    Objective.parse(["ce", "mse_logits"]).check(spec)
