"""Losses of a caller's own beside schedules and stages."""

from pathlib import Path

import pytest

from schemas.cache import Cache
from schemas.errors import UsageError
from tests.trainer.outputs import same
from tests.trainer.training.test_from_python import USUAL, go, squares  # noqa: F401  (a fixture)
from trainer import StudentArguments, TrainConfig, train
from trainer.losses.serving import LABELS


def test_a_loss_of_ones_own_has_a_schedule_as_a_named_one_has(
    go,  # noqa: F811
    tmp_path: Path,
    causal_cache: Cache,
) -> None:
    mine = squares(
        "mine", formula="-log q_gold", kind=LABELS, softmax=lambda s, _: -s.plain.gold, per="labelled"
    )
    own = go("own", losses=["kl=1"], own={"losses": [(mine, 0.5, "linear:1:0")]})
    config = TrainConfig(
        cache=causal_cache.storage.root,
        student=str(tmp_path / "student.json"),
        losses=["kl=1", "ce=0.5"],
        loss_schedule=["ce=linear:1:0"],
        eval_fraction=0.2,
    )
    train(config, StudentArguments(output_dir=str(tmp_path / "named"), **USUAL))
    assert same(tmp_path / "named", own)
    assert not same(own, go("constant", losses=["kl=1", "ce=0.5"]))
    assert "weight 0.5 by linear:1:0" in (own / "README.md").read_text()


def test_stages_name_their_losses_and_take_none_of_ones_own(causal_cache: Cache, tmp_path: Path) -> None:
    config = TrainConfig(cache=causal_cache.storage.root, student="s.json", stages=["share=0.5 kl=1", "ce=1"])
    with pytest.raises(UsageError, match=r"stages name their losses, and one of Python's has no name there"):
        train(config, StudentArguments(output_dir=str(tmp_path / "o"), **USUAL), losses=[(squares(), 1.0)])
