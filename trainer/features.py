"""Pooled hidden states of a student, projected to the teacher's widths.

The projections are learned with the student and saved beside it, apart: the student itself stays a plain model
(FitNets: arXiv:1412.6550).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from schemas.spec import Feature


def pooled(hidden: Float[Tensor, "B S H"], mask: Int64[Tensor, "B S"], pooling: str) -> Float[Tensor, "B H"]:
    """`mean` over the tokens that are not padding, the first token (`cls`), or the `last` that is not padding."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(-1) - 1]
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def student_layer(feature: Feature, *, teacher_layers: int, student_layers: int) -> int:
    """The student's layer that answers a teacher's: last to last, embedding to embedding, others in proportion.

    Layers count as in `hidden_states` of transformers: 0 is the embedding's output.
    """
    return min(student_layers, round(feature.layer * student_layers / max(1, teacher_layers)))


class Projections(nn.Module):
    """One learned linear map for each feature, from the student's width to the teacher's."""

    def __init__(self, features: Sequence[Feature], student_width: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.maps = nn.ModuleDict(
            {feature.column: nn.Linear(student_width, feature.width) for feature in features}
        )

    def forward(self, states: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """`[B, D]` in float32 for each feature, from the hidden states `[B, S, H]` of its layer."""
        return [
            self.maps[feature.column](pooled(hidden, mask, feature.pooling)).float()
            for feature, hidden in zip(self.features, states, strict=True)
        ]
