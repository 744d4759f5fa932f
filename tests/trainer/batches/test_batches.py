"""A batch holds what its rows hold: the teacher's probabilities, the next tokens, padding that is masked."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from schemas.cache import Cache
from schemas.policies import KeepAll, TopK
from schemas.rows.rows import Rows
from tests.trainer.caches import causal_columns, causal_spec, finished_rows
from tests.trainer.tiny import VOCAB, random_examples
from trainer.batches.collate import Collation
from trainer.losses.targets import NO_LABEL, DenseTargets, SparseTargets


def some_rows(cache: Cache, number: int = 6) -> Rows:
    return cache.read(cache.row_groups[0]).take(np.arange(number))


@pytest.fixture(scope="module")
def teacher(teacher_dir: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(teacher_dir).eval()


def test_tokens_mask_and_positions(causal_cache: Cache) -> None:
    rows = some_rows(causal_cache)
    batch = Collation(student_vocab=VOCAB, pad_id=0).batch(rows)
    lengths = rows.input_ids.lengths
    assert batch.input_ids.shape == (6, lengths.max())
    assert batch.attention_mask.sum(1).tolist() == lengths.tolist()
    assert (batch.input_ids[batch.attention_mask == 0] == 0).all()
    for place in range(6):
        assert batch.input_ids[place, : lengths[place]].tolist() == rows.input_ids.row(place).tolist()
    assert batch.row.bincount().tolist() == (lengths - 1).tolist()
    gold = batch.input_ids[batch.row, batch.token + 1]
    assert isinstance(batch.targets, SparseTargets)
    assert torch.equal(batch.targets.gold, gold)
    assert batch.counts.tolist() == [len(gold), len(gold), 6]
    assert batch.num_rows == 6
    assert batch.num_tokens == lengths.sum()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_targets_are_the_teachers(causal_cache: Cache, teacher: LlamaForCausalLM, temperature: float) -> None:
    batch = Collation(student_vocab=VOCAB, pad_id=0, temperature=temperature).batch(some_rows(causal_cache))
    with torch.no_grad():
        logits = teacher(**batch.model_inputs).logits[batch.row, batch.token]
    targets = batch.targets
    assert isinstance(targets, SparseTargets)
    dense = (logits / temperature).softmax(-1)[targets.position, targets.ids]
    torch.testing.assert_close(targets.weights, dense, rtol=1 / 32 / temperature + 0.01, atol=1e-4)
    torch.testing.assert_close(targets.logits, logits[targets.position, targets.ids], atol=0.04, rtol=1e-4)
    mass = torch.zeros(len(logits)).index_add(0, targets.position, targets.weights) + targets.tail
    torch.testing.assert_close(mass, torch.ones_like(mass))
    assert batch.entry_offsets.tolist() == (np.arange(len(logits) + 1) * 32).tolist()


def test_an_undeclared_temperature_is_served_where_all_is_kept(teacher: LlamaForCausalLM) -> None:
    spec = causal_spec(KeepAll(), temperatures=(1.0,))
    rows = finished_rows(spec, causal_columns(teacher, random_examples(4), spec))
    batch = Collation(student_vocab=VOCAB, pad_id=0, temperature=3.0).batch(rows)
    with torch.no_grad():
        logits = teacher(**batch.model_inputs).logits[batch.row, batch.token]
    targets = batch.targets
    assert isinstance(targets, SparseTargets)
    dense = (logits / 3).softmax(-1)[targets.position, targets.ids]
    torch.testing.assert_close(targets.weights, dense, rtol=0.03, atol=1e-5)
    assert not targets.tail.any()


@pytest.mark.parametrize("keep", [KeepAll(), TopK(k=VOCAB), TopK(k=32)])
def test_what_the_student_lacks_goes_to_the_tail_and_is_counted(
    teacher: LlamaForCausalLM, keep: KeepAll | TopK
) -> None:
    spec = causal_spec(keep)
    rows = finished_rows(spec, causal_columns(teacher, random_examples(4), spec))
    whole, cut = (Collation(student_vocab=v, pad_id=0).batch(rows) for v in (VOCAB, 150))
    a, b = whole.targets, cut.targets
    assert isinstance(a, SparseTargets)
    assert isinstance(b, SparseTargets)
    assert b.ids.max() < 150
    assert whole.beyond is None
    assert cut.beyond
    lost = a.weights[a.ids >= 150].sum().item()
    assert cut.beyond == pytest.approx(lost, rel=0.02)
    kept_whole = keep != TopK(k=32)
    gained = (b.tail - a.tail).sum().item()
    assert gained == pytest.approx(0 if kept_whole else lost, rel=0.02, abs=1e-4)


def test_a_wider_student_has_nothing_beyond(causal_cache: Cache) -> None:
    batch = Collation(student_vocab=VOCAB + 56, pad_id=0).batch(some_rows(causal_cache))
    assert batch.beyond is None


def test_features_are_those_of_the_rows(causal_cache: Cache) -> None:
    rows = some_rows(causal_cache)
    chosen = causal_cache.spec.features[1:]
    batch = Collation(student_vocab=VOCAB, pad_id=0, features=chosen).batch(rows)
    assert len(batch.features) == 1
    np.testing.assert_array_equal(batch.features[0].numpy(), rows.feature(chosen[0]))


def test_class_labels_and_rows_without(class_cache_of: Callable[..., Cache]) -> None:
    rows = next(class_cache_of().read_all())
    batch = Collation(student_vocab=3, pad_id=0).batch(rows.take(np.arange(len(rows))))
    valid = rows.ragged("labels").validity
    assert isinstance(batch.targets, SparseTargets)
    assert torch.equal(batch.targets.gold != NO_LABEL, torch.from_numpy(valid))
    assert batch.targets.gold[valid].tolist() == rows.ragged("labels").values.tolist()
    assert batch.counts.tolist() == [len(rows), valid.sum(), len(rows)]
    assert not batch.targets.tail.any()


@pytest.mark.parametrize("score", ["sigmoid", "identity"])
def test_dense_targets(class_cache_of: Callable[..., Cache], score: str) -> None:
    rows = next(class_cache_of(score).read_all())
    batch = Collation(student_vocab=3, pad_id=0).batch(rows.take(np.arange(len(rows))))
    targets = batch.targets
    assert isinstance(targets, DenseTargets)
    assert targets.logits.reshape(-1).tolist() == rows.ragged("logits").values.tolist()
    assert targets.gold[targets.labelled].reshape(-1).tolist() == rows.ragged("labels").values.tolist()
    assert targets.labelled.tolist() == rows.ragged("labels").validity.tolist()


def test_a_weightless_batch_counts_for_nothing(causal_cache: Cache) -> None:
    batch = Collation(student_vocab=150, pad_id=0).batch(some_rows(causal_cache))
    stand_in = batch.weightless()
    assert stand_in.counts.tolist() == [0, 0, 0]
    assert stand_in.beyond == 0
    assert torch.equal(stand_in.input_ids, batch.input_ids)


def test_moving_reaches_every_tensor_but_the_counts(causal_cache: Cache) -> None:
    features = causal_cache.spec.features
    batch = Collation(student_vocab=VOCAB, pad_id=0, features=features).batch(some_rows(causal_cache))
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.is_meta
    assert isinstance(moved.targets, SparseTargets)
    assert moved.targets.weights.is_meta
    assert all(feature.is_meta for feature in moved.features)
    assert not moved.counts.is_meta


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"student_vocab": -2}, {"pad_id": -1}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Collation(**({"student_vocab": 5, "pad_id": 0} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", ["gold", "own"])
def test_what_is_stored_is_not_told_at_a_temperature_that_is_not_declared(
    causal_cache: Cache, stored: str
) -> None:
    collation = Collation(student_vocab=VOCAB, pad_id=0, temperature=3.0, stored=frozenset({stored}))
    with pytest.raises(ValueError, match=r"declares \(1.0, 2.0\), but got temperature 3"):
        collation.batch(some_rows(causal_cache))
