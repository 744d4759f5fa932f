"""A student without a backbone: a linear map, or a few layers, from the teacher's pooled states to its classes.

It is the cheapest student there is: what costs in a classifier is the body, and the cache holds what that said. So it
reads no text. On new text the teacher's body must be run, and its states pooled as `config.features` says.

Format: `config.json` (below) and `model.safetensors` with `layers.0.weight` `[H, D]`, `layers.0.bias` `[H]`, and so on;
between two layers stands a GELU. D is the sum of `feature_widths`: the features one behind the other, in order.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


@no_type_check  # transformers checks its configs itself, and hands on what is no field of theirs
@strict
class FeatureClassifierConfig(PreTrainedConfig):  # type: ignore[misc]
    """What is read, and through how many layers; classes as transformers names them."""

    model_type = "teachonce-features"

    features: list[str] | None = None
    """Each as `--features` of `precompute` names it: `POOLING:LAYER`, layers from 0, the embedding's output."""
    feature_widths: list[int] | None = None
    """Of each, the teacher's own width."""
    hidden_sizes: list[int] | None = None
    """Widths between the features and the classes; none of a linear student."""
    initializer_range: float = 0.02


class FeatureClassifier(PreTrainedModel):  # type: ignore[misc]
    """`FeatureClassifier.from_pretrained(folder)(features=...)`: logits of each row, `[B, V]`."""

    config_class = FeatureClassifierConfig
    main_input_name = "features"

    def __init__(self, config: FeatureClassifierConfig) -> None:
        super().__init__(config)
        widths = [sum(config.feature_widths or ()), *(config.hidden_sizes or ()), config.num_labels]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.post_init()

    def forward(self, features: Float[Tensor, "B D"], **_: Any) -> SequenceClassifierOutput:
        """From the features of B rows, one behind the other. Tokens may be given too; they are not looked at."""
        states = features.to(self.dtype)
        for layer in self.layers[:-1]:
            states = nn.functional.gelu(layer(states))
        return SequenceClassifierOutput(logits=self.layers[-1](states))


def joined_features(features: tuple[Float[Tensor, "B _"], ...]) -> Float[Tensor, "B D"]:
    """What a `FeatureClassifier` is given."""
    return torch.cat([feature.float() for feature in features], -1)
