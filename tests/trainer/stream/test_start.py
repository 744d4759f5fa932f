"""Training starts without reading a shard, and holds few footers however long it reads."""

import shutil
from pathlib import Path

import pytest

from schemas import Cache
from schemas.shards.group_counts import FOOTERS_HELD
from tests.schemas.requests import asked, of_shards
from trainer.stream.order import Order
from trainer.stream.runs import read_runs
from trainer.stream.side import Side


@pytest.mark.parametrize("is_eval", [False, True])
def test_no_shard_is_read_before_the_first_run(causal_cache: Cache, is_eval: bool) -> None:
    with asked() as requests:
        cache = Cache.open(causal_cache.storage.root)
        side = Side(cache=cache, eval_fraction=0.05, is_eval=is_eval)
        order = Order(counts=(side.counts(),), batch_size=8, row_groups=2)
    assert order.num_rows == sum(len(side.read(group)) for group in range(len(causal_cache.row_groups)))
    assert not of_shards(requests)


def test_only_what_is_read_is_opened(causal_cache: Cache, tmp_path: Path) -> None:
    cache = Cache.open(shutil.copytree(causal_cache.storage.root, tmp_path / "cache"))
    side = Side(cache=cache, eval_fraction=0.05, is_eval=False)
    order = Order(counts=(side.counts(),), batch_size=1, row_groups=1, lanes=1, shuffled=False)
    runs = read_runs([side], order, range(1), 0, 0)
    with asked() as requests:
        next(runs)
    assert len({name for _, name in of_shards(requests)}) < len(cache.shards)
    for _ in range(order.num_runs):
        next(runs)
    assert "footers" not in vars(cache)
    assert 0 < len(cache._footers) <= FOOTERS_HELD
