"""What the page says of students."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from schemas.reports.cards import cards, missing
from schemas.reports.differences import differing
from schemas.reports.markup import Html, element, foreign, joined, shown, table
from schemas.reports.plots.calibration import expected_calibration_error
from schemas.reports.plots.plot import Missing, colour_of
from schemas.reports.plots.plots import RUN_PLOTS
from schemas.reports.plots.quality import EVALUATE, MEASURES
from schemas.reports.runs import Run, number_of
from schemas.reports.worst import worst_examples


def run_section(runs: Sequence[Run], charts: dict[str, Any]) -> Html:
    """Legend, table, plots, settings that differ, worst examples."""
    parts = [
        element("h2", shown("Students")),
        _legend(runs),
        _table(runs),
        *_unmeasured(runs),
        cards(RUN_PLOTS, runs, "students", charts),
        _settings(runs),
        worst_examples(runs),
    ]
    return element("section", joined(parts), id="students")


def _legend(runs: Sequence[Run]) -> Html:
    marks = (
        element("span", element("i", style=f"background:{colour_of(place)}"), foreign(run.name))
        for place, run in enumerate(runs)
    )
    return element("p", joined(marks), **{"class": "legend"})


def _table(runs: Sequence[Run]) -> Html:
    measures = [name for name in MEASURES if any(name in run.metrics for run in runs)]
    names = ("student", "losses", "steps", "parameters", "MB", "tokens/s", *measures, "calibration error")
    rows = [[*_row(run), *(_number(run.metrics.get(name)) for name in measures), _ece(run)] for run in runs]
    return element("section", table(names, rows), **{"class": "card"})


def _row(run: Run) -> Iterator[Html]:
    speed = run.tokens_per_second
    yield foreign(run.name)
    yield foreign(" ".join(f"{name}={weight:g}" for name, weight in run.losses.items()) or "-")
    yield shown(f"{run.step:,}")
    yield shown(f"{run.parameters:,}")
    yield shown(f"{run.weight_bytes / 1e6:,.1f}")
    yield shown("-" if speed is None else f"{speed:,.0f}")


def _number(value: Any) -> Html:
    number = number_of(value)
    return shown("-" if number is None else f"{number:.4f}")


def _ece(run: Run) -> Html:
    bins = run.evaluation.closer[0].student if run.evaluation and run.evaluation.closer else ()
    return shown(f"{expected_calibration_error(bins):.4f}" if bins else "-")


def _unmeasured(runs: Sequence[Run]) -> Iterator[Html]:
    """What some folders do not hold."""
    for run in runs:
        if run.no_evaluation:
            yield missing(Missing(f"an evaluation of {run.name}, as {run.no_evaluation}", EVALUATE))
        elif run.evaluation and run.evaluation.no_closer:
            yield missing(Missing(f"a closer look at {run.name}: {run.evaluation.no_closer}"))
        if not run.history:
            yield missing(Missing(f"the log of {run.name}: its folder has no trainer_state.json"))


def _settings(runs: Sequence[Run]) -> Html:
    heading = element("h3", shown("Settings that differ"))
    if len(runs) < 2:
        told = element("p", shown("One run alone: nothing to compare it with."))
        return element("section", heading, told, **{"class": "card"})
    rows = [(foreign(name), *map(foreign, values)) for name, values in differing(runs)]
    if not rows:
        told = element("p", shown("None: the records of all runs say the same."))
        return element("section", heading, told, **{"class": "card"})
    return element("section", heading, table(("", *(run.name for run in runs)), rows), **{"class": "card"})
