"""Where student and teacher agree: by how sure the teacher is."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from schemas.reports.plots.plot import Charts, Missing, Plot, axis, by_run, chart_of, fitted
from schemas.reports.plots.quality import EVALUATE
from schemas.reports.runs import Run


def _draw(runs: Sequence[Run]) -> Charts | Missing:
    measured = [
        (run, closer)
        for run in runs
        if run.evaluation
        for closer in run.evaluation.closer
        if closer.positions
    ]
    if not measured:
        return Missing("no run has a saved evaluation with distributions", EVALUATE)
    rows = [
        {
            "run": run.name,
            "entropy": (one.low_nats + one.high_nats) / 2,
            "agreement": one.agreement,
            "kl": one.kl_nats,
            "positions": one.positions,
        }
        for run, closer in measured
        for one in closer.by_entropy
    ]
    if not rows:
        return Missing("the cache stores no entropies", "teachonce precompute ... --scalars entropy gold")
    line = chart_of(rows).mark_line(point=True)
    encoded = line.encode(
        x=alt.X(**axis("entropy", "teacher's entropy, nats")),
        y=alt.Y(**axis("agreement", "agreement", axis=alt.Axis(format="%"))),
        color=by_run([run.name for run in runs]),
        tooltip=["run:N", "entropy:Q", "agreement:Q", "kl:Q", "positions:Q"],
    )
    return {"": fitted(encoded)}


AGREEMENT = Plot[Sequence[Run]](
    name="agreement",
    title="Agreement by the teacher's entropy",
    told="The share of positions where both find the same likeliest, over positions of alike entropy.",
    draw=_draw,
)
