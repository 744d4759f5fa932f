"""The stream of batches: every row once over any ranks, resume at every step, errors where they belong."""

import threading
from collections.abc import Iterator

import pytest
from accelerate import skip_first_batches

from schemas.cache import Cache
from schemas.errors import CorruptionError
from tests.trainer.tiny import VOCAB
from trainer.batches.collate import Batch, Collation
from trainer.stream.order import Order, Side
from trainer.stream.replay import Address, Ahead, Replay, Share, loader

Seen = list[tuple[tuple[int, ...], ...]]


def replay(cache: Cache, rank: int = 0, world_size: int = 1, *, batch_size: int = 8) -> Replay:
    side = Side(cache=cache, eval_fraction=0.2, is_eval=False)
    order = Order.of(side.counts(), batch_size=batch_size, row_groups=3, seed=5, shuffled=True)
    share = Share(rank=rank, world_size=world_size)
    return Replay(side, order, Collation(student_vocab=VOCAB, pad_id=0), share)


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
    assert len(alone[0]) == one.order.num_batches == len(loader(one))
    rows = [row for batch in alone[0] for row in batch]
    assert len(rows) == len(set(rows)) == len(one)
    assert sorted(rows) == sorted(row for batch in alone[1] for row in batch)
    assert alone[0] != alone[1]


@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_any_number_of_ranks_sees_the_same_global_order(
    causal_cache: Cache, alone: list[Seen], world_size: int
) -> None:
    ranks = [epoch_of(replay(causal_cache, rank, world_size), 1) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1, "all ranks take as many steps"
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert [key(batch) for batch in together if batch.counts.any()] == alone[1]
    stand_ins = [batch for batch in together if not batch.counts.any()]
    assert len(stand_ins) == len(together) - len(alone[1])


@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_at_every_step_equals_the_uninterrupted_stream(causal_cache: Cache, world_size: int) -> None:
    rank = world_size - 1
    whole = [key(batch) for batch in epoch_of(replay(causal_cache, rank, world_size), 0)]
    for skip in range(len(whole)):
        resumed = epoch_of(replay(causal_cache, rank, world_size), 0, skip)
        assert [key(batch) for batch in resumed] == whole[skip:]


def test_resume_reads_only_the_window_it_is_in(causal_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    one = replay(causal_cache)
    last = Address(0, one.order.num_batches - 1)
    first_read: list[int] = []
    original = Side.whole
    monkeypatch.setattr(Side, "whole", lambda self, group: first_read.append(group) or original(self, group))
    _ = one[last]
    one.close()
    wanted = one.order.segments(one.order.layout(0), one.order.num_windows - 1)
    assert first_read[: len(wanted)] == [segment.group for segment in wanted]


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


@pytest.mark.parametrize(("rank", "world_size"), [(1, 1), (-1, 2), (0, 0)])
def test_a_share_of_nonsense_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=str(rank)):
        Share(rank=rank, world_size=world_size)
