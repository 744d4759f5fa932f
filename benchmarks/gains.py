"""What benchmarks of what a student gains share: `teachonce` commands in this process, and results that stay.

What is there is kept: a student that was trained and measured is not trained again, so a benchmark that was stopped
goes on by the same command.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quality_parts import ROOT

import teachonce

RESULTS = ROOT / "benchmarks/results"


class Row(NamedTuple):
    """One student, measured."""

    name: str
    seed: int
    metrics: Mapping[str, Any]
    seconds: float | None = None
    """Of training since it was last begun, on this machine; None of what was not trained."""


def run(*command: str, into: Any = None) -> None:
    """One `teachonce` command in this process."""
    with contextlib.redirect_stdout(into or sys.stdout):
        if status := teachonce.main(command):
            raise SystemExit(status)


def trained(out: Path, *flags: str) -> float:
    """A student by `teachonce train`, unless it is there; the seconds that its last part took."""
    told = out / "seconds.json"
    if not told.exists():
        started = time.monotonic()
        run("train", *flags, "--output_dir", str(out), "--save_strategy", "no", "--logging_steps", "50",
            "--disable_tqdm", "true", "--use_cpu", "--resume_from_checkpoint", "auto")  # fmt: skip
        told.write_text(json.dumps(time.monotonic() - started))
    return float(json.loads(told.read_text()))


def evaluated(report: Path, cache: Path, *students: str) -> dict[str, Any]:
    """What `teachonce evaluate --json` says; `students` are its flags that name them."""
    if not report.exists():
        part = report.with_suffix(".part")
        with part.open("w", encoding="utf-8") as stream:
            run("evaluate", "--cache", str(cache), *students, "--json", "--speed_seconds", "0", into=stream)
        part.replace(report)
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def measured(name: str, seed: int, out: Path, cache: Path, metrics: Sequence[str]) -> Row:
    """The row of a student that stands in `out`, and its line."""
    found = evaluated(out / "evaluated.json", cache, "--student", str(out))["metrics"]
    told = out / "seconds.json"
    seconds = float(json.loads(told.read_text())) if told.exists() else None
    return said(Row(name, seed, {key: found[key] for key in metrics}, seconds))


def said(row: Row) -> Row:
    """The same, its line printed."""
    print(f"{row.name}, seed {row.seed}: {_numbers(row.metrics)}", flush=True)
    return row


def _numbers(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4f}" for key, value in metrics.items() if value is not None)


def _named(setting: Any) -> Any:
    """A folder by its name alone: where it lies is this machine's."""
    return setting.name if isinstance(setting, Path) else setting


def finish(name: str, rows: Iterable[Row], settings: Mapping[str, Any], *, plain: str) -> None:
    """Writes `results/NAME.json` and prints each row's mean and its difference from that of `plain`, seed by seed."""
    rows = list(rows)
    told = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "settings": {key: _named(value) for key, value in settings.items()},
        "rows": [row._asdict() for row in rows],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    base = {row.seed: row.metrics for row in rows if row.name == plain}
    for each in dict.fromkeys(row.name for row in rows):
        own = [row for row in rows if row.name == each]
        for key in own[0].metrics:
            values = [row.metrics[key] for row in own]
            if None in values:
                continue
            pairs = [(row.metrics[key], base[row.seed].get(key)) for row in own if row.seed in base]
            gains = " ".join(f"{ours - theirs:+.4f}" for ours, theirs in pairs if theirs is not None)
            print(f"{each} | {key} | {statistics.mean(values):.4f} | from {plain}: {gains}")
