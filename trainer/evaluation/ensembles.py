"""Several students as one: a mean of their distributions, their votes, or a mean whose weights are fitted.

An ensemble is a module that is called as a student is, so it is measured by a task's own code. Its cost is that of all
its members. A linear pool of distributions is what distillation from several teachers averages too (Hinton et al.,
arXiv:1503.02531; weights by maximum likelihood: Jacobs et al. 1991, whose log-likelihood is concave in the weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from scipy.optimize import minimize
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from schemas.errors import StudentError
from schemas.spec import Spec
from schemas.task import Score
from trainer.losses.targets import NO_LABEL, DenseTargets, SparseTargets

_TINY_SHARE = 1e-3
"""What of a tie's mean counts beside votes: less than a vote of one in five hundred."""
_LEAST = 1e-30
"""What a probability is taken to be at least: its logarithm stays finite."""


class Member(NamedTuple):
    """A student, and how it is called."""

    model: Any
    pad_id: int
    takes: frozenset[str]
    """Of `token_type_ids` and `features`, what it is given."""


class Ensemble(nn.Module):
    """Students with one output layer's classes, called together."""

    weights: Tensor

    def __init__(self, members: Sequence[Member], score: Score, how: str) -> None:
        super().__init__()
        self._members, self.score, self.how = list(members), score, how
        self.models = nn.ModuleList(member.model for member in members)
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members)), persistent=False)

    def each(
        self, input_ids: Int64[Tensor, "B S"], attention_mask: Int64[Tensor, "B S"], **others: Any
    ) -> Float[Tensor, "M B *S V"]:
        """Each member's logits, of the batch as its own collation would make it."""
        found = []
        for member in self._members:
            given = {name: value for name, value in others.items() if name in member.takes}
            ids = input_ids.masked_fill(attention_mask == 0, member.pad_id)
            found.append(member.model(input_ids=ids, attention_mask=attention_mask, **given).logits.float())
        return torch.stack(found)

    def forward(self, output_hidden_states: bool = False, **inputs: Any) -> SequenceClassifierOutput:
        """The members' logits joined to one's."""
        assert not output_hidden_states  # an ensemble is measured, and has no states
        logits = self.each(**inputs)
        return SequenceClassifierOutput(
            logits=votes(logits, self.score)
            if self.how == "vote"
            else pooled(logits, self.weights, self.score)
        )


def pooled(
    logits: Float[Tensor, "M *N V"], weights: Float[Tensor, " M"], score: Score
) -> Float[Tensor, "*N V"]:
    """Logits of the weighted mean of M distributions; of values their weighted mean.

    Softmax: log-probabilities. Sigmoid: the logit of each class's mean probability.
    """
    shape = [len(weights)] + [1] * (logits.ndim - 1)
    if score == "identity":
        return (weights.to(logits).reshape(shape) * logits).sum(0)
    shares = weights.to(logits).log().reshape(shape)
    if score == "softmax":
        return (logits.log_softmax(-1) + shares).logsumexp(0)
    return (F.logsigmoid(logits) + shares).logsumexp(0) - (F.logsigmoid(-logits) + shares).logsumexp(0)


def votes(logits: Float[Tensor, "M *N V"], score: Score) -> Float[Tensor, "*N V"]:
    """Scores whose largest (softmax), or sign (sigmoid), is what most members say; ties go by the mean of their
    distributions. They are no distribution's logits."""
    if score == "softmax":
        mean = logits.softmax(-1).mean(0)
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0) + mean * (1 - _TINY_SHARE)
    share = (logits > 0).double().mean(0) - 0.5
    return (share + _TINY_SHARE * (logits.double().sigmoid().mean(0) - 0.5)).float()


def check_ensemble(how: str, spec: Spec) -> None:
    """Whether students of a cache can be one.

    Raises:
        StudentError: the task has no classes or scores of a model's own head; or values would vote.
    """
    if not spec.kind.has_named_classes or spec.kind.reads_images:
        raise StudentError(
            f"students of {spec.task} are compared, and no ensemble is made of them",
            expected="classes, or scores, of texts or words",
            do="Leave --ensemble out",
        )
    if how == "vote" and spec.score == "identity":
        raise StudentError(
            "values cannot be voted for: the teacher gives no classes", do="Use --ensemble mean or fitted"
        )


Part = tuple[Tensor, SparseTargets | DenseTargets]
"""A batch's logits `[M, N, V]`, and what teacher and corpus say of its positions."""


def fit_weights(parts: Sequence[Part], score: Score) -> Float[Tensor, " M"]:
    """Weights of a mean, each at least 0 and 1 in all: those that make the labels likeliest (of values: the squared
    error least), and where no position has a label, the teacher's distribution.

    Raises:
        StudentError: the optimiser found none.
    """
    loss_of = _likelihood(parts) if score == "softmax" else _of_values(parts, score)

    def told(values: Any) -> tuple[float, Any]:
        weights = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        loss = loss_of(weights)
        (gradient,) = torch.autograd.grad(loss, weights)
        return loss.item(), gradient.numpy()

    number = len(parts[0][0])
    found = minimize(
        told,
        np.full(number, 1 / number),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * number,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 500, "ftol": 1e-10},
    )
    if not (found.success and math.isfinite(found.fun)):
        raise StudentError("no weights of an ensemble were found", got=str(found.message))
    weights = torch.from_numpy(np.clip(found.x, 0, 1))
    return (weights / weights.sum()).float()


def _likelihood(parts: Sequence[Part]) -> Callable[[Tensor], Tensor]:
    """Mean cross entropy with the labels, or with the teacher where there are none, of softmax scores."""
    has_labels = any(bool((targets.gold != NO_LABEL).any()) for _, targets in parts)
    every, shares = [], []
    for logits, targets in parts:
        assert isinstance(targets, SparseTargets)
        probabilities, places, ids = logits.double().softmax(-1), targets.position, targets.ids
        weights = targets.weights
        if has_labels:
            places = torch.nonzero(targets.gold != NO_LABEL)[:, 0]
            ids, weights = targets.gold[places], torch.ones(len(places))
        every.append(probabilities[:, places, ids])
        shares.append(weights.double())
    each, share = torch.cat(every, -1), torch.cat(shares)
    return lambda weights: -(share * (weights @ each).clamp_min(_LEAST).log()).sum() / share.sum()


def _of_values(parts: Sequence[Part], score: Score) -> Callable[[Tensor], Tensor]:
    """Mean squared error of values; mean cross entropy of classes that are apart."""
    logits = torch.cat([part for part, _ in parts], 1).double()
    targets = DenseTargets.joined([target for _, target in parts if isinstance(target, DenseTargets)])
    known, wanted = targets.labelled, targets.gold.double()
    if not bool(known.any()):
        known, wanted = torch.ones_like(known), targets.logits.double()
        wanted = wanted.sigmoid() if score == "sigmoid" else wanted
    logits, wanted = logits[:, known], wanted[known]
    if score == "identity":
        return lambda weights: ((torch.tensordot(weights, logits, 1) - wanted) ** 2).mean()
    each = logits.sigmoid()
    return lambda weights: F.binary_cross_entropy(
        torch.tensordot(weights, each, 1).clamp(_LEAST, 1 - 1e-12), wanted
    )
