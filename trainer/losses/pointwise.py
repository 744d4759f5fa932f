"""Divergences that are a sum over ids of one function f(p, q): Jensen-Shannon, total variation, Hellinger, skewed and
alpha-beta, reverse KL.

Of an exact cache f is taken at each kept entry and at the tail, as one more outcome. Where entries are drawn and f is
finite at p = 0, the sum over all ids is estimated without bias: `sum of f(0, q)` over all V, which is a constant times
the sum of a power of q, and `(f(p, q) - f(0, q)) / pi` for each kept entry, with pi = p / weight the probability that
it was kept. A multi-label teacher's classes are two outcomes each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainer.losses.divergences import TAIL
from trainer.losses.loss import Loss, Parameter, Settings
from trainer.losses.scores import FLOOR, DenseScores, Scores
from trainer.losses.serving import EXACT, FINITE, ORIGIN
from trainer.losses.targets import TINY

At = Callable[[Tensor, Tensor, Mapping[str, float]], Tensor]
"""f from log p and log q, both finite."""


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    """A function f(p, q), and what it is at p = 0: `coefficient * q ** exponent`; None where that is infinite."""

    at: At
    zero: Callable[[Mapping[str, float]], tuple[float, float]] | None
    floor: float = FLOOR
    """What stands for log 0."""

    def softmax(self, scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
        """The divergence of each position, times T squared."""
        numbers = {name: value for name, value in settings.items() if isinstance(value, float)}
        if scores.targets.drawn:
            found = self._drawn(scores, numbers)
        elif settings["tail"] == "uniform":
            found = self._uniform(scores, numbers)
        else:
            found = self._exact(scores, numbers, with_tail=settings["tail"] == "bucket")
        return found * scores.temperature**2

    def sigmoid(self, scores: DenseScores, settings: Settings) -> Float[Tensor, " N"]:
        """Its sum over classes of two outcomes, times T squared."""
        numbers = {name: value for name, value in settings.items() if isinstance(value, float)}
        z, t = scores.logits / scores.temperature, scores.targets.logits / scores.temperature
        sides = [self._f(F.logsigmoid(s * t), F.logsigmoid(s * z), numbers) for s in (1, -1)]
        return (sides[0] + sides[1]).sum(-1) * scores.temperature**2

    def _f(self, log_p: Tensor, log_q: Tensor, numbers: Mapping[str, float]) -> Tensor:
        return self.at(log_p.clamp_min(self.floor), log_q.clamp_min(FLOOR), numbers)

    def _exact(self, scores: Scores, numbers: Mapping[str, float], *, with_tail: bool) -> Tensor:
        found = scores.sum(self._f(scores.teacher_log, scores.soft.kept, numbers))
        if not with_tail:
            return found
        at_tail = self._f(scores.tail.log(), scores.soft.tail, numbers)
        return found + torch.where(scores.has_tail, at_tail, 0)

    def _uniform(self, scores: Scores, numbers: Mapping[str, float]) -> Tensor:
        log_q = scores.dense_log()
        even = (scores.tail / scores.num_others).log().clamp_min(FLOOR)[:, None].expand_as(log_q)
        place = (scores.targets.position, scores.targets.ids)
        each = self._f(even.index_put(place, scores.teacher_log), log_q, numbers)
        return scores.among_classes(each).sum(-1)

    def _drawn(self, scores: Scores, numbers: Mapping[str, float]) -> Tensor:
        """In float64: of a rare entry f(p, q) and f(0, q) nearly cancel, and their difference is then divided by pi."""
        assert self.zero is not None  # the class of the loss has seen to it
        coefficient, exponent = self.zero(numbers)
        log_p, log_q = scores.teacher_log.double(), scores.soft.kept.double()
        beyond = self._f(log_p, log_q, numbers) - coefficient * (exponent * log_q).exp()
        kept = scores.sum((beyond * scores.targets.weights.double() * (-log_p).exp()).to(scores.logits.dtype))
        return coefficient * (1.0 if exponent == 1 else scores.power_sum(exponent)) + kept


def _mixed(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _jsd(log_p: Tensor, log_q: Tensor, numbers: Mapping[str, float]) -> Tensor:
    beta = numbers["beta"]
    log_m = _mixed(log_p, log_q, beta)
    return beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)


def _skew_kl(log_p: Tensor, log_q: Tensor, numbers: Mapping[str, float]) -> Tensor:
    return log_p.exp() * (log_p - _mixed(log_p, log_q, numbers["alpha"]))


def _skew_rkl(log_p: Tensor, log_q: Tensor, numbers: Mapping[str, float]) -> Tensor:
    return log_q.exp() * (log_q - _mixed(log_q, log_p, numbers["alpha"]))


def _alpha_beta(log_p: Tensor, log_q: Tensor, numbers: Mapping[str, float]) -> Tensor:
    a, b = numbers["alpha"], numbers["beta"]
    of_p, of_q = a / (a + b) * ((a + b) * log_p).exp(), b / (a + b) * ((a + b) * log_q).exp()
    return (of_p + of_q - (a * log_p + b * log_q).exp()) / (a * b)


SKEW_KL = Pointwise(at=_skew_kl, zero=lambda _: (0.0, 1.0))
SKEW_RKL = Pointwise(at=_skew_rkl, zero=lambda n: (-math.log(n["alpha"]), 1.0))


def _contrast(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    """Where nobody has said who wrote the texts, they are the teacher's."""
    of_teacher, students = SKEW_KL.softmax(scores, settings), scores.targets.students
    if students is None:
        return of_teacher
    return torch.where(students, SKEW_RKL.softmax(scores, settings), of_teacher)


REVERSE_KL = Pointwise(at=lambda p, q, _: q.exp() * (q - p), zero=None, floor=math.log(TINY))
"""Where p is 0 its logarithm is that of `TINY`: the reverse KL there is infinite."""


def _entry(
    name: str, paper: str, formula: str, point: Pointwise, /, *, passes: int = 0, **parameters: Parameter
) -> Loss:
    return Loss(
        name=name,
        formula=formula,
        paper=paper,
        kind=EXACT if point.zero is None else FINITE,
        parameters={**parameters, "tail": TAIL},
        softmax=point.softmax,
        sigmoid=point.sigmoid,
        softens=True,
        passes=passes,
    )


LOSSES = (
    _entry(
        "jsd",
        "arXiv:2306.13649",
        "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q",
        Pointwise(at=_jsd, zero=lambda n: (-(1 - n["beta"]) * math.log1p(-n["beta"]), 1.0)),
        beta=Parameter.share(0.5),
    ),
    _entry(
        "tvd",
        "arXiv:2307.15190",
        "1/2 sum |p - q|",
        Pointwise(at=lambda p, q, _: (p.exp() - q.exp()).abs() / 2, zero=lambda _: (0.5, 1.0)),
    ),
    _entry(
        "hellinger",
        "Hellinger (1909)",
        "1/2 sum (sqrt p - sqrt q)^2",
        Pointwise(at=lambda p, q, _: ((p / 2).exp() - (q / 2).exp()).square() / 2, zero=lambda _: (0.5, 1.0)),
    ),
    _entry(
        "skew_kl",
        "arXiv:2402.03898",
        "KL(p || alpha p + (1 - alpha) q)",
        SKEW_KL,
        alpha=Parameter.share(0.1),
    ),
    _entry(
        "skew_rkl",
        "arXiv:2402.03898",
        "KL(q || alpha q + (1 - alpha) p)",
        SKEW_RKL,
        alpha=Parameter.share(0.1),
    ),
    _entry(
        "alpha_beta",
        "arXiv:2505.04560",
        "sum (a p^(a+b) + b q^(a+b)) / (a b (a+b)) - p^a q^b / (a b), a = alpha, b = beta",
        Pointwise(
            at=_alpha_beta,
            zero=lambda n: (1 / (n["alpha"] * (n["alpha"] + n["beta"])), n["alpha"] + n["beta"]),
        ),
        passes=1,
        alpha=Parameter.between(0.2, 10.0),
        beta=Parameter.between(0.7, 10.0),
    ),
    _entry(
        "rkl",
        "arXiv:2306.08543",
        "KL(q || p)",
        REVERSE_KL,
    ),
    Loss(
        name="contrast",
        formula="skew_kl on texts that the teacher wrote, skew_rkl on those that the student wrote",
        paper="arXiv:2503.07067",
        kind=ORIGIN,
        parameters={"alpha": Parameter.share(0.1), "tail": TAIL},
        softmax=_contrast,
        softens=True,
    ),
)
