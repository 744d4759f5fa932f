"""Batches of compiled loops are those of numpy: to the last bit, but for sums of floats."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from schemas.rows import kernels
from tests.synthetic import SPECS, random_rows
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.batches.entries import can_gather
from trainer.batches.kernels import gather_exact, gather_weighted
from trainer.batches.pool import Pool
from trainer.losses.targets import SparseTargets

pytestmark = pytest.mark.skipif(not kernels.IS_COMPILED, reason="numba is not installed")
SUMMED = ("weights", "tail", "negentropy")
"""What is divided by a sum, or is one."""


def batches(name: str, vocab: int, temperature: float) -> list[Batch]:
    """Of rows of two row groups, in an order of their own."""
    spec = SPECS[name]
    parts = [(random_rows(spec, 20, seed).rows, np.arange(20)[::step]) for seed, step in ((1, 1), (2, 2))]
    pool = Pool(parts)
    order = np.random.default_rng(3).permutation(len(pool))
    collation = Collation(student_vocab=vocab, pad_id=0, temperature=temperature, shift=torch.clone)
    return collation.batches(pool, np.array_split(order, 4))


def equal(ours: Any, theirs: Any, name: str) -> None:
    if isinstance(ours, SparseTargets):
        for field in fields(ours):
            equal(getattr(ours, field.name), getattr(theirs, field.name), field.name)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype, name
        if name in SUMMED:
            torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6, equal_nan=True)
        else:
            assert ours.numpy().tobytes() == theirs.numpy().tobytes(), name
    elif isinstance(ours, np.ndarray):
        assert (ours == theirs).all(), name
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-6), name


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("lacks_ids", [False, True])
def test_batches_are_those_of_numpy(name: str, lacks_ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[name]
    if lacks_ids and spec.score != "softmax":
        pytest.skip("its classes are the student's")
    vocab = spec.vocab_size - 1 - spec.vocab_size // 3 if lacks_ids else spec.vocab_size
    for temperature in spec.temperatures if spec.is_sampling else (1.0, 2.5):
        monkeypatch.setattr(kernels, "IS_COMPILED", True)
        ours = batches(name, vocab, temperature)
        monkeypatch.setattr(kernels, "IS_COMPILED", False)
        for one, other in zip(ours, batches(name, vocab, temperature), strict=True):
            for field in fields(one):
                equal(getattr(one, field.name), getattr(other, field.name), field.name)


def test_which_policies_go_by_compiled_loops() -> None:
    gathered = {name for name, spec in SPECS.items() if can_gather(spec, 1.0)}
    assert {"threshold", "top_p"} <= gathered
    assert not {"sampled", "temperatures", "sigmoid"} & gathered


HOSTILE = [[0, -5, 3], [0, -500, 3], [-1, 2, 2], [32767] * 3, [2047, 0, 1]]
"""Codes of a shard that may have been sealed by anybody: below zero, or beyond the table."""
STEPS = (1 / 64, 1 / 16)


def empty(size: int) -> tuple[Any, Any]:
    entries = np.empty(size, np.int32), *(np.empty(size, np.float32) for _ in range(2))
    return entries, np.zeros((2, 1), np.float32)


def tables() -> tuple[Any, Any]:
    """Of few steps, of which the last is too small to be any."""
    of_top, of_code = np.exp(-np.arange(8) / 64), np.append(np.exp(-np.arange(8) / 16), 0.0)
    return of_top.astype(np.float32), of_code.astype(np.float32)


@pytest.mark.parametrize("codes", HOSTILE)
def test_codes_that_mean_nothing_stay_in_the_table(codes: list[int]) -> None:
    size, one = len(codes), np.array([0, len(codes)])
    entries, found = empty(size)
    gather_exact(
        *(np.zeros(1, np.int64), np.zeros((2, 1), np.int64), np.array([0, 1]), one),
        *(np.array([size], np.int32), np.arange(size, dtype=np.int32), np.array(codes, np.int16)),
        *(np.array([3], np.int16), np.array([*STEPS, 99.0]), tables(), entries, found),
    )
    levels = np.cumsum(codes)
    assert (entries[1] == levels.astype(np.float32) * np.float32(-1 / 16) - np.float32(3 / 64)).all()
    probs = np.where(levels < 8, np.exp(np.maximum(levels, 0) / -16 - 3 / 64), 0.0)
    np.testing.assert_allclose(entries[2], probs / max(1, probs.sum()), rtol=1e-6)
    np.testing.assert_allclose(found[0, 0], max(0, 1 - probs.sum()), atol=1e-6)


@pytest.mark.parametrize("codes", HOSTILE)
def test_so_are_those_of_drawn_entries(codes: list[int]) -> None:
    size, one = len(codes), np.array([0, len(codes)])
    entries, found = empty(size)
    none, ids = (np.empty(0, np.int32), np.empty(0, np.int16)), np.arange(size, dtype=np.int32)
    counts = np.zeros(1, np.int32), np.array([size], np.int32)
    gather_weighted(
        *(np.zeros(1, np.int64), np.zeros((2, 1), np.int64), np.array([0, 1]), (np.zeros(2, np.int64), one)),
        *(counts, none, (ids, np.array(codes, np.int16)), np.array([3], np.int16)),
        *(np.array([*STEPS, 1 / 32]), tables(), entries, found),
    )
    logprobs = np.array(codes, np.float32) * np.float32(-1 / 16) - np.float32(3 / 64)
    assert (entries[1] == logprobs).all()
    assert set(entries[2].tolist()) == {1 / 32}
    np.testing.assert_allclose(found[1, 0], logprobs.sum() / 32, rtol=1e-6)
