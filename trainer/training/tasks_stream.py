"""The batches of several tasks, each from its own replay, in the order of their steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from trainer.batches.batch import Batch
from trainer.stream.replay import Address, Addresses, Replay, Share
from trainer.training.tasks_order import TasksOrder


class TaskBatch(NamedTuple):
    """A batch, and whose it is."""

    task: str
    batch: Batch


class TasksReplay(Dataset[TaskBatch]):
    """Several tasks' training sides as one: batches by address, each task read ahead by itself."""

    def __init__(self, replays: Mapping[str, Replay], order: TasksOrder) -> None:
        self.replays, self.order = dict(replays), order
        self._last: Batch | None = None

    @property
    def share(self) -> Share:
        """The tasks': it is the same for all."""
        return next(iter(self.replays.values())).share

    def __len__(self) -> int:
        return self.order.num_rows

    def __getitem__(self, address: Address) -> TaskBatch:
        place = self.order.places(address.epoch, address.number, self.share)
        name = list(self.replays)[place.task]
        if place.is_filling:
            assert self._last is not None  # a step is begun with its first batch
            return TaskBatch(name, self._last.weightless())
        self._last = self.replays[name][place.address]
        return TaskBatch(name, self._last)

    def close(self) -> None:
        """Stops reading ahead."""
        for replay in self.replays.values():
            replay.close()


class _Numbers(BatchSampler):
    """The addresses of an epoch's batches, each as a list of one."""

    def __init__(self, order: TasksOrder, share: Share) -> None:
        self._number = order.num_steps * share.batches_a_step(order.orders[0])
        self.epoch = 0

    @property
    def batch_sampler(self) -> _Numbers:
        """Itself: transformers looks for `set_epoch` at the loader's `batch_sampler.batch_sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Address]]:  # type: ignore[override]
        return ([Address(self.epoch, number)] for number in range(self._number))

    def __len__(self) -> int:
        return self._number


def tasks_loader(replay: TasksReplay) -> DataLoader[Any]:
    """A plain torch loader over all tasks; gives `{"task": name, "batch": Batch}`."""
    numbers = _Numbers(replay.order, replay.share)
    return DataLoader(replay, batch_sampler=numbers, collate_fn=_only, generator=torch.Generator())


def task_loader(name: str, replay: Replay) -> DataLoader[Any]:
    """As `tasks_loader`, of one task."""
    addresses = Addresses(replay.order, replay.share)
    named = lambda batches: _only([TaskBatch(name, *batches)])  # noqa: E731
    return DataLoader(replay, batch_sampler=addresses, collate_fn=named, generator=torch.Generator())


def _only(batches: Sequence[TaskBatch]) -> dict[str, Any]:
    (found,) = batches
    return found._asdict()
