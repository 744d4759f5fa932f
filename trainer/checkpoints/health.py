"""What a step tells beside its loss: whether loss and gradient are finite, and whether a rank was asked to stop.

One rank on a CPU looks at once, before the optimizer takes the step. A GPU is not waited for: its answer is looked at
one step later, and nothing is saved before the last answer was heard. Several ranks agree by a maximum over both, so
that all end at the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.checkpoints.signals import Signals

_SKIPPED_AT_MOST = 50


class _Answer(NamedTuple):
    step: int
    flags: Tensor
    """On the host: not finite, asked to stop."""
    arrived: torch.cuda.Event | None


class Health:
    """Looks after one run; `fail` is called with the step that was not finite, and raises."""

    def __init__(
        self, device: torch.device, ranks: int, signals: Signals, fail: Callable[[int], None]
    ) -> None:
        self._device, self._ranks, self._signals, self._fail = device, ranks, signals, fail
        self._pending: _Answer | None = None
        self._agreed, self._skipped = False, 0

    @property
    def must_stop(self) -> bool:
        """Whether a signal came, as far as all ranks know of it."""
        return self._agreed if self._ranks > 1 else self._signals.asked is not None

    def ask(self, step: int, *values: Tensor) -> None:
        """Whether these values of a step are finite, and whether to stop. On a GPU, of the step before."""
        bad = torch.stack([~value.detach().isfinite().all() for value in values]).any()
        self.hear()
        self._pending = self._sent(step, bad)
        if self._device.type != "cuda":
            self.hear()

    def hear(self) -> None:
        """Acts upon the last answer."""
        answer, self._pending = self._pending, None
        if answer is None:
            return
        if answer.arrived is not None:
            answer.arrived.synchronize()
        bad, stop = answer.flags.tolist()
        self._agreed |= bool(stop)
        if bad:
            self._fail(answer.step)

    def skipped(self, step: int, was_skipped: bool) -> None:
        """float16's scaler leaves out a step that overflows, and then scales less: that helps once or twice."""
        self._skipped = self._skipped + 1 if was_skipped else 0
        if self._skipped > _SKIPPED_AT_MOST:
            self._fail(step)

    def agree(self) -> bool:
        """Asks all ranks now; for where there is no step."""
        self.hear()
        if self._ranks > 1:
            self._pending = self._sent(-1, torch.zeros((), dtype=torch.bool, device=self._device))
            self.hear()
        return self.must_stop

    def _sent(self, step: int, bad: Tensor) -> _Answer:
        asked = torch.full((), self._signals.asked is not None, device=self._device)
        flags = torch.stack([bad.to(self._device), asked]).to(torch.int32)
        if self._ranks > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        if self._device.type != "cuda":
            return _Answer(step, flags, None)
        host = torch.empty(2, dtype=torch.int32, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Answer(step, host, arrived)
