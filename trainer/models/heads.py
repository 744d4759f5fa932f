"""A student's language-model head, taken apart so that it can be applied in chunks of positions.

Some models do more than a linear map: Gemma-2 caps its logits softly, Granite divides them, Cohere multiplies them.
The config says so; at load the head is compared once with the model's own forward, and a difference is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from schemas.errors import StudentError
from schemas.model_heads import body_of, has_transform, head_transform, head_values, headless, output_bias

_TOLERANCE = 2**-12
"""Largest difference from the model's own logits, relative to the largest of them, in float32."""


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """`cap * tanh(multiplier * x / cap)`, or without the cap `multiplier * x`."""

    multiplier: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap must be above 0, but got {self.softcap}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LogitTransform:
        """What a model's `config.to_dict()` says: as of a teacher's head, by `schemas.model_heads`."""
        return cls(**head_transform(config)._asdict())

    def __call__(self, products: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Logits from the head's linear products."""
        if self.multiplier != 1:
            products = products * self.multiplier
        if self.softcap is None:
            return products
        return torch.tanh(products / self.softcap) * self.softcap


@dataclass(frozen=True, kw_only=True)
class Head:
    """A linear head and what follows it. Holds the model's own parameters, tied or not."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None
    transform: LogitTransform

    @classmethod
    def of(cls, student: nn.Module) -> Head:
        """The head of a language model.

        Raises:
            StudentError: it has no linear head.
        """
        found: Any = student
        layer = found.get_output_embeddings()
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise _headless(student)
        config = head_values(found.config.get_text_config())
        bias = output_bias(found)
        return cls(weight=weight, bias=bias, transform=LogitTransform.from_config(config))

    def logits(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """All logits of N hidden states at once."""
        return self.transform(nn.functional.linear(hidden, self.weight, self.bias))


class Ran(NamedTuple):
    """What a student's forward gave."""

    states: list[Float[Tensor, "B S _"]]
    """Hidden states of the layers that were asked for."""
    head_inputs: Float[Tensor, "B S H"] | None
    """What the head is applied to, at positions, in chunks."""
    logits: Float[Tensor, "B *S V"] | None = None
    """Of students whose head is no linear map over a vocabulary: of each text, or of each token, or of each of a text's
    positions."""
    boxes: Float[Tensor, "B Q 4"] | None = None
    """Of students that have a box for each position."""


Inputs = Mapping[str, Any]
Run = Callable[[Any, Inputs, Sequence[int], int], Ran]
"""From a student, its inputs, the layers whose states are wanted, and the number of the last layer."""


def run_whole(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    """A `Run` of a model whose head is more than its output layer: all before that runs as the model's own code."""
    body = headless(student, hands_on=nn.Identity(), zero=torch.zeros((), device=student.device))
    output = body(**inputs, output_hidden_states=bool(layers))
    states = [output.hidden_states[-1 if layer == last_layer else layer] for layer in layers]
    return Ran(states, output.logits)


def run_language_model(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    """A `Run` of a language model, by its body where its output layer follows that, as in most."""
    if has_transform(student):
        return run_whole(student, {**inputs, "use_cache": False}, layers, last_layer)
    inner = any(layer != last_layer for layer in layers)
    output = body_of(student)(**inputs, output_hidden_states=inner, use_cache=False)
    last = output.last_hidden_state
    states = [last if layer == last_layer else output.hidden_states[layer] for layer in layers]
    return Ran(states, last)


def run_own_head(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    """A `Run` of a model whose own logits are what is taught, of texts or of tokens."""
    output = student(**inputs, output_hidden_states=bool(layers))
    states = [output.hidden_states[-1 if layer == last_layer else layer] for layer in layers]
    return Ran(states, None, output.logits)


@torch.no_grad()
def check_head(student: nn.Module, run: Run, *, has_source: bool = False) -> None:
    """Compares body and head, apart, with the model's own forward on one batch of eight tokens; `has_source`: and a
    decoder's eight.

    Raises:
        StudentError: naming the model class, when they differ.
    """
    model: Any = student
    training = model.training
    model.eval()
    head = Head.of(student)
    ids = torch.arange(8, device=head.weight.device)[None] % len(head.weight)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if has_source:
        inputs["decoder_input_ids"] = ids
    own = model(**inputs, **without_cache(model)).logits[0]
    try:
        found = run(model, inputs, (), -1).head_inputs
    except (AttributeError, TypeError, RuntimeError) as error:
        raise _headless(student) from error
    model.train(training)
    if found is None or found.shape[-1] != head.weight.shape[1]:
        raise _headless(student)
    ours = head.logits(found[0])
    bound = _TOLERANCE * max(1.0, own.abs().max().item())
    difference = (own - ours).abs().max().item() if own.shape == ours.shape else float("inf")
    if not difference <= bound:
        raise StudentError(
            f"{type(student).__name__} does something to its logits that teachonce does not know",
            expected=f"the same logits within {bound:.2g}",
            got=f"a difference of {difference:.2g}",
            do="Report the model class; its head must be taught to schemas/model_heads.py",
        )


def without_cache(model: Any) -> dict[str, bool]:
    """What keeps a decoder from handing out keys and values, which nobody reads here."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _headless(student: nn.Module) -> StudentError:
    return StudentError(
        "this model class has no linear language-model head to train",
        got=type(student).__name__,
        do="Choose a student of another class",
    )
