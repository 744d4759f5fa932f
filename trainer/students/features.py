"""Pooled hidden states of a student, projected to the teacher's widths.

The projections are learned with the student and saved beside it, apart: the student itself stays a plain model
(FitNets: arXiv:1412.6550).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import StudentError, one_line
from schemas.features import Feature
from schemas.model_heads import body_of
from trainer.models.embeddings import Embedder, pooled
from trainer.models.shrink import plain_ids


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


@torch.no_grad()
def image_widths(model: Any, shape: tuple[int, int, int]) -> list[int]:
    """The widths of the hidden states that a model has of an image: of a map, its channels.

    Raises:
        StudentError: it has none.
    """
    training = model.training
    model.eval()
    image = torch.zeros(1, *shape, device=model.device)
    try:
        output = model(pixel_values=image, output_hidden_states=True)
        found = tuple(output.hidden_states)
        last = getattr(output, "last_hidden_state", None)  # of a model without a head, which is run for these
        found = found if last is None else (*found[:-1], last)
        return [int(states.shape[1 if states.ndim == 4 else 2]) for states in found]
    except Exception as error:
        raise _without_states(model, one_line(error).rstrip(".")) from error
    finally:
        model.train(training)


def _without_states(model: Any, got: str | None) -> StudentError:
    return StudentError(
        f"{type(model).__name__} does not give the hidden states that the loss feature compares",
        expected="the embedding's and each layer's",
        got=got or "none",
        do="Leave feature out of the losses",
    )


class Projections(nn.Module):
    """One learned linear map for each feature, from the width of the student's layer to the teacher's.

    With an `embedder` the first feature is the student's own embedding: where the widths are equal no map stands
    between, else the map is part of the student; and what losses see of it is what the student will give.
    """

    def __init__(
        self, features: Sequence[Feature], student_widths: Sequence[int], embedder: Embedder | None = None
    ) -> None:
        super().__init__()
        self.features, self.normalizes = tuple(features), embedder is not None and embedder.told.normalize
        self.embedding = None if embedder is None else features[0].column
        self.widths = list(student_widths)
        self.heads = nn.ModuleDict()
        """What single losses learn beside the maps, by loss."""
        pairs = list(zip(features, student_widths, strict=True))
        self.maps = nn.ModuleDict({f.column: self._map(f, width) for f, width in pairs})
        if embedder is None:
            return
        self.widths[0] = features[0].width
        if (begun := embedder.dense) is None:
            return
        wanted, got = (features[0].width, student_widths[0]), tuple(begun.weight.shape)
        if wanted != got:
            raise StudentError(
                "the student's own linear map has another shape than the cache asks for",
                expected=f"{wanted[1]} to {wanted[0]}",
                got=f"{got[1]} to {got[0]}",
                do="Start from the student without 2_Dense, or from another one",
            )
        own = nn.Linear(student_widths[0], features[0].width)
        own.load_state_dict({"bias": torch.zeros_like(own.bias), **begun.state_dict()})
        self.maps[features[0].column] = own

    def _map(self, feature: Feature, width: int) -> nn.Module:
        is_identity = feature.column == self.embedding and width == feature.width
        return nn.Identity() if is_identity else nn.Linear(width, feature.width)

    def pooled(self, states: Sequence[Tensor], mask: Tensor | None) -> list[Tensor]:
        """`[B, H]` for each feature, from the hidden states `[B, S, H]` of its layer; of an embedding, itself."""
        pairs = zip(self.features, states, strict=True)
        found = [pooled(hidden, mask, feature.pooling) for feature, hidden in pairs]
        if self.embedding is not None:
            found[0] = self.maps[self.embedding](found[0]).float()
            found[0] = F.normalize(found[0], dim=-1) if self.normalizes else found[0]
        return found

    def projected(self, own: Sequence[Tensor]) -> list[Tensor]:
        """`[B, D]` in float32 for each feature, from what `pooled` gives."""
        pairs = zip(self.features, own, strict=True)
        return [
            states if f.column == self.embedding else self.maps[f.column](states).float()
            for f, states in pairs
        ]

    def forward(self, states: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """`[B, D]` in float32 for each feature, from the hidden states `[B, S, H]` of its layer."""
        return self.projected(self.pooled(states, mask))
