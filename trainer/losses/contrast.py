"""Contrast, the information bottleneck and an auxiliary head on pooled states: which teacher's state is an example's
own among the batch's, the teacher's state told from a narrow, noisy one of the student's, and a code of the teacher's
state and output that the student is to tell from its own state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from schemas.errors import StudentError
from trainer.losses.loss import CUTS, Asked, Kind, Loss, Parameter, Pooled, Settings, with_cuts
from trainer.losses.serving import FEATURES
from trainer.losses.worth import of_features

_SMALL = 1e-6
_SAME = 1e-5
"""By which the cosine of a state and itself may be below 1."""
_BOTTLENECK = 64
_LEAST_LOG_VARIANCE = -10.0


def _info_nce(pooled: Pooled, settings: Settings) -> Float[Tensor, " B"]:
    """Cross entropy of which teacher's state is the example's own: among the batch's, and the bank's first `negatives`
    whose examples are not in the batch, by their ids. What has the example's own state, in the batch or in the bank (a
    text that the corpus has twice), is none of its negatives."""
    number, found = int(float(settings["negatives"])), []
    for place, (ours, theirs) in enumerate(zip(pooled.projected, pooled.theirs, strict=True)):
        same = (theirs[:, None] == theirs[None]).all(-1)
        same.fill_diagonal_(False)
        logits = _cosines(ours, theirs).masked_fill(same, -torch.inf)
        if number:
            assert pooled.bank is not None  # whoever makes the batch's states has it
            assert pooled.keys is not None
            held = pooled.bank.states[place][:number].to(theirs.dtype)
            others = _cosines(ours, held)
            here = torch.isin(pooled.bank.keys[:number], pooled.keys)
            alike = _cosines(theirs, held) > 1 - _SAME
            logits = torch.cat([logits, others.masked_fill(here | alike, -torch.inf)], -1)
        own = torch.arange(len(ours), device=ours.device)
        found.append(F.cross_entropy(logits / float(settings["temperature"]), own, reduction="none"))
    return torch.stack(found).mean(0)


def _cosines(ours: Float[Tensor, "B D"], theirs: Float[Tensor, "M D"]) -> Float[Tensor, "B M"]:
    unit = [F.normalize(states, dim=-1, eps=_SMALL) for states in (ours, theirs)]
    return unit[0] @ unit[1].t()


class Bottleneck(nn.Module):
    """For each feature a Gaussian of few dimensions from the student's state, and the teacher's state from a draw."""

    def __init__(self, ours: Sequence[int], theirs: Sequence[int], vocab_size: int = 0) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(width, 2 * _BOTTLENECK) for width in ours)
        self.outer = nn.ModuleList(nn.Linear(_BOTTLENECK, width) for width in theirs)

    def forward(self, place: int, states: Float[Tensor, "B H"]) -> tuple[Tensor, Tensor]:
        """What it takes the teacher's state for, and the KL of its Gaussian from the standard one, a dimension."""
        mean, log_variance = self.inner[place](states).float().chunk(2, -1)
        log_variance = log_variance.clamp(_LEAST_LOG_VARIANCE, -_LEAST_LOG_VARIANCE)
        drawn = mean
        if self.training:
            drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        told: Tensor = self.outer[place](drawn).float()
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean(-1) / 2
        return told, kl


def _vib(pooled: Pooled, settings: Settings) -> Float[Tensor, " B"]:
    module = pooled.module
    assert isinstance(module, Bottleneck)
    found = []
    for place, (ours, theirs) in enumerate(zip(pooled.ours, pooled.theirs, strict=True)):
        told, kl = module(place, ours)
        found.append((told - theirs).square().mean(-1) + float(settings["beta"]) * kl)
    return torch.stack(found).mean(0)


class AuxiliaryHead(nn.Module):
    """For each feature a code, which is a distribution, of the teacher's state and its output together; the teacher's
    state told from the code, so that it cannot be empty; and what the student's state takes the code for."""

    def __init__(self, ours: Sequence[int], theirs: Sequence[int], vocab_size: int) -> None:
        super().__init__()
        self.joint = nn.ModuleList(nn.Linear(other + vocab_size, _BOTTLENECK) for other in theirs)
        self.alone = nn.ModuleList(nn.Linear(own, _BOTTLENECK) for own in ours)
        self.outer = nn.ModuleList(nn.Linear(_BOTTLENECK, other) for other in theirs)

    def forward(
        self,
        place: int,
        ours: Float[Tensor, "B H"],
        theirs: Float[Tensor, "B D"],
        outputs: Float[Tensor, "B V"],
    ) -> tuple[Tensor, Tensor]:
        """What the code takes the teacher's state for, and the KL of the code to the student's own."""
        joint, alone, outer = self.joint[place], self.alone[place], self.outer[place]
        dtype = ours.dtype
        log_a = joint(torch.cat([theirs.to(dtype), outputs.to(dtype)], -1)).float().log_softmax(-1)
        log_b = alone(ours).float().log_softmax(-1)
        told: Tensor = outer(log_a.exp().to(dtype)).float()
        return told, (log_a.exp() * (log_a - log_b)).sum(-1)


def _info_head(pooled: Pooled, settings: Settings) -> Float[Tensor, " B"]:
    module = pooled.module
    assert isinstance(module, AuxiliaryHead)
    assert pooled.outputs is not None  # whoever makes the batch's states has them
    found = []
    for place, (ours, theirs) in enumerate(zip(pooled.ours, pooled.theirs, strict=True)):
        told, kl = module(place, ours, theirs, pooled.outputs)
        found.append((told - theirs).square().mean(-1) + float(settings["beta"]) * kl)
    return torch.stack(found).mean(0)


def _outputs(asked: Asked) -> StudentError | None:
    spec = asked.spec
    if spec.score != "none" and not spec.kind.classes_are_tokens:
        return FEATURES.refusal(asked)
    return asked.error(
        "joins features with what the teacher says of an example",
        expected="scores of classes, or of a vocabulary, that all examples share",
        got=f"{spec.task}: {'embeddings alone' if spec.score == 'none' else 'places in each text'}",
        do="Use --losses feature=1.0, or pkd=1.0",
    )


OUTPUTS = Kind(
    name="pooled features and scores",
    served_by="`--features`, beside scores of any policy",
    refusal=_outputs,
    worth=of_features,
)
LOSSES = (
    Loss(
        name="info_nce",
        formula="-log softmax of cos(h, t_j) / temperature at the example's own t, over the batch's t_j and a bank's",
        paper="arXiv:1910.10699",
        kind=FEATURES,
        parameters={
            "temperature": Parameter.between(0.07, 100.0),
            "negatives": Parameter(default=0.0, low=0.0, high=65536.0, whole=True),
            "cuts": CUTS,
        },
        pooled=with_cuts(_info_nce),
        bank="negatives",
        per="examples",
    ),
    Loss(
        name="vib",
        formula="mean (t - W z)^2 + beta KL(z || N(0, 1)) a dimension, z drawn from a Gaussian of h",
        paper="arXiv:1612.00410",
        kind=FEATURES,
        parameters={"beta": Parameter.at_least_0(0.001)},
        pooled=_vib,
        module=Bottleneck,
        per="examples",
    ),
    Loss(
        name="info_head",
        formula="mean (t - V a)^2 + beta KL(a || b), codes a = softmax(W [t, p]) and b = softmax(U h), p the mean at "
        "--temperature over the example's positions",
        paper="",
        kind=OUTPUTS,
        parameters={"beta": Parameter.at_least_0(1.0)},
        pooled=_info_head,
        module=AuxiliaryHead,
        joins_outputs=True,
        per="examples",
    ),
)
