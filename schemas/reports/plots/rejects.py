"""What was not cached, and why."""

from __future__ import annotations

import altair as alt

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.plots.plot import COLOURS, Charts, Missing, Plot, axis, chart_of, fitted


def _draw(facts: CacheFacts) -> Charts | Missing:
    rows = [{"reason": reason, "documents": count} for reason, count in facts.rejects.items() if count]
    if not rows:
        return Missing("no document was rejected in the versions that are told of")
    bars = chart_of(rows).mark_bar(color=COLOURS[6])
    encoded = bars.encode(
        x=alt.X(**axis("documents", "documents", axis=alt.Axis(tickMinStep=1))),
        y=alt.Y("reason:N", sort=None, title=None, axis=alt.Axis(labelLimit=130)),
        tooltip=["reason:N", "documents:Q"],
    )
    return {"": fitted(encoded).properties(height=max(60, 24 * len(rows)))}


REJECTS = Plot[CacheFacts](
    name="rejects",
    title="Rejects by reason",
    told="Documents that the runs rejected; each run's list, with source and offset, is under _teachonce/rejects/.",
    draw=_draw,
)
