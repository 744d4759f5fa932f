"""Where language models keep their head, and what they do to its product: said once, for teachers and students.

Both sides take a head apart to apply it in chunks, so both must know. What is not here is refused at load, where body
and head are compared with the model's own forward. Nothing here needs torch: modules are looked at, never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Cohere, Falcon-H1, Muse."""
_DIVISORS = ("logits_mup_width_multiplier",)
"""Inkling, of what goes into its head."""
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Gemma 2 and others; RecurrentGemma; xLSTM."""
_SCALING_MULTIPLIES = ("hyperclovax", "hyperclovax_vision_v2")
"""Granite and MiniCPM3 divide by `logits_scaling`; these multiply."""


class HeadTransform(NamedTuple):
    """`softcap * tanh(multiplier * x / softcap)`, or without the cap `multiplier * x`."""

    multiplier: float = 1.0
    softcap: float | None = None


def head_values(config: object) -> dict[str, Any]:
    """What a model's text config has to say of its head, also where it reckons it out (MiniCPM3)."""
    names = ("model_type", "logits_scaling", *_MULTIPLIERS, *_DIVISORS, *_SOFTCAPS)
    return {name: getattr(config, name, None) for name in names}


def head_transform(config: Mapping[str, Any]) -> HeadTransform:
    """What these values say; one of 0 or none says nothing."""
    multiplier = 1.0
    if config.get("logits_scaling"):
        scale = float(config["logits_scaling"])
        multiplier = scale if config.get("model_type") in _SCALING_MULTIPLIES else 1 / scale
    for name in _MULTIPLIERS:
        multiplier *= float(config.get(name) or 1)
    for name in _DIVISORS:
        multiplier /= float(config.get(name) or 1)
    softcap = next((float(config[name]) for name in _SOFTCAPS if config.get(name)), None)
    return HeadTransform(multiplier, softcap)


def body_of(model: Any) -> Any:
    """A model without its head, or itself; Llama-4's class has its body under another name than it says."""
    body = model.base_model
    return getattr(model, "model", body) if body is model else body


def has_transform(model: Any) -> bool:
    """Whether a language model does more between its body and its output layer than hand states on: BERT's transform,
    RoBERTa's dense layer, ModernBERT's head. Then its weights stand beside both."""
    body, own = body_of(model), model.get_output_embeddings()
    last = {id(weight) for weight in own.parameters()}
    beside = (part for part in model.children() if part is not body and part is not own and body is not model)
    return any(weight.ndim > 1 and id(weight) not in last for part in beside for weight in part.parameters())


def output_bias(model: Any) -> Any:
    """What is added to the product of a model's output layer: the layer's own bias, that of the module around it (ESM),
    or the model's (BART: a buffer `[1, V]`); None where there is none."""
    layer = model.get_output_embeddings()
    of_model = model._buffers.get("final_logits_bias")
    if of_model is not None:
        return of_model[0]
    bias = getattr(layer, "bias", None)
    if bias is not None:
        return bias
    around = model.get_submodule(_path(model, layer).rpartition(".")[0])
    found = around._parameters.get("bias")
    return found if found is not None and found.shape == layer.weight.shape[:1] else None


def headless(model: Any, *, hands_on: Any, zero: Any) -> Any:
    """A model that shares every weight with `model`, and gives as its logits what that one's head is applied to.

    Its output layer is `hands_on`, a module that returns what it is given; a bias that is added behind it is `zero`.
    The modules on the way to that layer are new, all others are the model's own; so it is cheap, and safe beside it.

    Raises:
        AttributeError: the model has no output layer among its modules.
    """
    path = _path(model, model.get_output_embeddings())
    if not path:
        raise AttributeError(f"{type(model).__name__} has no output layer")
    return _with_child(model, path, hands_on, zero)


def _path(model: Any, layer: Any) -> str:
    """Where a layer is in a model; most stand at its top. Empty: nowhere."""
    for parts in (model.named_children, model.named_modules):
        if found := next((name for name, part in parts() if part is layer), ""):
            return str(found)
    return ""


def _with_child(module: Any, path: str, child: Any, zero: Any) -> Any:
    """A module that differs from another in one that lies below it."""
    name, _, rest = path.partition(".")
    made = object.__new__(type(module))
    # a hook's forward would run the module that it was made for
    made.__dict__ = {key: value for key, value in module.__dict__.items() if key != "forward"}
    below = _with_child(module._modules[name], rest, child, zero) if rest else child
    made.__dict__["_modules"] = {**module._modules, name: below}
    if not rest and module._parameters.get("bias") is not None:
        made.__dict__["_parameters"] = {**module._parameters, "bias": zero}
    return made
