"""What a cache says is data from somebody: it is bounded and typed before it is believed.

Seals and hashes prove that bytes are the writer's, and not that the writer is a friend. So JSON is measured before it
is parsed, each value has the type that its field declares, and whatever a library raises over what was sealed is one
line that names the file. What does not fit into the memory is told as that, and never as damage.

Cost: a pass over the JSON, and a look at the type of each value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from schemas.errors import CacheError, CorruptionError, SealedError, TeachonceError, one_line

MAX_JSON_BYTES = 2**28
"""Of one object: the names of half a million shards fit."""
MAX_DEPTH = 32
MAX_COUNT = 2**53
"""Whole numbers up to here are exact in every language's JSON."""

_TEXTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_FOREIGN = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    NotImplementedError,
    struct.error,
    pa.ArrowException,
)
"""What numpy, Arrow and Python raise over bytes that mean nothing; a `TypeError` would rather be a fault of ours, and
no shard may be called broken for that."""
OF_JSON = (TypeError, AttributeError)
"""What Python raises over JSON of another form."""


@contextlib.contextmanager
def told(
    what: str, where: str, do: str | None = None, *, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Errors of a library, and those in `also`, raised over what a cache says, as one line.

    Raises:
        CorruptionError: it means nothing.
        CacheError: it takes more memory than there is.
    """
    try:
        yield
    except TeachonceError:
        raise
    except MemoryError as error:
        raise CacheError(
            f"{what}: it takes more memory than there is", where=where, do="Read it on a larger machine"
        ) from error
    except RecursionError as error:
        raise CorruptionError(what, where=where, got="something nested without end", do=do) from error
    except (*_FOREIGN, *also) as error:
        raise CorruptionError(what, where=where, got=one_line(error), do=do) from error


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """What is found wrong in bytes that a seal vouched for is told as that.

    Raises:
        SealedError: in place of any other `CorruptionError`.
    """
    try:
        yield
    except CorruptionError as error:
        raise SealedError(
            error.what, where=error.where, expected=error.expected, got=error.got, do=error.do
        ) from error


def parse_json(data: bytes | str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """JSON of bounded size and depth, in which no key stands twice and every number is finite.

    Raises:
        ValueError: it is none.
    """
    if len(data) > max_bytes:
        raise ValueError(f"JSON of {len(data):,} bytes, where {max_bytes:,} are the most")
    _refuse_deep(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    return json.loads(data, object_pairs_hook=_each_once, parse_constant=_refuse_constant)


def _refuse_deep(data: bytes) -> None:
    brackets = _TEXTS.sub(b"", data).translate(None, _NO_BRACKETS)
    if len(brackets) <= MAX_DEPTH:
        return
    kinds = np.frombuffer(brackets, np.uint8)
    opens = (kinds == ord("[")) | (kinds == ord("{"))
    if np.cumsum(np.where(opens, 1, -1)).max() > MAX_DEPTH:
        raise ValueError(f"JSON that is nested more than {MAX_DEPTH} deep")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("JSON in which a key stands twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON with {name}, which is no number")


def conform(kind: Any, value: Any, name: str = "") -> Any:
    """A parsed value as a field of this type holds it: lists become tuples, objects the dataclass that is declared.

    A whole number may stand for a float, and nothing else for anything: no truth value for a number, no number for a
    text.

    Raises:
        ValueError: it is of another type; naming the field.
    """
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        return float(value) if abs(value) > MAX_COUNT else value
    origin = get_origin(kind)
    if origin is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(conform(get_args(kind)[0], one, name) for one in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: conform(get_args(kind)[1], one, f"{name}.{key}") for key, one in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        make: Any = kind
        return make(**conform_fields(kind, value))
    if origin is None and type(value) is kind and (kind is not float or math.isfinite(value)):
        return value
    raise ValueError(f"{name} cannot be {shown(value)}")


def conform_fields(kind: Any, value: Mapping[str, Any], made: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass from an object, each as `conform` takes it; those in `made` as they are.

    Raises:
        ValueError: a field is unknown, or of another type.
    """
    kinds = _kinds(kind)
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind.__name__} cannot be {shown(value)}")
    if unknown := [name for name in value if name not in kinds]:
        raise ValueError(f"{kind.__name__} has no field {shown(unknown[0])}")
    return {name: one if name in made else conform(kinds[name], one, name) for name, one in value.items()}


@functools.cache
def _kinds(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def shown(value: object) -> str:
    """A value for an error's line, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def refuse_unless(condition: bool, field: str, value: object) -> None:
    """Refuses nonsense where a value is made.

    Raises:
        ValueError: naming the field and what it got.
    """
    if not condition:
        raise ValueError(f"{field} cannot be {shown(value)}")
