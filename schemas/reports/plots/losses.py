"""How each term of the losses went down, in training and on the held-out part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from schemas.reports.plots.plot import Charts, Missing, Plot, axis, by_run, chart_of, fitted
from schemas.reports.runs import Run

_MOST_POINTS = 400
_SIDES = {"training": "", "held out": "eval_"}


def _draw(runs: Sequence[Run]) -> Charts | Missing:
    terms = ["loss", *dict.fromkeys(name.partition(",")[0] for run in runs for name in run.losses)]
    charts = {term: _chart(term, runs) for term in terms}
    found = {term: chart for term, chart in charts.items() if chart is not None}
    return found or Missing("no run has logged a loss", "teachonce train ... --logging_steps 10")


def _chart(term: str, runs: Sequence[Run]) -> Any:
    rows = [row for run in runs for row in _points(term, run)]
    if not rows:
        return None
    line = chart_of(rows).mark_line(point=alt.OverlayMarkDef(size=14), clip=True)
    dash = alt.Scale(domain=[*_SIDES], range=[[1, 0], [5, 4]])
    encoded = line.encode(
        x=alt.X(**axis("step", "step")),
        y=alt.Y(
            **axis("value", f"{term}, nats" if term in ("kl", "ce") else term), scale=alt.Scale(zero=False)
        ),
        color=by_run([run.name for run in runs]),
        strokeDash=alt.StrokeDash("side:N", scale=dash, legend=None),
        tooltip=["run:N", "side:N", "step:Q", alt.Tooltip("value:Q", format=".4f")],
    )
    return fitted(encoded)


def _points(term: str, run: Run) -> Iterator[dict[str, Any]]:
    for side, prefix in _SIDES.items():
        lines = [line for line in run.history if f"{prefix}{term}" in line]
        for line in lines[:: -(-len(lines) // _MOST_POINTS) or 1]:
            yield {"run": run.name, "side": side, "step": line["step"], "value": line[f"{prefix}{term}"]}


LOSSES = Plot[Sequence[Run]](
    name="losses",
    title="Loss curves by term",
    told="Whole lines: training, means between logs. Dashed: the held-out part. A term of weight 0 is only logged.",
    draw=_draw,
)
