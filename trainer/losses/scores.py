"""What losses ask of a student's logits, each made once for a chunk of positions and shared by all terms.

One softmax a temperature gives the log-probabilities of the kept entries, of the gold id and of the tail, with one
analytic gradient: with g the gradients of these and `q = softmax(z)`, `dL/dz = sum of g at its id - q * sum g`, and on
the tail `q g_tail / q_tail` more. So a term costs a few numbers an entry, and the `[N, V]` work is that of one softmax
a temperature however many terms there are. Sums over all of V beyond that (`power_sum`) each cost a pass, and a loss
says how many it has.

The tail's mass is summed over the tail itself, not taken as `1 - sum q`: a student that is nearly sure keeps an exact
gradient. Gradients of gradients are not available.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainer.losses.buffers import Buffers, likeliest
from trainer.losses.sums import LogOutside, PowerSum
from trainer.losses.targets import (
    NO_LABEL,
    TINY,
    DenseTargets,
    SparseTargets,
    only_classes,
    segment_sum,
)

FLOOR = -1e4
"""The logarithm that stands for that of 0: finite, so that 0 times it is 0; its exponential is 0."""


class DenseScores(NamedTuple):
    """A student's logits beside a sigmoid or identity teacher's."""

    logits: Float[Tensor, "N V"]
    targets: DenseTargets
    temperature: float


class Softmax(NamedTuple):
    """A student's log-probabilities at one temperature T, in nats."""

    kept: Float[Tensor, " E"]
    gold: Float[Tensor, " N"]
    """0 where there is no label, NaN where it is none of the student's ids."""
    tail: Float[Tensor, " N"]
    """Of all ids that are not kept together; that of `TINY` where there are none, or entries are drawn."""
    logsumexp: Float[Tensor, " N"]
    """Of the logits divided by T."""
    held: _Held

    @property
    def probs(self) -> Float[Tensor, "N V"]:
        """The student's probabilities, without gradient."""
        self.held.is_shared = True
        return self.held.probs


class _Held:
    """The buffer of probabilities, which becomes the gradient's where nobody else has seen it; the likeliest ids."""

    def __init__(self, buffers: Buffers | None) -> None:
        self.probs: Tensor
        self.best: Tensor
        self.buffers = buffers
        self.is_shared = buffers is None

    def fill(self, logits: Float[Tensor, "N V"], temperature: float) -> Float[Tensor, "N V"]:
        """Takes the probabilities, and gives the logits divided by the temperature."""
        if self.buffers is None:
            scaled = logits if temperature == 1 else logits / temperature
            self.probs = scaled.softmax(-1)
            return scaled
        scaled = logits
        if temperature != 1:
            scaled = torch.div(logits, temperature, out=self.buffers.like("divided", logits))
        self.probs = torch.softmax(scaled, -1, out=self.buffers.like(temperature, logits))
        return scaled


class Scores:
    """A student's logits `[N, V]` beside a softmax teacher's targets, of which all terms of a chunk take theirs."""

    def __init__(
        self,
        logits: Float[Tensor, "N V"],
        targets: SparseTargets,
        temperature: float = 1.0,
        buffers: Buffers | None = None,
    ) -> None:
        self.logits = only_classes(logits, targets.classes)
        self.targets, self.temperature = targets, temperature
        self._buffers = buffers
        """Where probabilities stand, if the backward pass runs a single time: it may write over them."""
        self._softmax: dict[float, Softmax] = {}

    def at(self, temperature: float) -> Softmax:
        """The student's log-probabilities at a temperature."""
        found = self._softmax.get(temperature)
        if found is None:
            held = _Held(self._buffers)
            parts: tuple[Tensor, Tensor, Tensor, Tensor]
            parts = _Softmax.apply(self.logits, self.targets, temperature, held)  # type: ignore[no-untyped-call]
            found = self._softmax[temperature] = Softmax(*parts, held)
        return found

    @property
    def best(self) -> Int64[Tensor, " N"]:
        """The student's likeliest id, of whatever softmax there is."""
        found = next(iter(self._softmax.values()), None) or self.soft
        return found.held.best

    @property
    def soft(self) -> Softmax:
        """At the losses' temperature."""
        return self.at(self.temperature)

    @property
    def plain(self) -> Softmax:
        """At temperature 1."""
        return self.at(1.0)

    @property
    def weights(self) -> Float[Tensor, " E"]:
        """The teacher's weights, in the logits' own dtype."""
        return self.targets.weights.to(self.logits.dtype)

    @property
    def tail(self) -> Float[Tensor, " N"]:
        """The teacher's mass outside the kept entries."""
        return self.targets.tail.to(self.logits.dtype)

    @property
    def teacher_log(self) -> Float[Tensor, " E"]:
        """The entries' own log-probabilities at the temperature; `FLOOR` for that of 0, NaN where not stored."""
        if not self.targets.drawn:
            return self.weights.log().clamp_min(FLOOR)
        found = self.targets.logprobs if self.targets.softened is None else self.targets.softened
        return found.to(self.logits.dtype).clamp_min(FLOOR)

    @property
    def has_gold(self) -> Bool[Tensor, " N"]:
        """Whether the corpus labels a position."""
        return self.targets.gold != NO_LABEL

    @property
    def is_gold(self) -> Bool[Tensor, " E"]:
        """Which entries are their position's gold id."""
        return self.targets.ids == self.targets.gold[self.targets.position]

    @property
    def width(self) -> Int64[Tensor, " N"]:
        """How many of the student's ids each position may be."""
        if self.targets.classes is None:
            return self.targets.gold.new_full((), self.logits.shape[-1]).expand(len(self.logits))
        return self.targets.classes.sum(-1)

    @property
    def num_others(self) -> Int64[Tensor, " N"]:
        """The student's ids that are not kept, at least 1: a divisor."""
        return (self.width - self.num_kept).clamp_min(1)

    @property
    def has_tail(self) -> Bool[Tensor, " N"]:
        """Whether a position lacks some of the student's ids."""
        return self.num_kept < self.width

    @property
    def num_kept(self) -> Int64[Tensor, " N"]:
        """Entries of each position."""
        return torch.bincount(self.targets.position, minlength=len(self.targets.tail))

    def sum(self, values: Float[Tensor, " E"]) -> Float[Tensor, " N"]:
        """Each position's entries summed."""
        return segment_sum(values, self.targets.position, len(self.targets.tail))

    def power_sum(self, exponent: float) -> Float[Tensor, " N"]:
        """`sum of q^exponent` over all V ids, at the temperature."""
        found: Tensor = PowerSum.apply(self.logits, self.soft.probs, exponent, self.temperature)  # type: ignore[no-untyped-call]
        return found

    def log_sum_outside(self) -> Float[Tensor, " N"]:
        """`sum of log q` over the ids that are not kept, at the temperature; `FLOOR` stands for that of 0."""
        every = self.among_classes(self.dense_log().clamp_min(FLOOR))
        kept = (self.targets.position, self.targets.ids)
        return every.index_put(kept, every.new_zeros(len(self.targets.ids))).sum(-1)

    def log_mass_without_gold(self, *, without_kept: bool) -> Float[Tensor, " N"]:
        """The logarithm of the student's mass on all ids but the gold one, and but the kept ones, summed over them: as
        `1 - q_gold` it would give a student that is nearly sure a wrong gradient."""
        gold, width = self.targets.gold, self.logits.shape[-1]
        rows = ((gold >= 0) & (gold < width)).nonzero()[:, 0]
        position, ids = rows, gold[rows]
        if without_kept:
            position, ids = (
                torch.cat(pair) for pair in ((position, self.targets.position), (ids, self.targets.ids))
            )
        found: Tensor = LogOutside.apply(self.logits, self.soft.probs, (position, ids), self.temperature)  # type: ignore[no-untyped-call]
        return found

    def kept_logits(self) -> Float[Tensor, " E"]:
        """The student's own logits of the kept entries."""
        soft = self.soft
        return (soft.kept + soft.logsumexp[self.targets.position]) * self.temperature

    def dense_log(self) -> Float[Tensor, "N V"]:
        """All log-probabilities at the temperature."""
        return self.logits / self.temperature - self.soft.logsumexp[:, None]

    def among_classes(self, values: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """0 where an id is none that the position may be."""
        classes = self.targets.classes
        return values if classes is None else values.masked_fill(~classes, 0)

    def padded(self, values: Float[Tensor, " E"], fill: float) -> Float[Tensor, "N K"]:
        """Each position's entries in a row of its own, `fill` behind the last."""
        counts = self.num_kept
        slot = (
            torch.arange(len(values), device=values.device)
            - (counts.cumsum(0) - counts)[self.targets.position]
        )
        widest = int(counts.max()) if len(counts) else 0
        return values.new_full((len(counts), widest), fill).index_put((self.targets.position, slot), values)


class _Softmax(torch.autograd.Function):
    """Log-probabilities of kept entries, gold ids and tails, and logsumexp, of `logits / T`. One `[N, V]` buffer holds
    first the probabilities and then, where `held` is not shared, the gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "N V"], targets: SparseTargets, temperature: float, held: _Held
    ) -> tuple[Tensor, ...]:
        ids, position = targets.ids, targets.position
        scaled = held.fill(logits, temperature)
        top, best = likeliest(scaled)
        probs, held.best = held.probs, best[:, 0]
        lse = (top - probs.gather(-1, best).log())[:, 0]
        has_gold = (targets.gold >= 0) & (targets.gold < probs.shape[-1])
        gold = torch.where(has_gold, targets.gold, 0)
        absent = torch.where(targets.gold == NO_LABEL, 0.0, math.nan).to(lse.dtype)
        of_gold = torch.where(has_gold, scaled.gather(-1, gold[:, None])[:, 0] - lse, absent)
        kept = (scaled[position, ids] - lse[position]).clamp_min(FLOOR)
        ctx.has_tail = not targets.drawn and len(ids) < probs.numel()
        q_tail = _outside(probs, position, ids) if ctx.has_tail else torch.full_like(lse, TINY)
        ctx.targets, ctx.temperature, ctx.held = targets, temperature, held
        ctx.save_for_backward(q_tail, has_gold, gold)
        return kept, of_gold, q_tail.log(), lse

    @staticmethod
    def backward(
        ctx: Any, of_kept: Tensor, of_gold: Tensor, of_tail: Tensor, of_lse: Tensor
    ) -> tuple[Tensor | None, ...]:
        q_tail, has_gold, gold = ctx.saved_tensors
        targets, held = ctx.targets, ctx.held
        position, ids, scale = targets.position, targets.ids, 1 / ctx.temperature
        of_gold = torch.where(has_gold, of_gold, 0)
        if not ctx.has_tail:
            of_tail = torch.zeros_like(of_tail)
        total = segment_sum(of_kept, position, len(q_tail)) + of_gold + of_tail - of_lse
        kept = held.probs[position, ids]
        factor = ((of_tail / q_tail - total) * scale)[:, None]
        gradient = held.probs * factor if held.is_shared else held.probs.mul_(factor)
        gradient[position, ids] = (of_kept - kept * total[position]) * scale
        gradient.scatter_add_(-1, gold[:, None], (of_gold * scale)[:, None])
        return gradient, None, None, None


def _outside(
    probs: Float[Tensor, "N V"], position: Int64[Tensor, " E"], ids: Int64[Tensor, " E"]
) -> Float[Tensor, " N"]:
    """The mass of all ids but the kept ones, summed over them; at least `TINY`."""
    kept = probs[position, ids]
    probs[position, ids] = 0
    found = probs.sum(-1).clamp_min(TINY)
    probs[position, ids] = kept
    return found
