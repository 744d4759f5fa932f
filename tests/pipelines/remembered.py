"""Beam's answers about our steps and options, worked out once instead of hundreds of times a run.

A tiny run spends half of its second in two functions of Beam: what state a step's class has, and the argument parser
of a class of options. Both answers depend on nothing that changes while tests run, so they are the real ones, kept.
"""

from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import userstate


def remember(patch: pytest.MonkeyPatch) -> None:
    """Keeps both answers until the patch ends."""
    patch.setattr(userstate, "get_dofn_specs", _by_class(userstate.get_dofn_specs))
    patch.setattr(PipelineOptions, "view_as", _one_view_a_class(PipelineOptions.view_as))


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
