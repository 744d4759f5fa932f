"""Which task each step of a run is of: a pure function of the tasks' orders and shares, the seed and the epoch.

An epoch has as many steps as all tasks have together. Of these a task has the same number in every epoch, by its share;
they are permuted. So where a task stands in its own stream is arithmetic, and a resumed run needs the step alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from schemas.errors import UsageError
from trainer.stream.apportioned import apportioned
from trainer.stream.order import Order
from trainer.stream.replay import Address, Share

_TASKS = 3
"""Beside the kinds of permutations of `stream/order.py`."""


class Place(NamedTuple):
    """One batch of one task."""

    task: int
    address: Address
    """In the task's own stream."""
    is_filling: bool = False
    """The step has no such batch: the one before stands for it, and counts for nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TasksOrder:
    """Of tasks whose orders have steps of one size. Reads nothing."""

    orders: tuple[Order, ...]
    weights: tuple[float, ...]
    """How many steps each task has, relative to the others."""
    seed: int = 0

    @property
    def num_rows(self) -> int:
        """Of all tasks."""
        return sum(order.num_rows for order in self.orders)

    @functools.cached_property
    def num_steps(self) -> int:
        """Of an epoch."""
        return sum(order.num_steps for order in self.orders)

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Each task's steps in an epoch."""
        return tuple(apportioned([Fraction(weight) for weight in self.weights], self.num_steps))

    def tasks(self, epoch: int) -> Int64[np.ndarray, " T"]:
        """The task of each of an epoch's steps."""
        return self._places(epoch)[0]

    def places(self, epoch: int, number: int, share: Share) -> Place:
        """Where an epoch's `number`-th batch comes from; each step has the same number of batches."""
        step, batch = divmod(number, share.batches_a_step(self.orders[0]))
        tasks, before = self._places(epoch)
        task = int(tasks[step])
        order = self.orders[task]
        own_epoch, own_step = divmod(epoch * self.counts[task] + int(before[step]), order.num_steps)
        last = share.batches_of(order, own_step) - 1
        first = own_step * share.batches_a_step(order)
        return Place(task, Address(own_epoch, first + min(batch, last)), batch > last)

    def _places(self, epoch: int) -> tuple[Int64[np.ndarray, " T"], Int64[np.ndarray, " T"]]:
        """Each step's task, and how many of the epoch's earlier steps are that task's."""
        if epoch not in self._drawn:
            stream = np.random.Philox(np.random.SeedSequence([self.seed, _TASKS, epoch]))
            raw = np.asarray(stream.random_raw(self.num_steps), np.uint64)
            tasks = np.repeat(np.arange(len(self.counts)), self.counts)[np.argsort(raw, kind="stable")]
            before = np.empty_like(tasks)
            for task, count in enumerate(self.counts):
                before[tasks == task] = np.arange(count)
            self._drawn.clear()
            self._drawn[epoch] = tasks, before
        return self._drawn[epoch]

    @functools.cached_property
    def _drawn(self) -> dict[int, tuple[Int64[np.ndarray, " T"], Int64[np.ndarray, " T"]]]:
        """Those of the last epoch that was asked for."""
        return {}


def order_of_tasks(
    orders: Mapping[str, Order], shares: Mapping[str, float] | None, sampling: float, seed: int
) -> TasksOrder:
    """Tasks by their shares; else by their steps to the power of `sampling`.

    Raises:
        UsageError: a task would have no step in an epoch.
    """
    weights: Sequence[float]
    if shares is None:
        weights = [order.num_steps**sampling for order in orders.values()]
    else:
        weights = [shares[name] for name in orders]
    found = TasksOrder(orders=tuple(orders.values()), weights=tuple(map(float, weights)), seed=seed)
    for name, count in zip(orders, found.counts, strict=True):
        if not count:
            raise UsageError(
                f"the task {name} has no step in an epoch",
                got=f"{found.num_steps} steps for all tasks",
                do="Raise its share, or lower sampling: 0 gives all tasks alike",
            )
    return found
