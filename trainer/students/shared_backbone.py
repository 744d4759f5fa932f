"""One backbone for several students: parameters of one name below their heads become one.

By name and not by module: of one architecture some heads leave a part of the body out (a token classifier's BERT has no
pooler), and share the rest all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from schemas.errors import StudentError

_MOST = 0.5
"""Of a task's body, in parameters, so much at least must be every other task's too."""


def share_backbone(models: Mapping[str, Any]) -> int:
    """Makes the models' bodies one, the first model's where they differ; returns how many numbers all of them share.

    Raises:
        StudentError: naming the tasks that have no body in common.
    """
    shared: dict[str, nn.Parameter] = {}
    owner: dict[str, str] = {}
    for task, model in models.items():
        for name, own in _body(model).items():
            kept = shared.setdefault(name, own)
            first = owner.setdefault(name, task)
            if kept.shape != own.shape:
                raise _nothing_shared(first, task, f"{name} {list(kept.shape)}", f"{name} {list(own.shape)}")
            kept.requires_grad_(kept.requires_grad or own.requires_grad)
    common = set.intersection(*(set(_body(model)) for model in models.values()))
    size = sum(shared[name].numel() for name in common)
    for task, model in models.items():
        whole = sum(weight.numel() for weight in _body(model).values())
        if size < _MOST * whole:
            raise _nothing_shared(
                next(iter(models)), task, f"half of {whole:,} parameters", f"{size:,} that all tasks have"
            )
    for model in models.values():
        _tie(model, shared)
    return size


def _body(model: Any) -> dict[str, nn.Parameter]:
    return dict(model.base_model.named_parameters())


def _tie(model: Any, shared: Mapping[str, nn.Parameter]) -> None:
    base = model.base_model
    for name in _body(model):
        module, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(module), leaf, shared[name])
    model.tie_weights()  # a language model's head, to the embeddings that it has now


def _nothing_shared(first: str, task: str, expected: str, got: str) -> StudentError:
    return StudentError(
        f"the tasks {first} and {task} have no backbone in common",
        expected=expected,
        got=got,
        do="Train them apart, or name a --student whose body serves both",
    )
