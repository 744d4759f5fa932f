"""What a plot is: a title, words on how to read it, and a function from facts to charts, or to why there are none.

A chart is one view that takes its container's width, so that it fits a phone. Colours of runs are those of the page's
legend; text, axes and grid are coloured by the page, for light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import altair as alt
import numpy as np

from schemas.rows.ragged import Array

Facts = TypeVar("Facts")
Charts = Mapping[str, Any]
"""By a caption of their own, which may be empty where there is one."""
HEIGHT = 220
COLOURS = (
    *("#4c8fd6", "#e07b39", "#3ba376", "#c65fa3", "#c9a227", "#7f77dd"),
    *("#d95757", "#3aa5b8", "#8f9a3b", "#a3745a", "#8a8f98", "#b06bd0"),
)
"""Told apart on white and on black."""


class Missing(NamedTuple):
    """Why a plot is not there, and the command that brings it."""

    why: str
    do: str = ""


@dataclass(frozen=True, kw_only=True)
class Plot(Generic[Facts]):
    """One plot of a report."""

    name: str
    """Its id in the page."""
    title: str
    told: str
    draw: Callable[[Facts], Charts | Missing]


def colour_of(place: int) -> str:
    """Of the run with this number."""
    return COLOURS[place % len(COLOURS)]


def chart_of(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A chart over these rows, before it has marks."""
    return alt.Chart(alt.InlineData(values=[*rows]))


def fitted(chart: Any) -> Any:
    """As wide as its place on the page."""
    return chart.properties(
        width="container", height=HEIGHT, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )


def by_run(names: Sequence[str]) -> Any:
    """The colour of each run; the page has the legend."""
    scale = alt.Scale(domain=[*names], range=[colour_of(place) for place in range(len(names))])
    return alt.Color("run:N", scale=scale, legend=None)


def axis(field: str, title: str, **more: Any) -> dict[str, Any]:
    """The keyword arguments of a channel over numbers."""
    return {"shorthand": f"{field}:Q", "title": title, **more}


def histogram(values: Array, edges: Array, title: str) -> Any:
    """Shares of all values between edges that ascend; what lies beyond them counts to the ends."""
    found = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(found, minlength=len(edges) - 1).tolist()
    total = max(1, sum(counts))
    rows = [
        {"from": float(edges[n]), "to": float(edges[n + 1]), "share": count / total, "positions": count}
        for n, count in enumerate(counts)
    ]
    return fitted(
        chart_of(rows)
        .mark_bar(color=COLOURS[0])
        .encode(
            x=alt.X(**axis("from", title, bin="binned")),
            x2="to:Q",
            y=alt.Y(**axis("share", "share of positions", axis=alt.Axis(format="%"))),
            tooltip=["from:Q", "to:Q", "positions:Q"],
        )
    )
