"""Row groups that stay in memory: what is given is the same, nothing is read twice, and no more is held than may be."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from schemas.cache import Cache
from schemas.rows.rows import Rows
from tests.trainer.batches.test_pool import every
from tests.trainer.commanding import train
from tests.trainer.outputs import same
from trainer.stream.held import Held, size_of
from trainer.stream.order import Order
from trainer.stream.runs import read_runs
from trainer.stream.side import Side

EPOCHS = 3


def epochs(side: Side) -> list[list[bytes]]:
    """Every column of every run of some epochs."""
    order = Order(counts=(side.counts(),), batch_size=8, row_groups=2, lanes=2)
    runs = read_runs([side], order, range(2), 0, 0)
    return [
        [
            np.ascontiguousarray(getattr(column, "values", column)).tobytes()
            for column in every(run.rows).data.values()
        ]
        for run in itertools.islice(runs, EPOCHS * order.num_runs)
    ]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The row groups that were decoded."""
    found: list[tuple[int, int]] = []
    read = Cache.read_group

    def counting(self: Cache, shard: int, place: int) -> Rows:
        found.append((shard, place))
        return read(self, shard, place)

    monkeypatch.setattr(Cache, "read_group", counting)
    return found


def test_epochs_are_the_same_and_no_row_group_is_read_twice(
    causal_cache: Cache, reads: list[tuple[int, int]]
) -> None:
    anew = epochs(Side(cache=causal_cache, eval_fraction=0.2, is_eval=False))
    assert len(reads) > len(set(reads)), "without, each epoch reads anew"
    reads.clear()
    held = Held(10**9)
    side = Side(cache=causal_cache, eval_fraction=0.2, is_eval=False, held=held)
    assert epochs(side) == anew
    assert sorted(reads) == sorted(set(reads)), "each once"
    reads.clear()
    other = Side(cache=causal_cache, eval_fraction=0.2, is_eval=True, held=held)
    assert sum(len(other.read(group)) for group in range(len(other.counts()))) == other.counts().sum()
    assert not reads, "both sides have them from one place"


def test_no_more_is_held_than_may_be(causal_cache: Cache, reads: list[tuple[int, int]]) -> None:
    sizes = [size_of(rows) for rows in causal_cache.read_all()]
    limit = sum(sizes) // 2
    held = Held(limit)
    side = Side(cache=causal_cache, eval_fraction=0.0, is_eval=False, held=held)
    for _ in range(2):
        for group in range(len(side.counts())):
            side.read(group)
    assert 0 < sum(map(size_of, held._rows.values())) <= limit
    assert len(reads) == 2 * len(sizes) - len(held._rows)


def test_texts_and_lists_are_counted(causal_cache: Cache) -> None:
    rows = next(causal_cache.read_all())
    lists = sum(rows.ragged(name).values.nbytes for name in ("input_ids", "kept_ids", "kept_codes"))
    assert lists < size_of(rows) < 100 * lists
    texts = np.array(["x" * 1000, None, "y" * 500], object)
    told = Rows(spec=rows.spec, data={"text": texts})
    assert 1500 < size_of(told) < 1500 + 1000


def test_weights_do_not_depend_on_it(causal_cache: Cache, tmp_path: Path) -> None:
    for name, gigabytes in (("none", "0"), ("little", "1e-5"), ("all", "1")):
        assert train(causal_cache, tmp_path, name, "--memory_cache_gb", gigabytes, max_steps=20) == 0
    assert same(tmp_path / "none", tmp_path / "little")
    assert same(tmp_path / "none", tmp_path / "all")
