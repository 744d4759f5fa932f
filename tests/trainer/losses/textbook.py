"""Every loss on the head as its paper writes it, over all V classes at once, in plain torch: nothing of the product's.

Each takes the teacher's logits, the student's, the gold ids, a temperature, and the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Dense = Callable[[Tensor, Tensor, Tensor, float, Mapping[str, Any]], Tensor]


def kl_of(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - p * q.log()).sum(-1)


def softened(teacher: Tensor, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)


def divergence(of: Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor]) -> Dense:
    def dense(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
        p, q = softened(teacher, student, t)
        return of(p, q, n) * t**2

    return dense


def jsd(p: Tensor, q: Tensor, n: Mapping[str, Any]) -> Tensor:
    m = n["beta"] * p + (1 - n["beta"]) * q
    return n["beta"] * kl_of(p, m) + (1 - n["beta"]) * kl_of(q, m)


def alpha_beta(p: Tensor, q: Tensor, n: Mapping[str, Any]) -> Tensor:
    a, b = n["alpha"], n["beta"]
    inner = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -inner.sum(-1) / (a * b)


def symmetric(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
    one_hot = F.one_hot(gold, student.shape[-1]).to(student)
    log_label = torch.where(one_hot > 0, 0.0, n["floor"])
    reverse = -(student.softmax(-1) * log_label).sum(-1)
    return n["alpha"] * F.cross_entropy(student, gold, reduction="none") + n["beta"] * reverse


TEXTBOOK: Mapping[str, Dense] = {
    "kl": divergence(lambda p, q, n: kl_of(p, q)),
    "kl_kept": divergence(lambda p, q, n: kl_of(p, q)),
    "mse_logits": lambda teacher, student, gold, t, n: (teacher - student).square().mean(-1),
    "ce": lambda teacher, student, gold, t, n: F.cross_entropy(student, gold, reduction="none"),
    "ce_smoothed": lambda teacher, student, gold, t, n: F.cross_entropy(
        student, gold, reduction="none", label_smoothing=n["epsilon"]
    ),
    "ce_symmetric": symmetric,
    "ce_generalised": lambda teacher, student, gold, t, n: (
        (1 - student.softmax(-1).gather(-1, gold[:, None])[:, 0] ** n["q"]) / n["q"]
    ),
    "jsd": divergence(jsd),
    "tvd": divergence(lambda p, q, n: (p - q).abs().sum(-1) / 2),
    "hellinger": divergence(lambda p, q, n: (p.sqrt() - q.sqrt()).square().sum(-1) / 2),
    "skew_kl": divergence(lambda p, q, n: kl_of(p, n["alpha"] * p + (1 - n["alpha"]) * q)),
    "skew_rkl": divergence(lambda p, q, n: kl_of(q, n["alpha"] * q + (1 - n["alpha"]) * p)),
    "alpha_beta": divergence(alpha_beta),
    "rkl": divergence(lambda p, q, n: kl_of(q, p)),
}


def binary(name: str) -> Dense:
    """The sum over a multi-label teacher's classes of the divergence of two outcomes."""

    def dense(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
        pair = [torch.stack([z / t, torch.zeros_like(z)], -1) for z in (teacher, student)]
        return TEXTBOOK[name](pair[0], pair[1], gold, 1.0, n).sum(-1) * t**2

    return dense
