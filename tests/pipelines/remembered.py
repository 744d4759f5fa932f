"""Beam's answers about our steps and options, worked out once instead of hundreds of times a run.

A tiny run spends half of its second in these functions of Beam: what state a step's class has, the argument parser of a
class of options, the parameters of a function, and whether its source says both `yield` and `return`. The answers
depend on nothing that changes while tests run, so they are the real ones, kept. The deep size of what a run caches
decides what is dropped from a cache of 100 MB: here everything is small.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker import statecache
from apache_beam.transforms import core, ptransform, userstate, util
from apache_beam.typehints import decorators


def remember(patch: pytest.MonkeyPatch) -> None:
    """Keeps the answers until the patch ends."""
    patch.setattr(userstate, "get_dofn_specs", _by_class(userstate.get_dofn_specs))
    patch.setattr(PipelineOptions, "view_as", _one_view_a_class(PipelineOptions.view_as))
    signature = _by_function(decorators.get_signature)
    for module in (decorators, core, ptransform, util):
        patch.setattr(module, "get_signature", signature)
    patch.setattr(core, "_check_fn_use_yield_and_return", _by_function(core._check_fn_use_yield_and_return))
    patch.setattr(statecache, "get_deep_size", lambda *_: 1_000)


def _by_class(ask: Any) -> Any:
    known: dict[Any, Any] = {}

    def specs(dofn: Any) -> Any:
        key = type(dofn), getattr(dofn.process, "__func__", None)  # `Map` puts its function there
        if key not in known:
            known[key] = ask(dofn)
        return known[key]

    return specs


def _one_view_a_class(ask: Any) -> Any:
    """All views of some options share one dictionary of values, which the view that is kept holds on to."""
    known: dict[Any, Any] = {}

    def view_as(options: PipelineOptions, cls: type[PipelineOptions]) -> PipelineOptions:
        key = id(options._all_options), cls
        if key not in known:
            known[key] = ask(options, cls)
        return known[key]

    return view_as


def _by_function(ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A method is known by its function; of callables that are neither, the real one is asked."""
    of_kind: dict[type, WeakKeyDictionary[Any, Any]] = {
        FunctionType: WeakKeyDictionary(),
        MethodType: WeakKeyDictionary(),
    }

    def answer(code: Any) -> Any:
        known = of_kind.get(type(code))
        function = getattr(code, "__func__", code)
        if known is None or not isinstance(function, FunctionType):
            return ask(code)
        if function not in known:
            known[function] = ask(code)
        return known[function]

    return answer
