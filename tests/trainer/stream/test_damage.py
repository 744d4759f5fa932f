"""Nothing is trained on that a damaged cache holds: the run ends with an error that names the shard."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import Cache
from schemas.errors import CorruptionError
from schemas.shards.reader import group_end
from schemas.versions.delta import entry_name
from tests.schemas.damage import flips
from tests.trainer.batches.test_pool import every
from trainer.stream.order import Order
from trainer.stream.runs import Run, read_runs
from trainer.stream.side import Side


@pytest.fixture
def copy(causal_cache: Cache, tmp_path: Path) -> Cache:
    """The cache again, to break."""
    return Cache.open(shutil.copytree(causal_cache.storage.root, tmp_path / "cache"))


def first_epoch(cache: Cache, read: list[Run]) -> None:
    """Puts the runs of an epoch into `read`, opening the cache as a run does."""
    side = Side(cache=Cache.open(cache.storage.root), eval_fraction=0.2, is_eval=False)
    order = Order(counts=(side.counts(),), batch_size=8, row_groups=2, lanes=2)
    runs = read_runs([side], order, range(2), 0, 0)
    read.extend(next(runs) for _ in range(order.num_runs))


def values(run: Run) -> list[Any]:
    return [
        (name, getattr(column, "values", column).tobytes()) for name, column in every(run.rows).data.items()
    ]


def test_a_stream_gives_whole_runs_and_then_an_error(copy: Cache) -> None:
    whole: list[Run] = []
    first_epoch(copy, whole)
    right = [values(run) for run in whole]
    assert len(right) > 2
    begun = 0
    for shard in copy.shards:
        for _ in flips(Path(copy.storage.root) / shard.name, 25, seed=2):
            read: list[Run] = []
            with pytest.raises(CorruptionError, match=shard.name):
                first_epoch(copy, read)
            assert [values(run) for run in read] == right[: len(read)]
            begun += bool(read)
    assert begun, "some flips lie in row groups whose turn comes late"


@pytest.mark.parametrize("damage", ["codes", "footer", "cut", "gone", "swapped"])
def test_training_ends_with_the_name_of_the_shard(
    run: Callable[..., Path], copy: Cache, tmp_path: Path, damage: str
) -> None:
    shard, other = copy.shards[-1], copy.shards[0]
    path = Path(copy.storage.root) / shard.name
    opened = copy.open_shard(shard)
    data = bytearray(path.read_bytes())
    if damage == "swapped":
        data = bytearray((path.with_name(other.name)).read_bytes())
    elif damage == "cut":
        del data[-100:]
    else:
        last = opened.footer.row_groups[-1]
        data[(last.start + last.end) // 2 if damage == "codes" else group_end(opened) + 50] ^= 4
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
    with pytest.raises(CorruptionError, match=shard.name):
        run(cache=copy)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_log_that_hides_a_shard_is_not_trained_on(run: Callable[..., Path], copy: Cache) -> None:
    log = Path(copy.storage.root) / entry_name(0)
    lines = log.read_text().splitlines(keepends=True)
    hidden = next(line for line in lines if copy.shards[0].name in line)
    log.write_text("".join(line for line in lines if line != hidden))
    with pytest.raises(CorruptionError, match=entry_name(0)):
        run(cache=copy)
