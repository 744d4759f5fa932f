"""How the cache grew."""

from __future__ import annotations

import altair as alt

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.plots.plot import COLOURS, Charts, Missing, Plot, axis, chart_of, fitted


def _draw(facts: CacheFacts) -> Charts | Missing:
    rows = [
        {"time": one.time.isoformat(), "version": one.number, "examples": one.examples, "shards": one.shards}
        for one in facts.versions
    ]
    if len(rows) < 2:
        return Missing("the cache has one version so far")
    line = chart_of(rows).mark_line(point=True, interpolate="step-after", color=COLOURS[0])
    encoded = line.encode(
        x=alt.X("time:T", title="time of the commit, UTC", scale=alt.Scale(type="utc")),
        y=alt.Y(**axis("examples", "live examples")),
        tooltip=["version:Q", "time:T", "examples:Q", "shards:Q"],
    )
    return {"": fitted(encoded)}


VERSIONS = Plot[CacheFacts](
    name="versions",
    title="Versions over time",
    told="Live examples after each commit.",
    draw=_draw,
)
