"""A pool gives what taking and joining its parts gives; and batches that are made together are those made apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from schemas.cache import Cache
from schemas.rows import kernels, ragged
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from tests.synthetic import SPECS, random_rows
from trainer.batches import pool as pool_module
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.batches.pool import Pool


def every(rows: Pool) -> Rows:
    return rows.take(np.arange(len(rows)))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Ragged):
        return same(a.values, b.values) and same(a.offsets, b.offsets) and same(a.validity, b.validity)
    return a.dtype == b.dtype and a.tolist() == b.tolist()


@pytest.mark.parametrize("long", [1, 192])
@pytest.mark.parametrize("name", SPECS)
def test_it_is_its_parts_taken_and_joined(name: str, long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether columns are copied in pieces (here nearly all), or by index."""
    monkeypatch.setattr(kernels, "IS_COMPILED", False)
    monkeypatch.setattr(pool_module, "LONG", long)
    monkeypatch.setattr(ragged, "LONG", long)
    rng = np.random.default_rng(0)
    parts = [
        (random_rows(SPECS[name], 9, seed).rows, np.sort(rng.permutation(9)[:n]))
        for seed, n in ((1, 9), (2, 1), (3, 5))
    ]
    joined = Rows.concatenate([rows.take(chosen) for rows, chosen in parts])
    found = Pool(parts)
    assert len(found) == 15
    assert found.lengths.tolist() == joined.input_ids.lengths.tolist()
    for index in (
        np.arange(15),
        rng.permutation(15),
        rng.permutation(15)[:4],
        np.array([3]),
        np.array([14, 14, 0]),
    ):
        expected, got = joined.take(index), found.take(index)
        assert expected.data.keys() == got.data.keys()
        assert all(same(expected.data[key], got.data[key]) for key in got.data)
    assert found.take(np.arange(3), ("input_ids", "nothing")).data.keys() == {"input_ids"}


def test_long_columns_are_neither_joined_nor_looked_up_value_by_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "LONG", 8)
    rows = random_rows(SPECS["top_p"], 40).rows
    found = Pool([(rows, np.arange(40))])
    found.take(np.arange(40)[::-1])
    assert "kept_ids" not in found._joined
    assert "example_id" in found._joined


def flat(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value.dtype, tuple(value.shape), value.numpy().tobytes()]
    if isinstance(value, np.ndarray):
        return [value.tolist()]
    if isinstance(value, tuple):
        return [part for item in value for part in flat(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [part for field in fields(value) for part in flat(getattr(value, field.name))]
    return [value]


def check(rows: Rows, collation: Collation) -> None:
    rng = np.random.default_rng(1)
    cuts = [cut for cut in np.array_split(rng.permutation(len(rows)), 7) if len(cut)]
    together = collation.batches(Pool([(rows, np.arange(len(rows)))]), cuts)
    apart = [collation.batch(rows.take(cut)) for cut in cuts]
    for one, other in zip(together, apart, strict=True):
        assert isinstance(one, Batch)
        assert flat(one) == flat(other), "to the last bit"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("vocab", [200, 60])
def test_batches_made_together_are_those_made_apart(
    causal_cache: Cache, vocab: int, temperature: float
) -> None:
    rows = Rows.concatenate(list(causal_cache.read_all()))
    spec = causal_cache.spec
    check(rows, Collation(student_vocab=vocab, pad_id=0, temperature=temperature, features=spec.features))


@pytest.mark.parametrize(
    "name", ["threshold", "temperatures", "sampled", "masked", "all", "sigmoid", "classes"]
)
def test_also_of_draws_and_of_classes(name: str) -> None:
    rows = random_rows(SPECS[name], 60).rows
    check(rows, Collation(student_vocab=SPECS[name].vocab_size, pad_id=0))


def test_batches_of_a_classifier_that_lacks_labels(class_cache_of: Callable[..., Cache]) -> None:
    cache = class_cache_of(labelled=False)
    check(Rows.concatenate(list(cache.read_all())), Collation(student_vocab=3, pad_id=0))
