"""What causal LMs do to the product of their head, told from a config: said once, for teachers and students.

Both sides take a head apart to apply it in chunks, so both must know. What is not here is refused at load, where a head
is compared with its model's own forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Cohere, Falcon-H1, Muse."""
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Gemma 2 and others; RecurrentGemma."""
_SCALING_MULTIPLIES = ("hyperclovax", "hyperclovax_vision_v2")
"""Granite and MiniCPM3 divide by `logits_scaling`; these multiply."""


class HeadTransform(NamedTuple):
    """`softcap * tanh(multiplier * x / softcap)`, or without the cap `multiplier * x`."""

    multiplier: float = 1.0
    softcap: float | None = None


def head_values(config: object) -> dict[str, Any]:
    """What a model's text config has to say of its head, also where it reckons it out (MiniCPM3)."""
    names = ("model_type", "logits_scaling", *_MULTIPLIERS, *_SOFTCAPS)
    return {name: getattr(config, name, None) for name in names}


def head_transform(config: Mapping[str, Any]) -> HeadTransform:
    """What these values say; one of 0 or none says nothing."""
    multiplier = 1.0
    if config.get("logits_scaling"):
        scale = float(config["logits_scaling"])
        multiplier = scale if config.get("model_type") in _SCALING_MULTIPLIES else 1 / scale
    for name in _MULTIPLIERS:
        multiplier *= float(config.get(name) or 1)
    softcap = next((float(config[name]) for name in _SOFTCAPS if config.get(name)), None)
    return HeadTransform(multiplier, softcap)
