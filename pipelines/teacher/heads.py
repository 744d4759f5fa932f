"""A language model's head, applied to chosen positions only and in float32.

Logits of a whole batch, `[B, S, V]`, never exist. The products leave in float32 also for a bfloat16 teacher: rounded to
bfloat16 they would cost six times the codec's error, and tie most cuts. A model's own scaling and soft-capping are
applied, and at load one batch is compared with the model's own forward.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float

from pipelines.teacher.calls import accepted
from schemas.errors import TeacherError, one_line
from schemas.model_heads import head_transform, head_values, output_bias

_PLAIN = (torch.float32, torch.bfloat16, torch.float16)


class Head(NamedTuple):
    """A linear head with what the model does to its product: `cap * tanh(multiplier * (h W^T + b) / cap)`."""

    weight: torch.Tensor
    """[V, D]; float32 on a CPU, the model's own dtype on an accelerator."""
    bias: torch.Tensor | None
    multiplier: float
    softcap: float | None

    @classmethod
    def of(cls, model: Any) -> "Head":
        """The head of a language model, with its config's scaling and soft-cap.

        Raises:
            TeacherError: the model has no linear output layer.
        """
        layer = model.get_output_embeddings()
        if not isinstance(getattr(layer, "weight", None), torch.Tensor):
            raise TeacherError(
                "the teacher has no linear head", where=type(model).__name__, do="Use another --teacher"
            )
        if layer.weight.dtype not in _PLAIN:
            raise TeacherError(
                "the teacher's head is quantised",
                where=type(model).__name__,
                expected="a head in float32, bfloat16 or float16",
                got=layer.weight.dtype,
                do="Use a checkpoint that leaves lm_head as it was: most do",
            )
        weight = layer.weight.detach()
        weight = weight if weight.is_cuda else weight.float()
        bias = output_bias(model)
        multiplier, softcap = head_transform(head_values(model.config.get_text_config()))
        return cls(weight, None if bias is None else bias.detach().float(), multiplier, softcap)

    def logits(
        self, hidden: Float[torch.Tensor, "N D"], out: Float[torch.Tensor, "N V"] | None = None
    ) -> Float[torch.Tensor, "N V"]:
        """float32 logits of N hidden states, written into `out` where it is given (on a CPU new pages cost a tenth
        of the product)."""
        if hidden.is_cuda and hidden.dtype != torch.float32:
            logits = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)
        else:
            logits = torch.mm(hidden.float(), self.weight.t(), out=out)
        if self.bias is not None:
            logits += self.bias
        if self.multiplier != 1:
            logits *= self.multiplier
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


def compare_with_forward(
    model: Any,
    body: Any,
    head: Head,
    inputs: Mapping[str, torch.Tensor],
    at_positions: Callable[..., torch.Tensor],
) -> None:
    """Compares body and head with the model's own forward on every token of one text, or target.

    Raises:
        TeacherError: naming the model's class, when they differ by more than rounding.
    """
    given = {**inputs, "use_cache": False}
    own = model(**accepted(model.forward, **given)).logits[0].float()
    try:
        output = body(**accepted(body.forward, **given))
    except (AttributeError, TypeError, RuntimeError) as error:
        raise _unknown_head(model, f"{type(error).__name__}: {one_line(error)}") from error
    read = inputs.get("decoder_input_ids", inputs["input_ids"])
    places = torch.arange(read.shape[1], device=read.device)
    states = _head_inputs(model, output, at_positions, places)
    ours = head.logits(states.to(head.weight.device)).to(own.device)
    if own.shape != ours.shape:
        raise _unknown_head(model, f"logits of shape {tuple(own.shape)}, not {tuple(ours.shape)}")
    if not own.isfinite().all() and model.dtype == torch.float16:
        raise TeacherError(
            f"{type(model).__name__} overflows in float16", do="Say --dtype bfloat16 or float32"
        )
    rounding = 2**-6 if model.dtype != torch.float32 else 2**-12
    bound = rounding * max(1.0, own.abs().max().item())
    difference = (own - ours).abs().max().item()
    if not difference <= bound:
        raise _unknown_head(model, f"logits that differ by {difference:.3g}, more than {bound:.3g}")


def _head_inputs(
    model: Any, output: Any, at_positions: Callable[..., torch.Tensor], places: torch.Tensor
) -> torch.Tensor:
    try:
        found = at_positions(output, torch.zeros_like(places), places)
    except (AttributeError, TypeError, IndexError):
        found = None
    if found is None or found.ndim != 2:
        raise TeacherError(
            f"{type(model).__name__} has no body apart from its head", got=type(output).__name__
        )
    return found


def _unknown_head(model: Any, got: str) -> TeacherError:
    return TeacherError(
        f"{type(model).__name__} does something to its logits that teachonce does not know",
        got=got,
        do="Report the model class; its head must be taught to schemas/model_heads.py",
    )
