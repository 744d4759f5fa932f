"""What a teacher says of an example, beside its pooled states: the mean over positions, and who is refused it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import StudentError
from schemas.features import Feature
from schemas.policies import KeepAll, parse_keep
from tests.synthetic import answers_spec, causal_spec, embeddings_spec, random_rows
from tests.trainer.losses.test_pooled import found_of, pooled_of
from trainer.batches.collate import Collation
from trainer.batches.packing import Packing
from trainer.losses.objective import Objective
from trainer.losses.registry import LOSSES
from trainer.losses.targets import DenseTargets, mean_outputs
from trainer.students.other_tokenizers import _check_outputs

PACKED = Packing(max_length=64)


def dense_weights(targets: Any, vocab_size: int) -> np.ndarray:
    """`[N, V]`, entry by entry."""
    found = np.zeros((len(targets.counts), vocab_size))
    for position, token, weight in zip(targets.position, targets.ids, targets.weights, strict=True):
        found[int(position), int(token)] += float(weight)
    return found


@pytest.mark.parametrize("packing", [None, PACKED], ids=["apart", "packed"])
@pytest.mark.parametrize("policy", ["top_k:4", "threshold:1/8"])
def test_it_is_the_mean_over_an_examples_positions(policy: str, packing: Packing | None) -> None:
    spec = causal_spec(keep=parse_keep(policy), temperatures=(1.0,))
    rows = random_rows(spec, 7).rows
    batch = Collation(student_vocab=spec.vocab_size, pad_id=0, packing=packing).batch(rows)
    shape = len(rows), spec.vocab_size
    found = mean_outputs(batch.targets, batch.example, shape, score="softmax", temperature=1.0)
    dense, offsets = dense_weights(batch.targets, spec.vocab_size), rows.position_offsets
    for example, (first, last) in enumerate(itertools.pairwise(offsets)):
        expected = dense[first:last].mean(0) if last > first else dense[:0].sum(0)
        np.testing.assert_allclose(found[example].numpy(), expected, atol=1e-6)
    if packing is not None:
        assert len(batch.input_ids) < len(rows)


@pytest.mark.parametrize(
    ("score", "of"), [("sigmoid", lambda z: 1 / (1 + np.exp(-z / 2))), ("identity", lambda z: z)]
)
def test_of_dense_teachers_it_is_probabilities_or_values(score: str, of: Any) -> None:
    logits, row = torch.tensor([[2.0, -1.0], [0.5, 3.0], [1.0, 1.0]]), torch.tensor([0, 0, 2])
    targets = DenseTargets(logits=logits, gold=torch.zeros(3, 2), labelled=torch.zeros(3).bool(), row=row)
    found = mean_outputs(targets, row, (3, 2), score=score, temperature=2.0).numpy()
    said = of(logits.numpy())
    np.testing.assert_allclose(found, [(said[0] + said[1]) / 2, [0, 0], said[2]], atol=1e-6)


def test_the_target_follows_the_teachers_output_and_not_the_students_state() -> None:
    pooled = pooled_of("info_head")
    module: Any = pooled.module
    h, t, p = pooled.ours[0], pooled.theirs[0], pooled.outputs
    told, _ = module(0, h, t, p)
    other, _ = module(0, h + 1, t, p)
    moved, _ = module(0, h, t, p.flip(0))
    torch.testing.assert_close(told, other, atol=0, rtol=0)
    assert not torch.allclose(told, moved)


FEATURE = (Feature(pooling="mean", layer=1, width=4),)


def test_without_scores_or_shared_classes_it_is_refused() -> None:
    objective = Objective(weights={"info_head": 1.0})
    spec = causal_spec(keep=KeepAll(), features=FEATURE)
    objective.check(spec)
    with pytest.raises(StudentError, match="info_head needs features"):
        objective.check(replace(spec, features=()))
    for unfit in (embeddings_spec(), answers_spec()):
        with pytest.raises(
            StudentError, match=r"info_head joins features with what the teacher says .* pkd=1.0"
        ):
            objective.check(replace(unfit, features=unfit.features or FEATURE))


def test_a_student_that_aligns_texts_is_refused() -> None:
    objective = Objective(weights={"alm": 1.0, "info_head": 1.0})
    with pytest.raises(
        StudentError, match="info_head asks for the teacher's scores, and a student that aligns"
    ):
        _check_outputs(objective, None, "here")
    _check_outputs(Objective(weights={"alm": 1.0, "pkd": 1.0}), None, "here")


def test_its_parameters_grow_with_the_teachers_ids_and_not_the_students_state() -> None:
    make = LOSSES["info_head"].module
    assert make is not None
    found: Any = make([3], [4], 50)
    assert found.joint[0].in_features == 54


def test_an_output_at_a_temperature_that_the_cache_does_not_declare_is_refused() -> None:
    spec = causal_spec(keep=parse_keep("top_k:4"), temperatures=(1.0,), features=FEATURE)
    Objective(weights={"pkd": 1.0}, temperature=3.0).check(spec)
    with pytest.raises(StudentError, match="temperature"):
        Objective(weights={"info_head": 1.0}, temperature=3.0).check(spec)


def test_an_auxiliary_heads_target_moves_no_student() -> None:
    """The student learns to tell the code from its own state, and not to make the code easy."""
    pooled = pooled_of("info_head")
    ours = [state.requires_grad_() for state in pooled.ours]
    module: Any = pooled.module
    for alone in module.alone:
        alone.weight.data.zero_()
    found_of("info_head", pooled).sum().backward()
    assert not any(state.grad.any() for state in ours)
    assert all(joint.weight.grad.any() for joint in module.joint)
