"""The k largest logits of each position, of equal ones those of lower ids: compiled on a CPU, in torch elsewhere.

`torch.topk` promises no order among equal values, so there ties at the cut are found and those positions sorted in
full.

Costs on a CPU, for N positions of V logits: one pass for the largest of each block. In torch the top-k then looks only
into the k blocks with the largest maxima; what the compiled loop looks into, `top_loops.py` says.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from pipelines.keep.top_loops import fill_largest
from schemas.rows.kernels import IS_COMPILED

_BLOCK = 64
_FEW, _FEW_THREADS = 256, 4
"""So many are found by insertion, of half as many steps each; and so many of torch's threads take together as long as
the one of a compiled loop."""


def top_k(
    logits: Float[torch.Tensor, "N V"], k: int
) -> tuple[Float[torch.Tensor, "N K"], Int[torch.Tensor, "N K"]]:
    """The k largest logits of each position and their ids, descending; equal logits by ascending id."""
    if k == logits.shape[1]:
        return _sorted(logits)
    loops = IS_COMPILED and logits.device.type == "cpu" and logits.dtype == torch.float32
    if loops and k <= _FEW and torch.get_num_threads() <= _FEW_THREADS:
        return by_loops(logits.contiguous(), k)
    return by_torch(logits, k)


def by_loops(
    logits: Float[torch.Tensor, "N V"], k: int
) -> tuple[Float[torch.Tensor, "N K"], Int[torch.Tensor, "N K"]]:
    """`top_k` as one compiled loop, in this thread."""
    values, ids = torch.empty(len(logits), k), torch.empty(len(logits), k, dtype=torch.int64)
    numbers = logits.numpy()
    fill_largest(numbers, numbers.view(np.int32), ids.numpy(), values.numpy())
    return values, ids


def by_torch(
    logits: Float[torch.Tensor, "N V"], k: int
) -> tuple[Float[torch.Tensor, "N K"], Int[torch.Tensor, "N K"]]:
    """`top_k` in torch, on any device, in all of its threads."""
    values, ids, tied = _unordered_top_k(logits, k)
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    rows = tied.nonzero()[:, 0]
    if len(rows):
        exact_values, exact_ids = _sorted(logits[rows])
        values[rows], ids[rows] = exact_values[:, :k], exact_ids[:, :k]
    return values, ids


def _sorted(
    logits: Float[torch.Tensor, "N V"],
) -> tuple[Float[torch.Tensor, "N V"], Int[torch.Tensor, "N V"]]:
    values, ids = logits.sort(dim=1, descending=True, stable=True)
    return values, ids


def _unordered_top_k(
    logits: Float[torch.Tensor, "N V"], k: int
) -> tuple[Float[torch.Tensor, "N K"], Int[torch.Tensor, "N K"], Bool[torch.Tensor, " N"]]:
    """Values, ids, and where more than k logits reach the smallest of them, so that the choice was not forced.

    On a CPU by blocks: the k largest lie in the k blocks with the largest maxima, and a tie at the cut shows in the
    maxima or among those blocks' entries. So one pass over V is enough.
    """
    num_blocks = logits.shape[1] // _BLOCK
    if logits.is_cuda or num_blocks <= 4 * k:
        values, ids = logits.topk(k, dim=1, sorted=False)
        return values, ids, (logits >= values.amin(1, keepdim=True)).sum(1) > k
    whole = num_blocks * _BLOCK
    blocks = logits[:, :whole].view(len(logits), num_blocks, _BLOCK)
    maxima = blocks.amax(2)
    chosen = maxima.topk(k, dim=1, sorted=False).indices
    candidates = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    places = (chosen[:, :, None] * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    rest = torch.arange(whole, logits.shape[1]).expand(len(logits), -1)
    candidates = torch.cat([candidates, logits[:, whole:]], dim=1)
    values, index = candidates.topk(k, dim=1, sorted=False)
    cut = values.amin(1, keepdim=True)
    tied = ((maxima >= cut).sum(1) > k) | ((candidates >= cut).sum(1) > k)
    return values, torch.cat([places, rest], dim=1).gather(1, index), tied
