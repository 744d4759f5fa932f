"""Relations between the examples of a batch, or between two layers, of pooled hidden states: no projection is needed,
and widths may differ. A relation is seen among the examples of one rank's micro-batch alone, so it depends on how large
that is; a batch of one has none, and counts nothing. Each is a mean over the cache's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainer.losses.loss import CUTS, Loss, Parameter, Pooled, PooledTerm, Settings, with_cuts
from trainer.losses.serving import FEATURES

_SMALL = 1e-8
Relation = Callable[[Tensor, Tensor, Settings], Tensor]
"""From the student's and the teacher's states to one number."""


def over_layers(relation: Relation) -> PooledTerm:
    """The mean over features of a relation of the batch, given to each example alike."""

    def term(pooled: Pooled, settings: Settings) -> Float[Tensor, " B"]:
        pairs = zip(pooled.ours, pooled.theirs, strict=True)
        found = [relation(ours.to(theirs.dtype), theirs, settings) for ours, theirs in pairs]
        return _spread(torch.stack(found).mean(), pooled.ours[0])

    return term


def _spread(value: Tensor, states: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
    """A batch's number for each example; 0, with a gradient of 0, in a batch of one."""
    return value.expand(len(states)) * float(len(states) > 1)


def distances(states: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    """Euclidean, divided by their mean over pairs of different examples; 0 of an example from itself."""
    squares = (states[:, None] - states[None]).square().sum(-1)
    found = torch.where(squares > _SMALL**2, squares.clamp_min(_SMALL**2).sqrt(), 0)
    pairs = max(1, len(states) * (len(states) - 1))
    return found / (found.sum() / pairs).clamp_min(_SMALL)


def _rkd_distance(ours: Tensor, theirs: Tensor, _: Settings) -> Tensor:
    """As the authors' code, the mean goes over all pairs, also of an example with itself."""
    return F.smooth_l1_loss(distances(ours), distances(theirs))


def angles(states: Float[Tensor, "B D"]) -> Float[Tensor, "B B B"]:
    """The cosine of the angle at example i between j and k."""
    towards = F.normalize(states[None] - states[:, None], dim=-1, eps=_SMALL)
    return torch.bmm(towards, towards.transpose(1, 2))


def _rkd_angle(ours: Tensor, theirs: Tensor, _: Settings) -> Tensor:
    return F.smooth_l1_loss(angles(ours), angles(theirs))


def _similarity(ours: Tensor, theirs: Tensor, _: Settings) -> Tensor:
    """Each row of the Gram matrix has length 1."""
    grams = [F.normalize(states @ states.t(), dim=-1, eps=_SMALL) for states in (ours, theirs)]
    return (grams[0] - grams[1]).square().mean()


def _cka(ours: Tensor, theirs: Tensor, _: Settings) -> Tensor:
    """By Gram matrices, so that widths cost nothing."""
    grams = []
    for states in (ours, theirs):
        centred = states - states.mean(0)
        grams.append(centred @ centred.t())
    of_ours, of_theirs = (gram.square().sum().clamp_min(_SMALL**2).sqrt() for gram in grams)
    return 1 - (grams[0] * grams[1]).sum() / (of_ours * of_theirs)


def _correlation(ours: Tensor, theirs: Tensor, settings: Settings) -> Tensor:
    """The Gaussian kernel of normalised states, by its Taylor series, as the authors have it."""
    kernels = [_gaussian(F.normalize(s, dim=-1, eps=_SMALL), settings) for s in (ours, theirs)]
    return (kernels[0] - kernels[1]).square().mean()


def _gaussian(states: Tensor, settings: Settings) -> Tensor:
    """`exp(-2 gamma) sum over p <= order of (2 gamma)^p / p! (x . y)^p`"""
    gamma, products = float(settings["gamma"]), states @ states.t()
    term = total = torch.ones_like(products)
    for power in range(1, int(float(settings["order"])) + 1):
        term = term * (2 * gamma / power) * products
        total = total + term
    return total * torch.tensor(-2 * gamma).exp()


def _flow(pooled: Pooled, _: Settings) -> Float[Tensor, " B"]:
    """From each of the cache's layers to its next: how the examples' cosines change. Widths may differ everywhere."""
    steps = []
    for states in (pooled.ours, pooled.theirs):
        cosines = [_cosines(layer.to(pooled.theirs[0].dtype)) for layer in states]
        pairs = zip(cosines[1:], cosines[:-1], strict=True)
        steps.append(torch.stack([after - before for after, before in pairs]))
    return _spread((steps[0] - steps[1]).square().mean(), pooled.ours[0])


def _cosines(states: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    unit = F.normalize(states, dim=-1, eps=_SMALL)
    return unit @ unit.t()


def _entry(name: str, formula: str, paper: str, relation: Relation, /, **parameters: Parameter) -> Loss:
    return Loss(
        name=name,
        formula=formula,
        paper=paper,
        kind=FEATURES,
        parameters=parameters,
        pooled=with_cuts(over_layers(relation)) if "cuts" in parameters else over_layers(relation),
        per="examples",
    )


LOSSES = (
    _entry(
        "rkd_distance",
        "huber(d(h_i, h_j) / mean d, d(t_i, t_j) / mean d) over pairs of examples",
        "arXiv:1904.05068",
        _rkd_distance,
    ),
    _entry(
        "rkd_angle",
        "huber(cos angle(h_i, h_j, h_k), cos angle(t_i, t_j, t_k)) over triples of examples",
        "arXiv:1904.05068",
        _rkd_angle,
    ),
    _entry(
        "similarity",
        "mean (G_h - G_t)^2, G the Gram matrix of the batch with rows of length 1",
        "arXiv:1907.09682",
        _similarity,
        cuts=CUTS,
    ),
    _entry("cka", "1 - linear CKA(h, t) over the batch", "arXiv:1905.00414", _cka),
    _entry(
        "correlation",
        "mean (K_h - K_t)^2, K the Gaussian kernel of the batch, by its series up to order",
        "arXiv:1904.01802",
        _correlation,
        gamma=Parameter.between(0.4, 100.0),
        order=Parameter(default=2.0, low=1.0, high=20.0, whole=True),
    ),
    Loss(
        name="flow",
        formula="mean (F_h - F_t)^2, F the change of the examples' cosines from one cached layer to the next",
        paper="Yim et al., CVPR 2017",
        kind=FEATURES,
        pooled=_flow,
        per="examples",
        least_features=2,
    ),
)
