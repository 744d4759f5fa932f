"""The cache as a memory bank: rows of the training side, the same in every run, and no example of the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.rows.rows import Rows
from trainer.batches.collate import Collation
from trainer.batches.targets import example_keys
from trainer.losses.contrast import LOSSES
from trainer.losses.loss import Bank, Pooled
from trainer.stream.side import Side
from trainer.training.bank import read_bank

(INFO_NCE,) = (loss for loss in LOSSES if loss.name == "info_nce")


def side_of(cache: Cache, *, is_eval: bool = False) -> Side:
    return Side(cache=cache, eval_fraction=0.2, is_eval=is_eval)


@pytest.mark.parametrize("number", [1, 20, 60])
def test_it_holds_rows_of_the_training_side_each_once(causal_cache: Cache, number: int) -> None:
    features = causal_cache.spec.features
    bank = read_bank([side_of(causal_cache)], features, number, 7)
    assert len(bank.keys) == number == len(set(bank.keys.tolist()))
    every = Rows.concatenate([*causal_cache.read_all()])
    keys, held = example_keys(every), side_of(causal_cache, is_eval=True)
    out = {
        key for group in np.flatnonzero(held.counts()) for key in example_keys(held.read(int(group))).tolist()
    }
    assert out
    assert not out & set(bank.keys.tolist())
    rows = every.take(np.array([(keys == key).nonzero().item() for key in bank.keys]))
    for states, feature in zip(bank.states, features, strict=True):
        assert torch.equal(states, torch.from_numpy(rows.feature(feature).copy()).float())
    again = read_bank([side_of(causal_cache)], features, number, 7)
    assert torch.equal(again.keys, bank.keys)
    other = read_bank([side_of(causal_cache)], features, number, 8)
    assert number == 1 or not torch.equal(other.keys, bank.keys)


def test_more_than_there_are_is_refused(causal_cache: Cache) -> None:
    there = int(side_of(causal_cache).counts().sum())
    read_bank([side_of(causal_cache)], causal_cache.spec.features, there, 7)
    with pytest.raises(StudentError, match=rf"expected at most {there}, got {there + 1}\. Lower negatives"):
        read_bank([side_of(causal_cache)], causal_cache.spec.features, there + 1, 7)


def test_a_batch_knows_its_examples_and_a_bank_leaves_them_out(causal_cache: Cache) -> None:
    """By hand, example by example: the batch's own states, and of the bank's those of other examples."""
    rows = causal_cache.read(causal_cache.row_groups[0]).take(np.arange(5))
    batch = Collation(student_vocab=200, pad_id=0, features=causal_cache.spec.features).batch(rows)
    assert torch.equal(batch.example_keys, example_keys(rows))
    assert batch.example_keys.tolist() == [
        int.from_bytes(one[:8], "little", signed=True) for one in rows.example_ids
    ]
    torch.manual_seed(0)
    others = torch.randn(4, 32)
    theirs = batch.features[0]
    bank = Bank(
        torch.cat([torch.tensor([1, 2]), batch.example_keys[:1], torch.tensor([3, 4])]),
        (torch.cat([others[:2], theirs[:1], others[2:]]),),
    )
    ours = torch.randn(5, 32)
    pooled = Pooled([ours], [ours], [theirs], batch.example_keys, bank)
    for negatives, expected in ((5, others), (4, others[:3]), (3, others[:2]), (0, others[:0])):
        assert INFO_NCE.pooled is not None
        found = INFO_NCE.pooled(pooled, {**INFO_NCE.defaults, "negatives": float(negatives)})
        for place in range(5):
            alike = [F.cosine_similarity(ours[place], t, dim=0) / 0.07 for t in (*theirs, *expected)]
            by_hand = torch.stack(alike).logsumexp(0) - alike[place]
            torch.testing.assert_close(found[place], by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("negatives", [3, 4])
def test_no_row_of_the_bank_with_the_examples_own_state_is_its_negative(negatives: int) -> None:
    """A text that the corpus has twice, of which one is in the batch: the others still have it as a negative."""
    torch.manual_seed(1)
    ours, theirs, others = torch.randn(4, 32), torch.randn(4, 32), torch.randn(4, 32)
    others[2] = theirs[1] * 3  # a teacher of the other precision, or that does not normalise
    pooled = Pooled([ours], [ours], [theirs], torch.arange(4), Bank(torch.arange(10, 14), (others,)))
    assert INFO_NCE.pooled is not None
    found = INFO_NCE.pooled(pooled, {**INFO_NCE.defaults, "negatives": float(negatives)})
    for place in range(4):
        expected = [one for number, one in enumerate(others[:negatives]) if (place, number) != (1, 2)]
        alike = [F.cosine_similarity(ours[place], t, dim=0) / 0.07 for t in (*theirs, *expected)]
        torch.testing.assert_close(found[place], torch.stack(alike).logsumexp(0) - alike[place])


def test_a_run_goes_on_with_the_same_bank(run: Callable[..., Path]) -> None:
    told = {"losses": ["kl=1", "info_nce=1,negatives=32"], "max_steps": 6, "save_steps": 3}
    whole = run("whole", **told)
    checkpoint = str(whole / "checkpoint-3")
    again = run("again", resume_from_checkpoint=checkpoint, **told)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    told["losses"] = ["kl=1", "info_nce=1"]
    with pytest.raises(UsageError, match="another info_nce negatives"):
        run("other", resume_from_checkpoint=checkpoint, **told)
    plain = run("plain", **told)
    assert (plain / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
