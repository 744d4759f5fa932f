"""How long the examples are."""

from __future__ import annotations

import altair as alt

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.plots.plot import COLOURS, Charts, Missing, Plot, axis, chart_of, fitted


def _draw(facts: CacheFacts) -> Charts | Missing:
    counts = facts.totals.length_histogram
    filled = [bucket for bucket, count in enumerate(counts) if count]
    if not filled:
        return Missing("the cache holds no examples")
    rows = [
        {"tokens": f"{2**bucket:,} to {2 ** (bucket + 1) - 1:,}", "examples": counts[bucket]}
        for bucket in range(filled[0], filled[-1] + 1)
    ]
    bars = chart_of(rows).mark_bar(color=COLOURS[0])
    encoded = bars.encode(
        x=alt.X("tokens:O", sort=None, title="tokens", axis=alt.Axis(labelAngle=-40)),
        y=alt.Y(**axis("examples", "examples")),
        tooltip=["tokens:O", "examples:Q"],
    )
    return {"": fitted(encoded)}


LENGTHS = Plot[CacheFacts](
    name="lengths",
    title="Lengths",
    told="Examples by their number of tokens, all of the cache, from the log.",
    draw=_draw,
)
