"""What several teachers say of the same positions, as one teacher's: a weighted mean of their distributions, or one of
them at each position.

The mean is taken at the losses' temperature. Kept entries are their union: an id that a cache did not keep has that
cache's share in the tail, so the whole weighs 1, and where every id is kept it is the mean exactly. Weights of entries
that are drawn are without bias, and so is their mean. What only one teacher has, logits and what is stored of a
position, a mean has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from schemas.task import Score
from trainer.batches.targets import StackedTargets
from trainer.losses.targets import DenseTargets, SparseTargets

PICKS = {"loss": "gold", "entropy": "entropy"}
"""By what one teacher may be picked, and what caches must store for it."""


@dataclass(frozen=True, kw_only=True)
class Join:
    """How the teachers of several caches are one."""

    weights: tuple[float, ...]
    """Of each cache, in order; 1 in all."""
    pick: str | None = None
    """`loss`: at each position the teacher to whom the gold id is likeliest (the first where there is none); `entropy`:
    the one that is surest. None: the mean."""

    def __post_init__(self) -> None:
        if not (min(self.weights, default=-1) >= 0 and abs(sum(self.weights) - 1) < 1e-6):
            raise ValueError(f"weights of a mean must be at least 0 and 1 in all, but got {self.weights}")
        if self.pick is not None and self.pick not in PICKS:
            raise ValueError(f"pick must be one of {', '.join(PICKS)}, but got {self.pick}")

    @property
    def needs(self) -> frozenset[str]:
        """What of each position must be read beside the losses' own."""
        return frozenset() if self.pick is None else frozenset([PICKS[self.pick]])

    def both(
        self,
        said: Sequence[tuple[StackedTargets, Sequence[Tensor]]],
        rows: Rows,
        temperature: float,
    ) -> tuple[StackedTargets, list[Tensor]]:
        """What all say of these rows' positions, and their features one behind the other."""
        targets = self.targets([one for one, _ in said], temperature, rows.spec.score)
        return targets, joined_states([states for _, states in said])

    def targets(self, parts: Sequence[StackedTargets], temperature: float, score: Score) -> StackedTargets:
        """One of several, of the same positions."""
        if isinstance(parts[0].all, DenseTargets):
            dense: Any = [part.all for part in parts]
            found = (
                self._picked_dense(dense, score) if self.pick else self._mean_dense(dense, temperature, score)
            )
            return parts[0]._replace(all=found)
        return self._picked(parts) if self.pick else self._mean(parts)

    def _mean(self, parts: Sequence[StackedTargets]) -> StackedTargets:
        pairs = [(part, weight) for part, weight in zip(parts, self.weights, strict=True) if weight > 0]
        told: Any = [part.all for part, _ in pairs]
        owner = np.concatenate([_owners(part) for part, _ in pairs])
        ids = np.concatenate([one.ids.numpy() for one in told])
        mass, plain = (
            np.concatenate([w * get(one) for one, (_, w) in zip(told, pairs, strict=True)])
            for get in (_weights, _plain)
        )
        order = np.lexsort((ids, owner))
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (np.diff(owner[order]) != 0) | (np.diff(ids[order]) != 0)
        starts = np.flatnonzero(is_first)
        owner, ids = owner[order][starts], ids[order][starts]
        mass, plain = (
            np.add.reduceat(each[order], starts) if len(starts) else each for each in (mass, plain)
        )
        order = np.lexsort((ids, -mass, owner))  # the likeliest first
        owner, ids, mass, plain = owner[order], ids[order], mass[order], plain[order]
        tail = sum(w * one.tail.double() for one, (_, w) in zip(told, pairs, strict=True))
        counts = np.bincount(owner, minlength=len(tail))
        with np.errstate(divide="ignore"):
            logprobs = np.log(plain).astype(np.float32)
        found = SparseTargets(
            ids=torch.from_numpy(ids),
            counts=torch.from_numpy(counts),
            weights=torch.from_numpy(mass.astype(np.float32)),
            logprobs=torch.from_numpy(logprobs),
            logits=None,
            tail=tail.float(),
            negentropy=torch.zeros_like(tail).float() if told[0].drawn else _negentropy(mass, owner, tail),
            gold=told[0].gold,
            drawn=told[0].drawn,
            classes=told[0].classes,
        )
        beyond = None
        if any(part.beyond is not None for part, _ in pairs):
            beyond = np.sum([w * part.beyond for part, w in pairs if part.beyond is not None], axis=0)
        return StackedTargets(found, offsets_of(counts), beyond, parts[0].labelled)

    def _picked(self, parts: Sequence[StackedTargets]) -> StackedTargets:
        told: Any = [part.all for part in parts]
        if self.pick == "entropy":
            chosen = torch.stack([one.entropy for one in told]).argmin(0)
        else:
            chosen = torch.stack([one.gold_logprobs.nan_to_num(nan=0.0) for one in told]).argmax(0)
        owners = [_owners(part) for part in parts]
        own = [chosen.numpy()[owner] == number for number, owner in enumerate(owners)]
        owner = np.concatenate([one[mask] for one, mask in zip(owners, own, strict=True)])
        order = torch.from_numpy(np.argsort(owner, kind="stable"))
        counts = np.bincount(owner, minlength=len(chosen))
        values: dict[str, Any] = {"counts": torch.from_numpy(counts)}
        for field in (field for field in fields(SparseTargets) if field.name not in values):
            each = [getattr(one, field.name) for one in told]
            if field.name in ("gold", "drawn", "classes") or any(value is None for value in each):
                values[field.name] = each[0]
            elif len(each[0]) == len(chosen) and field.name in _OF_POSITIONS:
                values[field.name] = _at(torch.stack(each), chosen)
            else:
                masks = [torch.from_numpy(mask) for mask in own]
                values[field.name] = torch.cat([v[m] for v, m in zip(each, masks, strict=True)])[order]
        beyond = None
        if parts[0].beyond is not None:
            beyond = np.take_along_axis(
                np.stack([part.beyond for part in parts if part.beyond is not None]),
                chosen.numpy()[None],
                0,
            )[0]
        return StackedTargets(SparseTargets(**values), offsets_of(counts), beyond, parts[0].labelled)

    def _mean_dense(self, parts: Sequence[DenseTargets], temperature: float, score: Score) -> DenseTargets:
        pairs = [(part, weight) for part, weight in zip(parts, self.weights, strict=True) if weight > 0]
        logits = torch.stack([part.logits.double() for part, _ in pairs])
        weights = torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
        if score == "identity":
            return replace(parts[0], logits=torch.tensordot(weights, logits, 1).float())
        shares = weights.log()[:, None, None]
        yes, no = ((F.logsigmoid(sign * logits / temperature) + shares).logsumexp(0) for sign in (1.0, -1.0))
        return replace(parts[0], logits=(temperature * (yes - no)).float())

    def _picked_dense(self, parts: Sequence[DenseTargets], score: Score) -> DenseTargets:
        logits, first = torch.stack([part.logits for part in parts]), parts[0]
        if self.pick == "entropy":
            nats = F.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none").sum(-1)
        elif score == "identity":
            nats = ((logits - first.gold) ** 2).sum(-1)
        else:
            gold = first.gold.expand_as(logits)
            nats = F.binary_cross_entropy_with_logits(logits, gold, reduction="none").sum(-1)
        known = torch.ones_like(first.labelled) if self.pick == "entropy" else first.labelled
        return replace(first, logits=_at(logits, nats.argmin(0) * known))


def joined_states(parts: Sequence[Sequence[Tensor]]) -> list[Float[Tensor, "R D"]]:
    """Each feature of all caches, one behind the other."""
    return [torch.cat(list(each), -1) for each in zip(*parts, strict=True)]


_OF_POSITIONS = ("tail", "negentropy", "gold_logprobs", "gold_softened", "entropy")


def _at(values: Tensor, chosen: Tensor) -> Tensor:
    """Of values `[M, N, ...]` those of the chosen at each position."""
    return values[chosen, torch.arange(len(chosen))]


def _owners(part: StackedTargets) -> Array:
    """Which position, among all, each entry is of."""
    counts = np.diff(part.entry_offsets)
    return np.repeat(np.arange(len(counts)), counts)


def _weights(told: SparseTargets) -> Array:
    found: Array = told.weights.double().numpy()
    return found


def _plain(told: SparseTargets) -> Array:
    """Probabilities at temperature 1; of entries that are drawn not known."""
    found: Array = told.logprobs.double().exp().numpy()
    return np.full_like(found, np.nan) if told.drawn else found


def _negentropy(mass: Array, owner: Array, tail: Tensor) -> Tensor:
    """Sum of m log m over each position's entries and its tail."""
    terms = np.where(mass > 0, mass * np.log(np.maximum(mass, 1e-300)), 0.0)
    entries = torch.from_numpy(np.bincount(owner, terms, len(tail)))
    found: Tensor = (entries + torch.special.xlogy(tail, tail)).float()
    return found
