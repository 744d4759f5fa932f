"""A plot's card: its title, how to read it, and its charts; or why it is missing and which command brings it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from schemas.reports.markup import Html, element, joined, shown
from schemas.reports.plots.plot import Missing, Plot

Facts = TypeVar("Facts")


def cards(plots: Iterable[Plot[Facts]], facts: Facts, place: str, charts: dict[str, Any]) -> Html:
    """The plots of some facts; what they draw is added to `charts`, by the ids of their places."""
    return element("div", joined(_card(plot, facts, place, charts) for plot in plots), **{"class": "plots"})


def _card(plot: Plot[Facts], facts: Facts, place: str, charts: dict[str, Any]) -> Html:
    drawn = plot.draw(facts)
    title = element("h3", shown(plot.title))
    if isinstance(drawn, Missing):
        return element("section", title, missing(drawn), **{"class": "card"})
    parts = [title, element("p", shown(plot.told), **{"class": "dim"})]
    for number, (caption, chart) in enumerate(drawn.items()):
        name = f"{place}-{plot.name}-{number}"
        charts[name] = chart.to_dict()
        heading = [element("h4", shown(caption))] if caption else []
        parts += [*heading, element("div", **{"class": "chart", "id": name})]
    return element("section", *parts, **{"class": "card"})


def missing(told: Missing) -> Html:
    """In a plot's place."""
    command = [element("code", shown(told.do))] if told.do else []
    text = shown(f"Not here: {told.why}." + (" It comes with " if told.do else ""))
    return element("p", text, *command, **{"class": "missing"})
