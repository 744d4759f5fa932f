"""jaxtyping wraps whole what has a shape among its annotations; of other functions the types are checked alone.

The hook binds the arguments of every call of every function anew: a fifth of the time of a test that runs a job, two
fifths of one that reads a cache again and again.
"""

from collections.abc import Callable
from inspect import isfunction
from typing import Any

import jaxtyping


def wrap_only_what_says_a_shape() -> None:
    """To be called before the packages are imported; the hook looks the decorator up by this name."""
    jaxtyping.jaxtyped = _sparing(jaxtyping.jaxtyped)


def _sparing(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    def sparing(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
        whole = jaxtyped(typechecker=typechecker)
        return lambda code: typechecker(code) if isfunction(code) and _has_plain_types(code) else whole(code)

    return sparing


def _has_plain_types(function: Callable[..., Any]) -> bool:
    """No axes, which are text within an annotation; and nothing that only a type checker sees."""
    owner = function.__qualname__.split(".")[:-1][-1:]
    names = {**function.__globals__, **dict.fromkeys(owner, object)}
    try:
        for annotation in function.__annotations__.values():
            text = str(annotation)
            if '"' in text or "'" in text:
                return False
            eval(text, names)
    except (NameError, AttributeError, SyntaxError):
        return False
    return True
