"""The losses, as pure functions from a student's logits and a teacher's kept entries to nats (or squares) a position.

Softmax teachers are sparse: `[N, V]` is never built for the teacher. What is not kept of it is one *tail bucket*, the
mass of all other ids together. A position whose kept entries are the whole vocabulary has no tail; there the entries,
rounded by the codec, are renormalised. With K = V every loss equals its dense textbook form (a test says so).

A sampling policy's entries are weighted without bias, and have no tail. They are never renormalised or clipped, though
they rarely sum to 1: the gradient is `W q - w`, with W the sum of the weights w, and its expectation is the dense one.

Sigmoid and identity teachers have few classes; they are dense `[N, V]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

NO_LABEL = -100
"""The gold label of a position that has none."""

_TINY = 1e-30
"""Smallest mass that a student's tail is taken to have: its logarithm stays finite."""


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """What a softmax teacher and the corpus say of N positions, at one temperature."""

    ids: Int64[Tensor, " E"]
    position: Int64[Tensor, " E"]
    """Which of the N positions each entry belongs to; ascending."""
    weights: Float[Tensor, " E"]
    """At the temperature. Probabilities, which sum to 1 for each position with the tail; or a sampling policy's
    weights, which do so in expectation."""
    logprobs: Float[Tensor, " E"]
    """The entries' own log-probabilities at temperature 1; NaN where the cache does not store a drawn entry's."""
    logits: Float[Tensor, " E"] | None
    """The teacher's own logits (temperature 1), NaN as `logprobs`; None where the cache cannot tell them."""
    tail: Float[Tensor, " N"]
    """Probability of all ids that are not kept; exactly 0 where every id is, and where entries are drawn."""
    negentropy: Float[Tensor, " N"]
    """Sum of p log p over the teacher's outcomes in nats, or its estimate; 0 where it is not known."""
    gold: Int64[Tensor, " N"]
    """The corpus's own label, or `NO_LABEL`."""

    def chunk(self, first: int, last: int, entries: slice) -> SparseTargets:
        """Positions `first` to `last`, whose entries are those of the slice."""
        return SparseTargets(
            ids=self.ids[entries],
            position=self.position[entries] - first,
            weights=self.weights[entries],
            logprobs=self.logprobs[entries],
            logits=None if self.logits is None else self.logits[entries],
            tail=self.tail[first:last],
            negentropy=self.negentropy[first:last],
            gold=self.gold[first:last],
        )


@dataclass(frozen=True, kw_only=True)
class DenseTargets:
    """What a sigmoid or identity teacher and the corpus say of N positions."""

    logits: Float[Tensor, "N V"]
    gold: Float[Tensor, "N V"]
    """Multi-hot labels or values; 0 where there are none."""
    labelled: Bool[Tensor, " N"]

    def chunk(self, first: int, last: int) -> DenseTargets:
        """Positions `first` to `last`."""
        logits, gold, labelled = (part[first:last] for part in (self.logits, self.gold, self.labelled))
        return DenseTargets(logits=logits, gold=gold, labelled=labelled)


def segment_sum(
    values: Float[Tensor, " E"], position: Int64[Tensor, " E"], num_positions: int
) -> Float[Tensor, " N"]:
    """Sum of the entries of each position."""
    return values.new_zeros(num_positions).index_add(0, position, values)


def kl_divergence(
    logits: Float[Tensor, "N V"], targets: SparseTargets, temperature: float
) -> Float[Tensor, " N"]:
    """KL(teacher || student) of each position in nats, times T squared (arXiv:1503.02531, section 2.1).

    `sum p_i (log p_i - log q_i) + p_tail (log p_tail - log q_tail)`, with the student's `q` at the same temperature
    and `q_tail` the mass that it gives to all other ids.
    """
    scaled = logits if temperature == 1 else logits / temperature
    cross: Tensor = _SparseCrossEntropy.apply(scaled, targets)  # type: ignore[no-untyped-call]
    return (targets.negentropy + cross) * temperature**2


def kl_of_kept(
    logits: Float[Tensor, "N V"], targets: SparseTargets, temperature: float
) -> Float[Tensor, " N"]:
    """KL from the kept entries, divided by their sum, to the student's whole softmax, in nats, times T squared.

    What is not kept is taken to be impossible: biased, and only here to be compared with.
    """
    mass = segment_sum(targets.weights, targets.position, len(targets.tail)).clamp_min(_TINY)
    weights = targets.weights / mass[targets.position]
    kept = replace(
        targets,
        weights=weights,
        tail=torch.zeros_like(targets.tail),
        negentropy=segment_sum(torch.xlogy(weights, weights), targets.position, len(targets.tail)),
    )
    return kl_divergence(logits, kept, temperature)


class _SparseCrossEntropy(torch.autograd.Function):
    """`-(sum p_i log q_i + p_tail log q_tail)` with `q = softmax(logits)`, and p the teacher's weights as they are.

    The tail's mass is summed over the tail itself, not taken as `1 - sum q_i`: a student that is nearly sure keeps an
    exact gradient. One `[N, V]` buffer holds first q and then the gradient: with M the teacher's mass,
    `dL/dz = M q - p` on kept entries and `M q - p_tail q / q_tail` on the tail.
    """

    @staticmethod
    def forward(ctx: Any, logits: Float[Tensor, "N V"], targets: SparseTargets) -> Float[Tensor, " N"]:
        ids, position = targets.ids, targets.position
        weights, tail = targets.weights.to(logits.dtype), targets.tail.to(logits.dtype)
        top, best = logits.max(-1, keepdim=True)
        buffer = logits.softmax(-1)
        lse = (top - buffer.gather(-1, best).log())[:, 0]
        kept = buffer[position, ids]
        buffer[position, ids] = 0
        q_tail = buffer.sum(-1).clamp_min(_TINY)
        mass = segment_sum(weights, position, len(tail)) + tail
        if ctx.needs_input_grad[0]:
            buffer *= (mass - tail / q_tail)[:, None]
            buffer[position, ids] = kept * mass[position] - weights
            ctx.save_for_backward(buffer)
        log_q = logits[position, ids] - lse[position]
        return -segment_sum(weights * log_q, position, len(tail)) - tail * q_tail.log()

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, " N"]) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad[:, None] * gradient, None


def cross_entropy(logits: Float[Tensor, "N V"], gold: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
    """-log q(gold) in nats; 0 where there is no label."""
    return F.cross_entropy(logits, gold, reduction="none", ignore_index=NO_LABEL)


def squared_error(logits: Float[Tensor, "N V"], targets: SparseTargets) -> Float[Tensor, " N"]:
    """Mean over a position's entries whose logit is known of (teacher's - student's) squared (arXiv:2105.08919)."""
    assert targets.logits is not None  # `Objective.check` has seen to it
    known = ~targets.logits.isnan()
    difference = torch.where(known, logits[targets.position, targets.ids] - targets.logits.nan_to_num(), 0)
    counts = segment_sum(known.to(difference.dtype), targets.position, len(targets.tail))
    return segment_sum(difference.square(), targets.position, len(targets.tail)) / counts.clamp_min(1)


def binary_kl_divergence(
    logits: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], temperature: float
) -> Float[Tensor, " N"]:
    """Sum over the classes of a multi-label teacher of the KL between two Bernoullis, in nats, times T squared."""
    z, t = logits / temperature, teacher / temperature
    p = t.sigmoid()
    on = p * (F.logsigmoid(t) - F.logsigmoid(z))
    off = (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-z))
    return (on + off).sum(-1) * temperature**2


def binary_cross_entropy(
    logits: Float[Tensor, "N V"], gold: Float[Tensor, "N V"], labelled: Bool[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Mean over classes of the binary cross entropy in nats; 0 where there is no label."""
    each = F.binary_cross_entropy_with_logits(logits, gold, reduction="none").mean(-1)
    return torch.where(labelled, each, 0)


def mean_squared_error(
    values: Float[Tensor, "N V"], wanted: Float[Tensor, "N V"], counted: Bool[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Mean over the values of a position of the squared difference; 0 where it does not count."""
    return torch.where(counted, (values - wanted).square().mean(-1), 0)


def feature_distance(
    ours: Float[Tensor, "B D"], theirs: Float[Tensor, "B D"], kind: str
) -> Float[Tensor, " B"]:
    """Distance of pooled features: `mse` (mean over D) or `cosine` (1 - cos, as DistilBERT: arXiv:1910.01108)."""
    if kind == "mse":
        return (ours - theirs).square().mean(-1)
    return 1 - F.cosine_similarity(ours, theirs, dim=-1)
