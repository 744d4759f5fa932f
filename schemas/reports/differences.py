"""What differs between runs: the settings of each that are not the same in all."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.reports.runs import Run

NOTHING = "-"


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Names of settings with the value in each run, where these are not all alike."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, [run.settings.get(name, NOTHING) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
