"""Sums over all of a student's ids with gradients of their own: nothing is kept of them but probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.losses.targets import TINY


class LogOutside(torch.autograd.Function):
    """`log of sum of q` over all ids but some, with the gradient `q [not among them] / sum - q`, over T."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, probs: Tensor, excluded: tuple[Tensor, Tensor], temperature: float
    ) -> Tensor:
        position, ids = excluded
        # not in place: another term may have saved these probabilities
        mass = probs.index_put((position, ids), probs.new_zeros(len(ids))).sum(-1).clamp_min(TINY)
        ctx.save_for_backward(probs, position, ids, mass)
        ctx.temperature = temperature
        return mass.log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        probs, position, ids, mass = ctx.saved_tensors
        gradient = probs * (1 / mass - 1)[:, None]
        gradient[position, ids] = -probs[position, ids]
        return gradient.mul_((grad / ctx.temperature)[:, None]), None, None, None


class PowerSum(torch.autograd.Function):
    """`sum of q^s`, with the gradient `s (q^s - q sum of q^s) / T` in the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, exponent: float, temperature: float) -> Tensor:
        found = probs.pow(exponent).sum(-1)
        ctx.save_for_backward(probs, found)
        ctx.exponent, ctx.temperature = exponent, temperature
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        probs, found = ctx.saved_tensors
        gradient = probs.pow(ctx.exponent).addcmul_(probs, -found[:, None])
        return gradient.mul_((grad * ctx.exponent / ctx.temperature)[:, None]), None, None, None
