"""The stream of batches: every row once over any ranks, resume at every step, errors where they belong."""

import itertools
import threading
from collections.abc import Iterator

import pytest
from accelerate import skip_first_batches

from schemas.cache import Cache
from schemas.errors import CorruptionError
from tests.trainer.tiny import VOCAB
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.stream.order import Order
from trainer.stream.replay import Address, Ahead, Replay, Share, loader
from trainer.stream.side import Side

Seen = list[tuple[tuple[int, ...], ...]]


LANES = 4


def replay(
    cache: Cache,
    rank: int = 0,
    world_size: int = 1,
    *,
    batch_size: int = 8,
    step: int = 16,
    lanes: int = LANES,
) -> Replay:
    side = Side(cache=cache, eval_fraction=0.2, is_eval=False)
    order = Order(counts=(side.counts(),), batch_size=step, row_groups=3, seed=5, lanes=lanes)
    share = Share(batch_size=batch_size, rank=rank, world_size=world_size)
    return Replay([side], order, Collation(student_vocab=VOCAB, pad_id=0), share)


def steps_of(batches: list[Batch], a_step: int) -> list[list[tuple[int, ...]]]:
    """The rows of each step, sorted."""
    keys = [list(key(batch)) if batch.counts.any() else [] for batch in batches]
    return [sorted(itertools.chain(*keys[first : first + a_step])) for first in range(0, len(keys), a_step)]


def key(batch: Batch) -> tuple[tuple[int, ...], ...]:
    """What tells a batch: its rows' tokens."""
    lengths = batch.attention_mask.sum(1).tolist()
    return tuple(tuple(row[:n]) for row, n in zip(batch.input_ids.tolist(), lengths, strict=True))


def epoch_of(one: Replay, epoch: int, skip: int = 0) -> list[Batch]:
    """An epoch through torch's loader, as transformers walks it, with its first batches skipped as it skips them."""
    data = loader(one)
    if skip:
        data = skip_first_batches(data, skip)
    data.batch_sampler.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    found = [item["batch"] for item in data]
    one.close()
    return found


@pytest.fixture(scope="module")
def alone(causal_cache: Cache) -> list[Seen]:
    one = replay(causal_cache)
    return [[key(batch) for batch in epoch_of(one, epoch)] for epoch in range(2)]


def test_every_training_row_once_an_epoch(causal_cache: Cache, alone: list[Seen]) -> None:
    one = replay(causal_cache)
    assert len(alone[0]) == one.share.num_batches(one.order) == len(loader(one))
    rows = [row for batch in alone[0] for row in batch]
    assert len(rows) == len(set(rows)) == len(one)
    assert sorted(rows) == sorted(row for batch in alone[1] for row in batch)
    assert alone[0] != alone[1]


@pytest.mark.parametrize(
    ("world_size", "batch_size"), [(1, 16), (1, 1), (2, 8), (2, 2), (4, 4), (4, 1), (1, 4)]
)
def test_any_ranks_and_any_accumulation_take_the_same_steps(
    causal_cache: Cache, world_size: int, batch_size: int
) -> None:
    one = replay(causal_cache)
    expected = steps_of(epoch_of(one, 1), one.share.batches_a_step(one.order))
    ranks = [
        epoch_of(replay(causal_cache, rank, world_size, batch_size=batch_size), 1)
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1, "all ranks take as many batches"
    a_step = 16 // (world_size * batch_size)
    apart = [steps_of(rank, a_step) for rank in ranks]
    assert [sorted(itertools.chain(*step)) for step in zip(*apart, strict=True)] == expected


@pytest.mark.parametrize("lanes", [64, 256])
def test_ranks_without_a_row_take_stand_ins(causal_cache: Cache, lanes: int) -> None:
    """121 rows in steps of 64: in the last one most ranks have none; with 256 lanes some have none at all."""
    ranks = [
        epoch_of(replay(causal_cache, rank, lanes, batch_size=1, step=lanes, lanes=lanes), 0)
        for rank in range(0, lanes, 7)
    ]
    assert {len(rank) for rank in ranks} == {-(-len(replay(causal_cache)) // lanes)}
    counted = [[bool(batch.counts.any()) for batch in rank] for rank in ranks]
    assert {all(rank) for rank in counted} == {True, False}
    assert all(batch.input_ids.numel() for rank in ranks for batch in rank)


@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_at_every_step_equals_the_uninterrupted_stream(causal_cache: Cache, world_size: int) -> None:
    rank = world_size - 1
    whole = [key(batch) for batch in epoch_of(replay(causal_cache, rank, world_size), 0)]
    for skip in range(len(whole)):
        resumed = epoch_of(replay(causal_cache, rank, world_size), 0, skip)
        assert [key(batch) for batch in resumed] == whole[skip:]


def test_resume_reads_only_the_run_it_is_in(causal_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    one = replay(causal_cache)
    last = Address(0, one.share.num_batches(one.order) - 1)
    first_read: list[int] = []
    original = Side.whole
    monkeypatch.setattr(Side, "whole", lambda self, group: first_read.append(group) or original(self, group))
    _ = one[last]
    one.close()
    run = one.order.num_runs - 1
    wanted = {piece.group for lane in range(LANES) for piece in one.order.pieces(0, run, lane)}
    assert set(first_read[: len(wanted)]) == wanted


def test_epochs_follow_without_a_new_thread(causal_cache: Cache, alone: list[Seen]) -> None:
    one = replay(causal_cache)
    walked = [Address(epoch, number) for epoch in range(2) for number in range(len(alone[0]))]
    first = one._ahead
    found = []
    for address in walked:
        found.append(key(one[address]))
        first = first or one._ahead
        assert one._ahead is first
    one.close()
    assert found == alone[0] + alone[1]


def test_a_broken_shard_is_an_error_in_the_training_loop(
    causal_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replay(causal_cache)

    def broken(self: Side, group: int) -> None:
        raise CorruptionError("a row group's bytes are not those that were sealed", where="shard-7")

    monkeypatch.setattr(Side, "whole", broken)
    with pytest.raises(CorruptionError, match="shard-7"):
        _ = one[Address(0, 0)]
    one.close()


def test_closing_ends_every_thread(causal_cache: Cache) -> None:
    one = replay(causal_cache)
    _ = one[Address(0, 0)]
    one.close()
    one.close()
    assert not [t for t in threading.enumerate() if t.name == "teachonce-ahead"]


def test_ahead_is_bounded_and_ends() -> None:
    started: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10):
            started.append(number)
            yield number

    ahead = Ahead(numbers, 2)
    assert next(ahead) == 0
    assert len(started) <= 5
    assert list(ahead) == list(range(1, 10))
    assert list(ahead) == []
    ahead.close()


@pytest.mark.parametrize(("rank", "world_size", "size"), [(1, 1, 1), (-1, 2, 1), (0, 0, 1), (0, 1, 0)])
def test_a_share_of_nonsense_is_refused(rank: int, world_size: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"rank|rows"):
        Share(rank=rank, world_size=world_size, batch_size=size)


@pytest.mark.parametrize(
    ("world_size", "size", "named"), [(3, 1, "4 lanes"), (2, 3, "16 rows"), (1, 32, "16")]
)
def test_a_share_that_does_not_fit_the_order_is_refused(
    causal_cache: Cache, world_size: int, size: int, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        replay(causal_cache, world_size=world_size, batch_size=size)
