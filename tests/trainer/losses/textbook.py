"""Every loss on the head as its paper writes it, over all V classes at once, in plain torch: nothing of the product's.

Each takes the teacher's logits, the student's, the gold ids, a temperature, and the parameters.
"""

from __future__ import annotations

import math
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


def dkd(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
    p, q = softened(teacher, student, t)
    is_gold = F.one_hot(gold, p.shape[-1]).bool()
    two = [torch.stack([x[is_gold], x.masked_fill(is_gold, 0).sum(-1)], -1) for x in (p, q)]
    others = [x[~is_gold].view(len(x), -1) for x in (p, q)]
    rest = [x / x.sum(-1, keepdim=True) for x in others]
    return (n["alpha"] * kl_of(two[0], two[1]) + n["beta"] * kl_of(rest[0], rest[1])) * t**2


def nkd(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
    is_gold = F.one_hot(gold, teacher.shape[-1]).bool()
    others = [(z / t)[~is_gold].view(len(z), -1).log_softmax(-1) for z in (teacher, student)]
    gold_part = -teacher.softmax(-1)[is_gold] * student.log_softmax(-1)[is_gold]
    return gold_part - n["gamma"] * t**2 * (others[0].exp() * others[1]).sum(-1)


def entropy_of(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


def pld(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
    found = []
    for p, z, y in zip((teacher / t).softmax(-1), student / t, gold.tolist(), strict=True):
        ranks = [y, *(i for i in p.argsort(descending=True).tolist() if i != y)]
        steps = [p[i] * (z[ranks[r:]].logsumexp(0) - z[i]) for r, i in enumerate(ranks)]
        found.append(torch.stack(steps).sum() * t**2)
    return torch.stack(found)


def bild(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
    warm, found = n["temperature"], []
    for ours, theirs in zip(student, teacher, strict=True):
        total = torch.zeros(())
        for leader in (theirs, ours):
            top = leader.detach().argsort(descending=True)[: int(n["k"])].tolist()
            pairs = [(a, b) for place, a in enumerate(top) for b in top[place + 1 :]]
            log_p, log_q = (
                (torch.stack([z[a] - z[b] for a, b in pairs]) / warm).log_softmax(-1) for z in (theirs, ours)
            )
            total = total + (log_p.exp() * (log_p - log_q)).sum()
        found.append(total * warm**2)
    return torch.stack(found)


def correlation(p: Tensor, q: Tensor) -> Tensor:
    return torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p, q, strict=True)])


def adaptive(p: Tensor, q: Tensor, n: Mapping[str, Any]) -> Tensor:
    """As the authors' code: ascending, the head is where the running sum is above `1 - mu`."""
    ordered, places = p.sort(-1)
    gap = (ordered - q.detach().gather(-1, places)).abs()
    is_head = ordered.cumsum(-1) > 1 - n["mu"]
    head = (gap * is_head).sum(-1)
    share = head / gap.sum(-1).clamp_min(1e-30)
    return share * kl_of(p, q) + (1 - share) * kl_of(q, p)


def standard(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
    warm = n["temperature"]
    p, q = (
        ((z - z.mean(-1, keepdim=True)) / (1e-7 + z.std(-1, keepdim=True)) / warm).softmax(-1)
        for z in (teacher, student)
    )
    return kl_of(p, q) * warm**2


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
    "contrast": divergence(lambda p, q, n: kl_of(p, n["alpha"] * p + (1 - n["alpha"]) * q)),
    "alpha_beta": divergence(alpha_beta),
    "rkl": divergence(lambda p, q, n: kl_of(q, p)),
    "brier": divergence(lambda p, q, n: (p - q).square().sum(-1)),
    "kl_entropy": lambda teacher, student, gold, t, n: (
        entropy_of(teacher) / math.log(teacher.shape[-1]) * kl_of(*softened(teacher, student, t)) * t**2
    ),
    "kl_student_unsure": lambda teacher, student, gold, t, n: (
        (entropy_of(student.detach()) >= n["nats"]) * kl_of(*softened(teacher, student, t)) * t**2
    ),
    "kl_teacher_unsure": lambda teacher, student, gold, t, n: (
        (entropy_of(teacher) >= n["nats"]) * kl_of(*softened(teacher, student, t)) * t**2
    ),
    "dkd": dkd,
    "nkd": nkd,
    "pld": pld,
    "bild": bild,
    "pearson": divergence(lambda p, q, n: correlation(p, q)),
    "akl": divergence(adaptive),
    "kl_standard": standard,
}


def binary(name: str) -> Dense:
    """The sum over a multi-label teacher's classes of the divergence of two outcomes."""

    def dense(teacher: Tensor, student: Tensor, gold: Tensor, t: float, n: Mapping[str, Any]) -> Tensor:
        pair = [torch.stack([z / t, torch.zeros_like(z)], -1) for z in (teacher, student)]
        return TEXTBOOK[name](pair[0], pair[1], gold, 1.0, n).sum(-1) * t**2

    return dense
