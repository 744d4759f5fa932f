"""FGM is the gradient of `loss(e) + loss(e + epsilon g / |g|)`, g the gradient in the embeddings e, held fixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from schemas.cache import Cache
from schemas.errors import UsageError
from tests.trainer.tiny import VOCAB, llama_config
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.losses.objective import Objective
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.distiller import ADVERSARIAL, Distiller


def model_of(epsilon: str | None, losses: list[str]) -> Distiller:
    torch.manual_seed(0)
    objective = Objective.parse(losses, adversarial=epsilon)
    return Distiller(
        LlamaForCausalLM(llama_config()), objective, score="softmax", task=STUDENT_TASKS["causal-lm"]
    ).train()


def batch_of(cache: Cache) -> Batch:
    rows = cache.read(cache.row_groups[0]).take(np.arange(4))
    return Collation(student_vocab=VOCAB, pad_id=0).batch(rows)


def test_it_is_the_definition(causal_cache: Cache) -> None:
    """By hand on transformers' own cross entropy: the student is told embeddings in place of ids."""
    batch, model = batch_of(causal_cache), model_of("fgm=0.5", ["ce=1"])
    found = model(batch)
    found["loss"].backward()
    student = model_of(None, ["ce=1"]).student
    labels = torch.where(batch.attention_mask == 1, batch.input_ids, -100)

    def loss_at(moved: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = student.get_input_embeddings()(batch.input_ids)  # type: ignore[operator]
        mask = batch.attention_mask
        return student(inputs_embeds=embedded + moved, attention_mask=mask, labels=labels).loss, embedded

    first, embedded = loss_at(0.0)
    (gradient,) = torch.autograd.grad(first, embedded, retain_graph=True)
    moved = torch.stack([0.5 * g / g.norm() for g in gradient])
    second, _ = loss_at(moved)
    (first + second).backward()
    torch.testing.assert_close(found["ce"], first.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[ADVERSARIAL], second.detach(), atol=1e-6, rtol=1e-5)
    assert second > first
    for ours, theirs in zip(model.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_in_float16_a_mean_over_many_positions_has_its_direction(causal_cache: Cache) -> None:
    """No loss scaler has seen the gradient that FGM goes by."""
    batch, rises = batch_of(causal_cache), []
    for cast in (False, True):
        model = model_of("fgm=0.5", ["kl=1"])
        with torch.autocast("cpu", torch.float16, enabled=cast):
            found = model(batch, num_items_in_batch=torch.full((3,), 2**22))
        rises.append((found[ADVERSARIAL] - found["kl"]).item() * 2**22)
    assert rises[0] > 0.1
    assert rises[1] == pytest.approx(rises[0], rel=0.02)


def test_frozen_embeddings_are_moved_too(causal_cache: Cache) -> None:
    model = model_of("fgm=0.5", ["kl=1", "jsd=0.5"])
    model.student.get_input_embeddings().weight.requires_grad_(False)  # type: ignore[operator]
    found = model(batch_of(causal_cache))
    torch.testing.assert_close(found["loss"], found["kl"] + 0.5 * found["jsd"] + found[ADVERSARIAL])
    assert found[ADVERSARIAL] > found["kl"] + 0.5 * found["jsd"]
    found["loss"].backward()
    assert model.student.lm_head.weight.grad.any()  # type: ignore[union-attr]


def test_evaluation_moves_nothing_and_a_weightless_batch_counts_nothing(causal_cache: Cache) -> None:
    batch, model = batch_of(causal_cache), model_of("fgm=0.5", ["kl=1"])
    assert ADVERSARIAL not in model.eval()(batch)
    found = model.train()(batch.weightless(), num_items_in_batch=batch.counts)
    assert all(value == 0 for value in found.values())
    found["loss"].backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("told", ["fgm=0", "fgm=-1", "fgm=nan", "pgd=1", "fgm=much"])
def test_nonsense_is_refused(told: str) -> None:
    with pytest.raises(UsageError, match="fgm"):
        Objective.parse(["kl=1"], adversarial=told)
