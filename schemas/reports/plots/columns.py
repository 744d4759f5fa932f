"""Which column takes how much room."""

from __future__ import annotations

import altair as alt

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.plots.plot import COLOURS, Charts, Missing, Plot, axis, chart_of, fitted


def _draw(facts: CacheFacts) -> Charts | Missing:
    rows = [{"column": name, "bytes": size} for name, size in facts.sample.column_bytes.items()]
    if not rows:
        return Missing("the cache holds no shards")
    bars = chart_of(rows).mark_bar(color=COLOURS[2])
    encoded = bars.encode(
        x=alt.X(**axis("bytes", "bytes a token")),
        y=alt.Y("column:N", sort=None, title=None, axis=alt.Axis(labelLimit=130)),
        tooltip=["column:N", alt.Tooltip("bytes:Q", format=".3f")],
    )
    return {"": fitted(encoded).properties(height=max(60, 18 * len(rows)))}


COLUMNS = Plot[CacheFacts](
    name="columns",
    title="Bytes by column",
    told="Compressed bytes a token, over the shards whose footers were read.",
    draw=_draw,
)
