"""Memory `[n, V]` that chunk after chunk of positions is written over, and the likeliest id of each position.

Fresh memory of that size is handed back to the system when it is freed, and costs more to have again, page by page,
than a softmax to fill: at V = 49,152 2.4 ns a logit against 0.7.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_BLOCK = 256
"""Ids whose largest is found first: the largest alone takes a twentieth of the time that its place takes too."""


class Buffers:
    """One block of memory for each name. Who takes a name again writes over what it was given before."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    def like(self, name: Hashable, values: Tensor) -> Tensor:
        """Memory of a tensor's shape, dtype and device, contiguous; what it holds is left from before."""
        return self.of(name, values.shape, values)

    def of(self, name: Hashable, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of a shape, of a tensor's dtype and device."""
        number = torch.Size(shape).numel()
        held = self._held.get(name)
        if held is None or held.numel() < number or (held.dtype, held.device) != (like.dtype, like.device):
            held = self._held[name] = torch.empty(number, dtype=like.dtype, device=like.device)
        return held[:number].view(shape)


def likeliest(values: Float[Tensor, "N V"]) -> tuple[Float[Tensor, "N 1"], Int64[Tensor, "N 1"]]:
    """The largest value of each row and its first place."""
    width = values.shape[-1]
    whole = width // _BLOCK * _BLOCK
    if values.device.type != "cpu" or width < 2 * _BLOCK:
        top, best = values.max(-1, keepdim=True)
        return top, best
    tops = values[:, :whole].reshape(len(values), whole // _BLOCK, _BLOCK).amax(-1)
    if whole < width:
        tops = torch.cat([tops, values[:, whole:].amax(-1, keepdim=True)], -1)
    places = tops.argmax(-1, keepdim=True) * _BLOCK + torch.arange(_BLOCK)
    places = places.clamp_max(width - 1)  # the last block may be shorter: its last id stands again
    top, inner = values.gather(-1, places).max(-1, keepdim=True)
    return top, places.gather(-1, inner)
