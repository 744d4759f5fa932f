"""Memory that a CPU's logits of one batch after the other are written into.

glibc hands a block of more than 32 MiB back to the system when it is freed, and has the next one page by page: of 64
MiB some milliseconds each time, beside a head's product of tens. Cost: one such block stays with the teacher.
"""

from __future__ import annotations

import torch


class LogitMemory:
    """Blocks `[N, V]` of float32. Who takes one has it alone until it is given back; one is kept."""

    def __init__(self) -> None:
        self._idle: list[torch.Tensor] = []

    def take(self, positions: int, vocab_size: int) -> torch.Tensor:
        """At least so many rows; what stands in them is left from before."""
        try:
            held = self._idle.pop()
        except IndexError:  # the first, or another thread has it
            return torch.empty(positions, vocab_size)
        if len(held) >= positions and held.shape[1] == vocab_size:
            return held
        return torch.empty(positions, vocab_size)

    def give_back(self, held: torch.Tensor) -> None:
        """For who takes one next."""
        self._idle[:] = [held]
