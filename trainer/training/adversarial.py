"""FGM: a second pass on embeddings that are moved where the loss grows most (arXiv:1605.07725).

Each row's embeddings are moved by `epsilon` along their gradient, by its Euclidean length, and the loss there is added.
It is a function of the forward alone, so that wrappers such as DDP see one module; it costs a forward and two backward
passes more, and the memory of both.

Only the gradient's direction counts. So it is taken of the losses' sum over positions in place of their mean: no loss
scaler has seen it, and in float16 the mean's would be 0 in most places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_SMALL = 1e-12


class Embedded:
    """What a student's embedding gave in a forward, and what is added to it in the next."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.moved: Tensor | None = None

    def __call__(self, _: Any, __: Any, output: Tensor) -> Tensor:
        if self.moved is not None:
            return output + self.moved.to(output.dtype)
        self.given = output if output.requires_grad else output.detach().requires_grad_()
        return self.given


@contextmanager
def watched_embedding(student: Any) -> Iterator[Embedded]:
    """The student's embedding, of two halves the encoder's, heard and moved as `Embedded` says, for as long as the
    context is open."""
    held, has_halves = Embedded(), getattr(student.config, "is_encoder_decoder", False)
    reads = student.get_encoder() if has_halves else student
    handle = reads.get_input_embeddings().register_forward_hook(held)
    try:
        yield held
    finally:
        handle.remove()


def steepest(total: Float[Tensor, ""], held: Embedded, epsilon: float) -> Float[Tensor, "R S H"]:
    """How each row's embeddings are moved so that a sum of losses grows most; not where they have no gradient."""
    assert held.given is not None
    (gradient,) = torch.autograd.grad(total, held.given, retain_graph=True)
    length = gradient.float().flatten(1).norm(dim=1).clamp_min(_SMALL)
    moved: Tensor = epsilon * gradient.float() / length[:, None, None]
    return moved
