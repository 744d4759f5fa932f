"""What a sweep found, or would do, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from schemas.cli.tables import Cell, Table, console, print_table
from schemas.cli.terminal import print_json
from schemas.printable import printable
from trainer.sweep.config import SweepConfig
from trainer.sweep.results import Swept, TrialResult
from trainer.sweep.sweep import Plan

_MOST_ROWS = 30


def show(found: Swept) -> None:
    """Trials from the best on, those that did not come to their end, what each parameter weighs, and the front."""
    out = console()
    better = "higher" if found.goal.is_maximised else "lower"
    ranking = found.ranking
    title = f"{len(ranking)} of {len(found.trials)} trials to their end; {better} is better"
    names = ("trial", found.goal.metric, "parameters", "drawn")
    print_table(Table(title=title, names=names, rows=tuple(map(_row, ranking[:_MOST_ROWS]))), out)
    if len(ranking) > _MOST_ROWS:
        out.print(f"and {len(ranking) - _MOST_ROWS} more: --json tells all")
    _show_others(found, out)
    _show_importance(found, out)
    if found.best is not None:
        _show_front(found, found.best, out)


def show_plan(config: SweepConfig, planned: Plan, *, as_json: bool) -> None:
    """The space, and how many trials there would be."""
    told = {
        "objective": planned.goal.metric,
        "direction": planned.goal.direction,
        "trials": planned.trials,
        "sampler": config.sampler,
        "parallel": config.parallel,
        "parameters": {p.name: str(p.domain) for p in config.space.parameters},
        "alike": _alike(config),
    }
    if as_json:
        print_json(told)
        return
    out = console()
    title, names = f"{planned.trials} trials by {config.sampler}", ("parameter", "drawn from")
    rows = tuple((parameter.name, str(parameter.domain)) for parameter in config.space.parameters)
    print_table(Table(title=title, names=names, rows=rows), out)
    if alike := _alike(config):
        out.print(f"alike: {printable(_words(alike))}")
    out.print(
        f"objective: {printable(planned.goal.metric)}, to be {planned.goal.direction}d; {config.parallel} at once"
    )


def _alike(config: SweepConfig) -> dict[str, Any]:
    differs = {parameter.name.partition(".")[0] for parameter in config.space.parameters}
    return {key: value for key, value in config.space.told.items() if key not in differs}


def _row(trial: TrialResult) -> tuple[Cell, ...]:
    outcome = trial.outcome
    again = "" if outcome.same_as is None else f" (as trial {outcome.same_as})"
    return trial.number, outcome.value, outcome.parameters, _words(trial.drawn) + again


def _show_others(found: Swept, out: Console) -> None:
    """Each reason once, with the trials that have it."""
    reasons = Counter(
        (t.outcome.state, t.outcome.reason) for t in found.trials if t.outcome.state != "complete"
    )
    for state, reason in reasons:
        numbers = [
            str(t.number) for t in found.trials if (t.outcome.state, t.outcome.reason) == (state, reason)
        ]
        out.print(f"{state}: trial {', '.join(numbers)}: {printable(str(reason))}")


def _show_importance(found: Swept, out: Console) -> None:
    if not found.importance:
        out.print("importance of parameters: too few trials that differ")
        return
    title = "share of the objective's variance (fANOVA)"
    rows = tuple(found.importance.items())
    print_table(Table(title=title, names=("parameter", "importance"), rows=rows), out)


def _show_front(found: Swept, best: TrialResult, out: Console) -> None:
    names = ("trial", found.goal.metric, "parameters", "folder")
    rows = tuple((*_row(trial)[:3], f"trial-{trial.number:04d}") for trial in found.front)
    print_table(Table(title="Pareto front of quality against size", names=names, rows=rows), out)
    out.print(f"the best student is in {printable(str(best.folder))}", soft_wrap=True)
    again = f"teachonce train {found.study}/best.yaml --output_dir FOLDER"
    out.print(f"trained again: {printable(again)}", soft_wrap=True)


def _words(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in told.items())
