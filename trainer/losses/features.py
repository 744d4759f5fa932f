"""Distances of pooled hidden states, example by example: the student's, projected to the teacher's width by a learned
map (FitNets: arXiv:1412.6550). Each is a mean over the cache's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainer.losses.loss import CUTS, Loss, Parameter, Pooled, PooledTerm, Settings, with_cuts
from trainer.losses.serving import FEATURES

_SMALL = 1e-6


def feature_distance(
    ours: Float[Tensor, "B D"], theirs: Float[Tensor, "B D"], kind: str
) -> Float[Tensor, " B"]:
    """Distance of pooled features: `mse` (mean over D) or `cosine` (1 - cos, as DistilBERT: arXiv:1910.01108)."""
    if kind == "mse":
        return (ours - theirs).square().mean(-1)
    return 1 - F.cosine_similarity(ours, theirs, dim=-1)


def over_features(distance: Callable[[Tensor, Tensor, Settings], Tensor]) -> PooledTerm:
    """The mean over features of a distance of projected states."""

    def term(pooled: Pooled, settings: Settings) -> Float[Tensor, " B"]:
        pairs = zip(pooled.projected, pooled.theirs, strict=True)
        return torch.stack([distance(ours, theirs, settings) for ours, theirs in pairs]).mean(0)

    return term


def _told(ours: Tensor, theirs: Tensor, settings: Settings) -> Tensor:
    return feature_distance(ours, theirs, str(settings["distance"]))


def _relative(ours: Tensor, theirs: Tensor, _: Settings) -> Tensor:
    return (ours - theirs).square().sum(-1) / theirs.square().sum(-1).clamp_min(_SMALL)


def _pkd(ours: Tensor, theirs: Tensor, _: Settings) -> Tensor:
    pair = (F.normalize(states, dim=-1, eps=_SMALL) for states in (ours, theirs))
    return (next(pair) - next(pair)).square().sum(-1)


LOSSES = (
    Loss(
        name="feature",
        formula="mean (h - t)^2, or 1 - cos(h, t)",
        paper="arXiv:1910.01108",
        kind=FEATURES,
        parameters={"distance": Parameter(default="mse", choices=("mse", "cosine")), "cuts": CUTS},
        pooled=with_cuts(over_features(_told)),
        per="examples",
    ),
    Loss(
        name="feature_relative",
        formula="|h - t|^2 / |t|^2",
        paper="arXiv:1904.01866",
        kind=FEATURES,
        pooled=over_features(_relative),
        per="examples",
    ),
    Loss(
        name="pkd",
        formula="| h / |h| - t / |t| |^2",
        paper="arXiv:1908.09355",
        kind=FEATURES,
        parameters={"cuts": CUTS},
        pooled=with_cuts(over_features(_pkd)),
        per="examples",
    ),
)
