"""Calling a model that may be of any class: with what its forward takes, and with whatever it raises as one line."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors import SafetensorError

from schemas.errors import TeacherError, one_line

MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What opening and calling a model raises when it cannot be opened or called; Ctrl-C is none of it."""

_OPTIONAL = {
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
    "protobuf": "protobuf",
}
"""Packages that some models and tokenizers need, by the words in which an error asks for them."""


def accepted(forward: Callable[..., Any], **inputs: Any) -> dict[str, Any]:
    """Those of the inputs that a forward takes, by name or among its further keyword arguments."""
    parameters = inspect.signature(forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return inputs
    return named(forward, **inputs)


def named(forward: Callable[..., Any], **inputs: Any) -> dict[str, Any]:
    """Those of the inputs that a forward has a parameter for."""
    parameters = inspect.signature(forward).parameters
    return {name: value for name, value in inputs.items() if name in parameters}


@contextlib.contextmanager
def told(what: str, model: Any = None) -> Iterator[None]:
    """Whatever a model's own code raises in the block becomes one line that names its class.

    Raises:
        TeacherError: instead of it.
    """
    name = "" if model is None else f"{type(model).__name__} "
    try:
        yield
    except MODEL_ERRORS as error:
        half = model is not None and model.dtype == torch.float16
        advice = "Say --dtype float32 or bfloat16" if half and "Half" in str(error) else None
        raise TeacherError(
            f"{name}{what}", got=f"{type(error).__name__}: {one_line(error)}", do=advice or lacking(error)
        ) from error


def lacking(error: BaseException) -> str | None:
    """What to install, where an error says that a package is missing."""
    text = str(error)
    if isinstance(error, ImportError):
        found = [package for word, package in _OPTIONAL.items() if word in text.lower()]
        name = getattr(error, "name", None)
        if found or name:
            return f"pip install {' '.join(found) or name}"
    return None


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory: on a CPU its allocator raises a plain `RuntimeError`."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(text in str(error) for text in _OUT_OF_MEMORY)
