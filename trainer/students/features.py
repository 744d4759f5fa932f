"""Pooled hidden states of a student, projected to the teacher's widths.

The projections are learned with the student and saved beside it, apart: the student itself stays a plain model
(FitNets: arXiv:1412.6550).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from schemas.errors import StudentError, one_line
from schemas.features import Feature
from schemas.model_heads import body_of
from trainer.models.shrink import plain_ids


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


@torch.no_grad()
def layer_widths(model: Any, layers: Sequence[int], num_layers: int) -> list[int]:
    """The widths of a model's hidden states, seen and not read from its config (OPT-350m's last is projected).

    Raises:
        StudentError: it has no hidden states of these layers, one for each token.
    """
    ids = plain_ids(model, 2)
    training = model.training
    model.eval()
    try:
        found = body_of(model)(input_ids=ids, output_hidden_states=True).hidden_states
    except Exception as error:
        raise _without_states(model, one_line(error).rstrip(".")) from error
    finally:
        model.train(training)
    if found is None or len(found) != num_layers + 1:
        raise _without_states(model, None if found is None else f"{len(found)} of them")
    if any(found[layer].shape[:2] != ids.shape for layer in layers):
        raise _without_states(model, "some that are not one for each token")
    return [int(found[layer].shape[-1]) for layer in layers]


def _without_states(model: Any, got: str | None) -> StudentError:
    return StudentError(
        f"{type(model).__name__} does not give the hidden states that the loss feature compares",
        expected="the embedding's and each layer's",
        got=got or "none",
        do="Leave feature out of the losses",
    )


class Projections(nn.Module):
    """One learned linear map for each feature, from the width of the student's layer to the teacher's."""

    def __init__(self, features: Sequence[Feature], student_widths: Sequence[int]) -> None:
        super().__init__()
        self.features = tuple(features)
        self.widths = list(student_widths)
        self.heads = nn.ModuleDict()
        """What single losses learn beside the maps, by loss."""
        self.maps = nn.ModuleDict(
            {
                feature.column: nn.Linear(width, feature.width)
                for feature, width in zip(features, student_widths, strict=True)
            }
        )

    def pooled(self, states: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """`[B, H]` for each feature, from the hidden states `[B, S, H]` of its layer."""
        pairs = zip(self.features, states, strict=True)
        return [pooled(hidden, mask, feature.pooling) for feature, hidden in pairs]

    def projected(self, own: Sequence[Tensor]) -> list[Tensor]:
        """`[B, D]` in float32 for each feature, from what `pooled` gives."""
        pairs = zip(self.features, own, strict=True)
        return [self.maps[feature.column](states).float() for feature, states in pairs]

    def forward(self, states: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """`[B, D]` in float32 for each feature, from the hidden states `[B, S, H]` of its layer."""
        return self.projected(self.pooled(states, mask))
