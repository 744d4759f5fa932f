"""A new loss is one entry: the command line, the check, training, the log and the docs know it from that alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import trainer.losses
from schemas.cache import Cache
from schemas.errors import StudentError
from schemas.policies import Threshold, TopK
from tests.trainer.caches import causal_spec
from tests.trainer.losses.table import PAGE, page
from tests.trainer.tiny import VOCAB, llama_config
from trainer.batches.collate import Collation
from trainer.losses.loss import Loss, Parameter, Settings
from trainer.losses.objective import Objective
from trainer.losses.registry import FAMILIES, LOSSES
from trainer.losses.scores import Scores
from trainer.losses.serving import EXACT
from trainer.losses.unbiasedness import bias_lines
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.config import TrainConfig
from trainer.training.distiller import Distiller


def chi_square(scores: Scores, settings: Settings) -> torch.Tensor:
    p, q = scores.weights, scores.soft.kept.exp()
    return float(settings["scale"]) * scores.sum((p - q).square() / p)


ENTRY = Loss(
    name="chi_square",
    formula="scale sum (p - q)^2 / p",
    paper="Pearson (1900)",
    kind=EXACT,
    parameters={"scale": Parameter(default=1.0, low=0.0)},
    softmax=chi_square,
    softens=True,
)


def test_an_entry_is_all_that_a_loss_is(causal_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, ENTRY.name, ENTRY)  # type: ignore[arg-type]
    config = TrainConfig(
        cache="c", student="s.json", losses=["kl=1", "chi_square=0.5,scale=2"], temperature=2.0
    )
    objective = config.objective
    objective.check(causal_cache.spec)
    with pytest.raises(StudentError, match="chi_square needs exact entries"):
        objective.check(causal_spec(Threshold(tau=1 / 8), own_logits=True))
    assert any(
        "chi_square from top_k:32: biased" in line for line in bias_lines(objective, causal_cache.spec, VOCAB)
    )
    torch.manual_seed(0)
    student = LlamaForCausalLM(llama_config())
    model = Distiller(student, objective, score="softmax", task=STUDENT_TASKS["causal-lm"])
    rows = causal_cache.read(causal_cache.row_groups[0]).take(np.arange(4))
    found = model(Collation(student_vocab=VOCAB, pad_id=0, temperature=2.0).batch(rows))
    torch.testing.assert_close(found["loss"], found["kl"] + 0.5 * found["chi_square"])
    found["loss"].backward()
    assert student.lm_head.weight.grad.abs().max() > 0


def test_the_page_is_what_the_entries_say() -> None:
    """`make losses` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_family_of_the_folder_is_in_the_registry() -> None:
    """A file with `LOSSES` whose line is forgotten would be no loss at all."""
    folder = Path(trainer.losses.__file__).parent
    files = {
        path.stem
        for path in folder.glob("*.py")
        if re.search(r"^LOSSES = \(", path.read_text(), re.MULTILINE)
    }
    assert files == {family.__name__.rpartition(".")[2] for family in FAMILIES}


def test_names_are_told_apart() -> None:
    every = [loss.name for family in FAMILIES for loss in family.LOSSES]
    assert len(every) == len(set(every)) == len(LOSSES)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in every)
    assert all(loss.formula for loss in LOSSES.values())


def test_nothing_else_names_a_loss() -> None:
    """Only its own family: no other file of the trainer compares a loss's name."""
    folder = Path(trainer.losses.__file__).parents[1]
    names = "|".join(name for name in LOSSES if name not in ("feature", "attention"))
    for path in folder.rglob("*.py"):
        if found := re.findall(rf'(?:==|!=| in|case) \(?"({names})"', path.read_text(encoding="utf-8")):
            raise AssertionError(f"{path}: {found}")


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_what_is_biased_for_some_positions_is_said(name: str) -> None:
    """Of a cache that draws; where all is exact there is nothing to say."""
    objective = Objective.parse([f"{name}=1"])
    drawn = causal_spec(keep=Threshold(tau=1 / 32, k=1), temperatures=(1.0,))
    (line,) = bias_lines(objective, drawn, drawn.vocab_size)
    assert "63/64" in line
    assert "cross entropy" not in line
    exact = causal_spec(keep=TopK(k=8), temperatures=(1.0,))
    (line,) = bias_lines(objective, exact, exact.vocab_size)
    assert "63/64" not in line
