"""jaxtyping opens one scope of axes a call, and beartype checks in it, once; where no shape is said it checks alone.

The hook itself binds the arguments of every call of every function anew, and checks them three times: half of the
time of a test that reads a cache again and again.
"""

import functools
from collections.abc import Callable
from dataclasses import is_dataclass
from inspect import isclass, isfunction, isgeneratorfunction
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKED = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
"""Of another type is an error of the same kind as of another shape: a `TypeError`, as the hook's own."""


def wrap_only_what_says_a_shape() -> None:
    """To be called before the packages are imported; the hook looks the decorator up by this name."""
    jaxtyping.jaxtyped = _sparing(jaxtyping.jaxtyped)


def _sparing(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    axes = jaxtyped("context")  # its calls may stand within each other

    def sparing(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
        whole = jaxtyped(typechecker=typechecker)

        def wrap(code: Any) -> Any:
            if is_dataclass(code) and isclass(code) and "__init__" in vars(code):
                code.__init__ = wrap(code.__init__)
                return code
            if isfunction(code) and _is_private(code):
                return code
            if not isfunction(code) or not _is_resolved(code):
                return whole(code)
            if not _says_a_shape(code):
                return CHECKED(code)
            return whole(code) if isgeneratorfunction(code) else _within(axes, CHECKED(code))

        return wrap

    return sparing


def _within(axes: Any, checked: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(checked)
    def scoped(*positional: Any, **named: Any) -> Any:
        with axes:
            return checked(*positional, **named)

    return scoped


def _is_private(function: Callable[..., Any]) -> bool:
    """What no other module calls: its callers are checked, and mypy checks it."""
    name = function.__name__
    return name.startswith("_") and not name.startswith("__")


def _is_resolved(function: Callable[..., Any]) -> bool:
    """Nothing among its annotations that only a type checker sees."""
    owner = function.__qualname__.split(".")[:-1][-1:]
    names = {**function.__globals__, **dict.fromkeys(owner, object)}
    try:
        for annotation in function.__annotations__.values():
            eval(str(annotation), names)
    except (NameError, AttributeError, SyntaxError):
        return False
    return True


def _says_a_shape(function: Callable[..., Any]) -> bool:
    """Axes are text within an annotation."""
    return any({'"', "'"} & set(str(annotation)) for annotation in function.__annotations__.values())
