"""The loss of a batch: a mean over what counts, the same however rows fall on batches, ranks and steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from schemas.cache import Cache
from schemas.errors import StudentError
from schemas.features import Feature
from tests.trainer.tiny import VOCAB, bert_config, llama_config
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.losses.objective import Objective
from trainer.losses.targets import SparseTargets
from trainer.students.features import Projections, pooled, student_layer
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.distiller import BEYOND, Distiller


def distiller(
    cache: Cache, losses: list[str], student: Any = None, *, vocab: int = VOCAB, layers: int = 2
) -> Distiller:
    torch.manual_seed(0)
    objective = Objective.parse(losses)
    student = student or LlamaForCausalLM(llama_config(vocab_size=vocab, num_hidden_layers=layers))
    features = cache.spec.features if objective.uses_features else ()
    task = STUDENT_TASKS["causal-lm"]
    return Distiller(student, objective, score="softmax", features=features, teacher_layers=2, task=task)


def batch_of(cache: Cache, first: int, last: int, *, vocab: int = VOCAB) -> Batch:
    rows = cache.read(cache.row_groups[0]).take(np.arange(first, last))
    return Collation(student_vocab=vocab, pad_id=0, features=cache.spec.features).batch(rows)


EVERY = ["kl=1.0", "ce=0.5", "mse_logits=0.1", "feature=2.0"]


def test_the_loss_is_the_weighted_sum_of_the_terms(causal_cache: Cache) -> None:
    found = distiller(causal_cache, EVERY)(batch_of(causal_cache, 0, 8))
    expected = found["kl"] + 0.5 * found["ce"] + 0.1 * found["mse_logits"] + 2 * found["feature"]
    torch.testing.assert_close(found["loss"], expected)


def test_cross_entropy_is_transformers_own(causal_cache: Cache) -> None:
    model, batch = distiller(causal_cache, ["ce=1"]), batch_of(causal_cache, 0, 8)
    labels = torch.where(batch.attention_mask == 1, batch.input_ids, -100)
    own = model.student(**batch.model_inputs, labels=labels).loss  # type: ignore[operator]
    found = model(batch)["loss"]
    torch.testing.assert_close(found, own)
    theirs = torch.autograd.grad(own, list(model.student.parameters()))
    ours = torch.autograd.grad(found, list(model.student.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_parts_of_a_global_batch_sum_to_its_mean(causal_cache: Cache) -> None:
    """What accumulation and ranks rely on: with the global counts, parts add up, whatever their lengths."""
    model = distiller(causal_cache, EVERY)
    whole = batch_of(causal_cache, 0, 12)
    parts = [batch_of(causal_cache, 0, 3), batch_of(causal_cache, 3, 12)]
    counts = parts[0].counts + parts[1].counts
    assert torch.equal(counts, whole.counts)
    summed = sum(model(part, num_items_in_batch=counts)["loss"] for part in parts)
    torch.testing.assert_close(summed, model(whole)["loss"])


def test_a_weightless_batch_has_no_loss_and_no_gradient(causal_cache: Cache) -> None:
    model, batch = distiller(causal_cache, EVERY), batch_of(causal_cache, 0, 4)
    found = model(batch.weightless(), num_items_in_batch=batch.counts)
    assert all(value == 0 for value in found.values())
    found["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert not any(g.any() for g in gradients)


def test_what_is_beyond_the_vocabulary_is_logged(causal_cache: Cache) -> None:
    batch = batch_of(causal_cache, 0, 8, vocab=150)
    batch = replace(batch, input_ids=batch.input_ids % 150)
    found = distiller(causal_cache, ["kl=1"], vocab=150)(batch)
    assert found[BEYOND].item() == pytest.approx(batch.beyond / batch.counts[0].item())
    assert 0 < found[BEYOND].item() < 1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_agreement_and_the_teachers_entropy_are_logged_beside_the_losses(
    causal_cache: Cache, teacher_dir: str, temperature: float
) -> None:
    """Against the teacher itself in plain transformers; they have no part in the loss, and no gradient."""
    torch.manual_seed(0)
    objective = Objective.parse(["kl=1", "ce=0.5"], temperature)
    teacher, student = (LlamaForCausalLM.from_pretrained(teacher_dir).eval() for _ in range(2))
    for weight in student.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    told: dict[str, Any] = {"score": "softmax", "task": STUDENT_TASKS["causal-lm"]}
    plain = Distiller(student, objective, **told)
    model = Distiller(student, objective, **told, measures=("agreement", "teacher_entropy"))
    rows = causal_cache.read(causal_cache.row_groups[0]).take(np.arange(8))
    batch = Collation(student_vocab=VOCAB, pad_id=0, temperature=temperature).batch(rows)
    targets = batch.targets
    assert isinstance(targets, SparseTargets)
    logits = student(**batch.model_inputs).logits[batch.row, batch.token]
    theirs = teacher(**batch.model_inputs).logits[batch.row, batch.token]
    p = (theirs / temperature).softmax(-1)
    tail = p.index_put((targets.position, targets.ids), p.new_zeros(())).sum(-1, keepdim=True)
    kept = p[targets.position, targets.ids]
    entropy = (torch.special.entr(kept).sum() + torch.special.entr(tail).sum()) / len(p)
    agree = (logits.argmax(-1) == theirs.argmax(-1)).float().mean()
    assert 0.2 < agree < 1
    found, without = model(batch), plain(batch)
    torch.testing.assert_close(found["teacher_entropy"], entropy, rtol=0.01, atol=0)
    torch.testing.assert_close(found["agreement"], agree)
    assert found.keys() - without.keys() == {"agreement", "teacher_entropy"}
    assert torch.equal(found["loss"], without["loss"])
    assert not found["agreement"].requires_grad


def test_a_feature_alone_needs_no_head(causal_cache: Cache) -> None:
    model = distiller(causal_cache, ["feature=1"])
    found = model(batch_of(causal_cache, 0, 4))
    assert set(found) == {"loss", "feature"}
    found["loss"].backward()
    assert model.student.lm_head.weight.grad is None  # type: ignore[union-attr]


def test_features_of_a_perfect_student_cost_nothing(causal_cache: Cache, teacher_dir: str) -> None:
    """With the teacher as student and the identity as projection only the codec's rounding is left."""
    model = distiller(causal_cache, ["feature=1"])
    model.student = LlamaForCausalLM.from_pretrained(teacher_dir)
    assert model.projections is not None
    for linear in model.projections.maps.values():
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    batch = batch_of(causal_cache, 0, 8)
    scale = torch.stack([f.square().mean() for f in batch.features]).mean()
    assert model(batch)["feature"] < 1e-4 * scale


def test_pooling() -> None:
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(pooled(hidden, mask, "cls"), hidden[:, 0])
    torch.testing.assert_close(pooled(hidden, mask, "last"), torch.stack([hidden[0, 3], hidden[1, 1]]))
    mean = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    torch.testing.assert_close(pooled(hidden, mask, "mean"), mean)


@pytest.mark.parametrize(
    ("layer", "teacher", "student", "expected"), [(6, 6, 3, 3), (0, 6, 3, 0), (4, 6, 3, 2), (9, 6, 3, 3)]
)
def test_layers_answer_in_proportion(layer: int, teacher: int, student: int, expected: int) -> None:
    feature = Feature(pooling="mean", layer=layer, width=4)
    assert student_layer(feature, teacher_layers=teacher, student_layers=student) == expected


def test_projections_have_the_teachers_widths() -> None:
    features = [Feature(pooling="mean", layer=1, width=7), Feature(pooling="cls", layer=2, width=5)]
    states = [torch.zeros(2, 3, 4)] * 2
    found = Projections(features, [4, 4])(states, torch.ones(2, 3, dtype=torch.int64))
    assert [tuple(f.shape) for f in found] == [(2, 7), (2, 5)]


def classifier(score: Any, losses: list[str]) -> Distiller:
    torch.manual_seed(0)
    student = BertForSequenceClassification(bert_config())
    return Distiller(
        student, Objective.parse(losses), score=score, task=STUDENT_TASKS["sequence-classification"]
    )


def test_a_classifier_with_labels_on_some_rows(class_cache_of: Callable[..., Cache]) -> None:
    cache, model = class_cache_of(), classifier("softmax", ["kl=1", "ce=0.5", "mse_logits=0.1"])
    rows = cache.read(cache.row_groups[0])
    batch = Collation(student_vocab=3, pad_id=0).batch(rows.take(np.arange(len(rows))))
    found = model(batch)
    logits = model.student(**batch.model_inputs).logits  # type: ignore[operator]
    torch.testing.assert_close(found["ce"], F.cross_entropy(logits, batch.targets.gold))
    teacher = batch.targets.logits.reshape(-1, 3).gather(1, batch.targets.ids.reshape(-1, 3).argsort(1))  # type: ignore[union-attr]
    dense = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(found["kl"], dense, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["mse_logits"], F.mse_loss(logits, teacher), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("score", ["sigmoid", "identity"])
def test_dense_teachers(class_cache_of: Callable[..., Cache], score: str) -> None:
    losses = ["ce=0.5", "mse_logits=0.1", *(["kl=1"] if score == "sigmoid" else [])]
    cache, model = class_cache_of(score), classifier(score, losses)
    rows = cache.read(cache.row_groups[0])
    batch = Collation(student_vocab=3, pad_id=0).batch(rows.take(np.arange(len(rows))))
    found = model(batch)
    logits = model.student(**batch.model_inputs).logits  # type: ignore[operator]
    targets: Any = batch.targets
    torch.testing.assert_close(found["mse_logits"], F.mse_loss(logits, targets.logits))
    own = F.binary_cross_entropy_with_logits if score == "sigmoid" else F.mse_loss
    known = targets.labelled
    torch.testing.assert_close(found["ce"], own(logits[known], targets.gold[known]))
    found["loss"].backward()


def test_a_feature_of_a_layer_that_is_wider_than_the_last(causal_cache: Cache) -> None:
    """OPT-350m's last hidden states are projected to a width that the others do not have."""
    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = distiller(causal_cache, ["kl=1", "feature=1"], OPTForCausalLM(config))
    assert model.projections is not None
    widths = [linear.weight.shape[1] for linear in model.projections.maps.values()]  # type: ignore[union-attr]
    assert widths == [16, 32]
    model(batch_of(causal_cache, 0, 4))["loss"].backward()


def test_a_student_without_hidden_states_is_refused(causal_cache: Cache) -> None:
    """Funnel's grow fewer from block to block."""
    shape = {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 32, "block_sizes": [1, 1]}
    student = FunnelForSequenceClassification(FunnelConfig(vocab_size=VOCAB, **shape))
    with pytest.raises(StudentError, match="FunnelForSequenceClassification does not give the hidden states"):
        distiller(causal_cache, ["feature=1"], student)
