"""The head and the losses of a causal LM in chunks of positions: neither logits `[N, V]` nor their gradient exist.

As in Liger kernels (arXiv:2410.10989), each chunk's gradient is taken while its logits are there, and nothing is
recomputed in the backward pass, which only scales what was stored. Cost: the gradients of the hidden states
`[N, H]` and of the head `[V, H]` are held from the forward on, and gradients of gradients are not available. All
chunks are written over the same two buffers `[n, V]`.

A gradient that is taken in the forward is taken before a loss scaler has multiplied the loss. So in float16 it is that
of the loss times a power of two which makes the largest weight about 1: else most of a mean's over thousands of
positions would be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from schemas.rows.ragged import Array
from trainer.losses.buffers import Buffers
from trainer.models.heads import Head, LogitTransform

CHUNK_ELEMENTS = 2**24
"""Logits of a chunk at most: 64 MiB in float32."""
_FEW_ELEMENTS, _FEW_POSITIONS, _SMALL_VOCAB = 13 * 2**16, 256, 4096
"""Of a processor, whose caches hold no larger chunk and whose products gain no more from one, though from fewer
positions much less. Of 4,096 ids it is 208: there a chunk's two buffers are a third of all that is taken."""

Terms = Callable[[Tensor, int, int], Tensor]
"""From the logits of positions `first` to `last` to the sums of the loss terms over them, `[num_terms]`."""


class FusedLoss(NamedTuple):
    """A weighted sum of terms, each summed over all positions."""

    loss: Float[Tensor, ""]
    terms: Float[Tensor, " T"]
    """Each term's own sum, unweighted and without gradient."""


def fused_loss(
    hidden: Float[Tensor, "N H"],
    head: Head,
    terms: Terms,
    weights: Float[Tensor, " T"],
    *,
    chunk_elements: int | None = None,
    cuts: Array | None = None,
    reach: int = 0,
    single: bool = False,
) -> FusedLoss:
    """`sum_i weights[i] * terms[i]` of the head's logits, differentiable in hidden states, weight and bias.

    A chunk has `chunk_elements` logits at most, without it as many as suit the device. `cuts` are the only places,
    ascending from 0 to N, between which a chunk may begin and end. Terms of positions `first` to `last` see the logits
    of so many positions behind them as `reach` says, as far as there are any.
    With `single`, one backward pass alone may follow: what is held becomes the gradient, without a copy.
    Products are taken in autocast's dtype where it is on, else in the hidden states' own; losses in float32 at least.
    """
    if chunk_elements is None:
        chunk_elements = suited(len(head.weight), hidden.device)
    chunk = Chunking(
        terms,
        weights,
        head.transform,
        chunk_elements,
        torch.is_grad_enabled(),
        cuts=cuts,
        reach=reach,
        single=single,
    )
    loss, sums = _FusedLoss.apply(hidden, head.weight, head.bias, chunk)  # type: ignore[no-untyped-call]
    return FusedLoss(loss, sums)


def suited(vocab_size: int, device: torch.device) -> int:
    """How many logits a chunk has at most on a device."""
    if device.type != "cpu":
        return CHUNK_ELEMENTS
    few = _FEW_POSITIONS * vocab_size if vocab_size > _SMALL_VOCAB else 0
    return min(2 * CHUNK_ELEMENTS, max(_FEW_ELEMENTS, few))


class Chunking(NamedTuple):
    """What the fused pass needs besides tensors that take a gradient."""

    terms: Terms
    weights: Float[Tensor, " T"]
    transform: LogitTransform
    chunk_elements: int
    with_gradient: bool
    scale: Tensor | float = 1.0
    """Of the gradients that are stored."""
    cuts: Array | None = None
    """Where chunks may be cut; None: anywhere."""
    reach: int = 0
    """Positions behind a chunk whose logits are there too."""
    single: bool = False
    """Whether the gradients that are held may be written over."""


def chunks(
    num_positions: int, vocab_size: int, chunk_elements: int, cuts: Array | None = None
) -> Iterator[tuple[int, int]]:
    """First and last position of nearly equal chunks of at most `chunk_elements` logits (at least one position); with
    `cuts`, of chunks as long as these allow, or as short, where two of them are further apart."""
    largest = max(1, chunk_elements // vocab_size)
    if cuts is not None:
        yield from _between(cuts, largest)
        return
    number = -(-num_positions // largest)
    size = -(-num_positions // max(1, number))
    for first in range(0, num_positions, max(1, size)):
        yield first, min(first + size, num_positions)


def _between(cuts: Array, largest: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at + 1 < len(cuts):
        furthest = int(np.searchsorted(cuts, cuts[at] + largest, side="right")) - 1
        last = max(at + 1, furthest)
        yield int(cuts[at]), int(cuts[last])
        at = last


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, chunking: Chunking
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        hidden_c, weight_c = hidden.detach().to(dtype), weight.detach().to(dtype)
        if dtype == torch.float16:
            chunking = chunking._replace(scale=_half_scale(chunking.weights))
        needed = [chunking.with_gradient and need for need in ctx.needs_input_grad[:3]]
        grads = [_zeros(t, n) for t, n in zip((hidden, weight, bias), needed, strict=True)]
        sums = chunking.weights.new_zeros(len(chunking.weights), dtype=_loss_dtype(dtype))
        buffers = Buffers()
        with torch.autocast(hidden.device.type, enabled=False):
            for first, last in chunks(len(hidden), len(weight), chunking.chunk_elements, chunking.cuts):
                seen = slice(first, min(last + chunking.reach, len(hidden)))
                products = _products(hidden_c[seen], weight_c, sums, buffers)
                if bias is not None:
                    products += bias.detach()
                found, grad = _chunk(products, chunking, first, last, any(needed))
                sums += found
                if grad is not None:
                    if grads[0] is not None:
                        grads[0][seen] += torch.mm(grad.to(dtype), weight_c)
                    _accumulate(grads[1], grads[2], grad.to(dtype), hidden_c[seen])
        ctx.scale, ctx.single, ctx.held = chunking.scale, chunking.single, None
        if chunking.single:
            ctx.held = grads
        else:
            ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(sums)
        return (chunking.weights.to(sums.dtype) * sums).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        factor, held = grad / ctx.scale, ctx.held if ctx.single else ctx.saved_tensors
        if held is None:
            raise RuntimeError("a fused loss with single=True has run its backward pass already")
        ctx.held = None
        return *(None if g is None else _times(g, factor, over=ctx.single) for g in held), None


def _products(hidden: Tensor, weight: Tensor, sums: Tensor, buffers: Buffers) -> Tensor:
    """The head's linear products in the losses' dtype, written over those of the chunk before."""
    found = buffers.of("products", (len(hidden), len(weight)), sums)
    if hidden.dtype == found.dtype:
        return torch.mm(hidden, weight.t(), out=found)
    return found.copy_(torch.mm(hidden, weight.t()))


def _chunk(
    products: Tensor, chunking: Chunking, first: int, last: int, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sums of a chunk's terms, and the gradient of their weighted sum in the head's linear products."""
    with torch.set_grad_enabled(with_gradient):
        products.requires_grad_(with_gradient)
        sums = chunking.terms(chunking.transform(products), first, last)
        if not with_gradient:
            return sums, None
        loss = (chunking.weights.to(sums.dtype) * sums).sum()
        (grad,) = torch.autograd.grad(loss * chunking.scale, products)
    return sums.detach(), grad


def _half_scale(weights: Float[Tensor, " T"]) -> Float[Tensor, ""]:
    """A power of two: what it multiplies is rounded nowhere but where float16 has no room."""
    return torch.exp2(-weights.max().clamp_min(torch.finfo(torch.float32).tiny).log2().floor())


def _times(gradient: Tensor, factor: Tensor, *, over: bool) -> Tensor:
    """The product, written over the gradient where that may be. A loss scaler's factor may be beyond float16."""
    if gradient.dtype != torch.float16:
        factor = factor.to(gradient.dtype)
        return gradient.mul_(factor) if over else gradient * factor
    return (gradient.float() * factor).half()


def _accumulate(of_weight: Tensor | None, of_bias: Tensor | None, grad: Tensor, hidden: Tensor) -> None:
    """Adds a chunk's part to the gradients of weight and bias. Sums over its positions are beyond float16."""
    if grad.dtype == torch.float16:
        grad, hidden = grad.float(), hidden.float()
    if of_weight is not None and of_weight.dtype == grad.dtype:
        of_weight.addmm_(grad.t(), hidden)
    elif of_weight is not None:
        of_weight.add_(torch.mm(grad.t(), hidden))
    if of_bias is not None:
        of_bias.add_(grad.sum(0))


def _zeros(tensor: Tensor | None, needed: bool) -> Tensor | None:
    return torch.zeros_like(tensor) if tensor is not None and needed else None


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _loss_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
