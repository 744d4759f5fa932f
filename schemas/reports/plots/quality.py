"""What a student's quality costs in size and in speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from schemas.reports.plots.plot import Charts, Missing, Plot, axis, by_run, chart_of, fitted
from schemas.reports.runs import Run, number_of

MEASURES: Mapping[str, str] = {
    "kl_nats": "KL to the teacher, nats",
    "cross_entropy_with_teacher_nats": "cross entropy with the teacher, nats",
    "top1_agreement": "agreement with the teacher",
    "agreement": "agreement with the teacher",
    "cross_entropy_nats": "cross entropy with labels, nats",
    "accuracy": "accuracy",
    "mse_with_teacher": "squared error with the teacher",
}
"""Metrics that say how good a student is, the first that all have first."""
EVALUATE = "teachonce evaluate --cache CACHE --student STUDENT --save"


def _draw(runs: Sequence[Run]) -> Charts | Missing:
    measured = [run for run in runs if run.metrics]
    if not measured:
        return Missing("no run was evaluated", EVALUATE)
    measure = next((name for name in MEASURES if all(name in run.metrics for run in measured)), None)
    if measure is None:
        return Missing("the runs have no metric in common")
    charts = {"by size": _chart(runs, measured, measure, "parameters", "parameters saved")}
    if any(run.tokens_per_second for run in measured):
        charts["by speed"] = _chart(runs, measured, measure, "speed", "tokens a second, forward only")
    return charts


def _chart(runs: Sequence[Run], measured: Sequence[Run], measure: str, field: str, title: str) -> Any:
    rows = [
        {
            "run": run.name,
            "quality": number_of(run.metrics[measure]),
            "parameters": run.parameters,
            "speed": run.tokens_per_second,
        }
        for run in measured
    ]
    points = chart_of(row for row in rows if row[field]).mark_point(filled=True, size=110, opacity=1)
    encoded = points.encode(
        x=alt.X(**axis(field, title, scale=alt.Scale(zero=False, padding=16), axis=alt.Axis(format="~s"))),
        y=alt.Y(**axis("quality", MEASURES[measure], scale=alt.Scale(zero=False, padding=12))),
        color=by_run([run.name for run in runs]),
        tooltip=["run:N", "quality:Q", "parameters:Q", "speed:Q"],
    )
    return fitted(encoded)


QUALITY = Plot[Sequence[Run]](
    name="quality",
    title="Quality against size and speed",
    told="Measured on the held-out part. Speeds compare where they were taken on one machine.",
    draw=_draw,
)
