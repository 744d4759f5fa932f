"""Whether a student is right as often as it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from schemas.reports.evaluations import ConfidenceBin
from schemas.reports.plots.plot import Charts, Missing, Plot, axis, by_run, chart_of, fitted
from schemas.reports.plots.quality import EVALUATE
from schemas.reports.runs import Run

_GREY = "#8a8f98"


def expected_calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """The mean over positions of |accuracy - confidence|, bin by bin (arXiv:1706.04599)."""
    total = sum(one.positions for one in bins)
    return sum(one.positions * abs(one.accuracy - one.confidence) for one in bins) / max(1, total)


def _draw(runs: Sequence[Run]) -> Charts | Missing:
    found = {
        run.name: closer
        for run in runs
        if run.evaluation
        for closer in run.evaluation.closer
        if closer.student
    }
    if not found:
        return Missing("no run has a saved evaluation with distributions", EVALUATE)
    rows = [row for name, closer in found.items() for row in _rows(name, "student", closer.student)]
    first, closer = next(iter(found.items()))
    rows += _rows(first, "teacher", closer.teacher)
    scale = alt.Scale(domain=[0, 1])
    lines = chart_of(row for row in rows if row["side"] == "student").mark_line(point=True)
    right = "the label" if closer.right_is == "label" else "the teacher's likeliest"
    encoding = {
        "x": alt.X(**axis("confidence", "probability of the likeliest", scale=scale)),
        "y": alt.Y(**axis("accuracy", f"share where it is {right}", scale=scale)),
        "tooltip": ["run:N", "side:N", "confidence:Q", "accuracy:Q", "positions:Q"],
    }
    layers = [_diagonal(), lines.encode(color=by_run([run.name for run in runs]), **encoding)]
    if closer.teacher:
        dotted = chart_of(row for row in rows if row["side"] == "teacher").mark_line(
            strokeDash=[2, 3], point=alt.OverlayMarkDef(color=_GREY), color=_GREY
        )
        layers.append(dotted.encode(**encoding))
    return {"": fitted(alt.layer(*layers))}


def _rows(name: str, side: str, bins: Sequence[ConfidenceBin]) -> list[dict[str, Any]]:
    return [
        {
            "run": name,
            "side": side,
            "confidence": one.confidence,
            "accuracy": one.accuracy,
            "positions": one.positions,
        }
        for one in bins
        if one.positions
    ]


def _diagonal() -> Any:
    ends = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    line = chart_of(ends).mark_line(color=_GREY, opacity=0.5)
    return line.encode(x="confidence:Q", y="accuracy:Q")


CALIBRATION = Plot[Sequence[Run]](
    name="calibration",
    title="Calibration",
    told="On the grey line a student is right as often as it says; below it is too sure. Dotted: the teacher itself.",
    draw=_draw,
)
