"""From the runs of `quality.py` to a table, a CSV, a plot and the page `docs/quality.md`, whose figures come from here.

Runs of one seed are a pair: same start, same batches, same order. So intervals are of differences: of a row's held-out
loss to that of `full`, and of its share of the gap between `ce` and `full`, each by Student's t over the seeds.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from scipy.stats import t as student_t

mpl.use("Agg")
from matplotlib import pyplot as plt

CONFIDENCE = 0.95
BASE, FULL = "ce", "full"
_BEGIN, _END = "<!-- begin: made by benchmarks/quality.py {}--report -->", "<!-- end -->"

Line = dict[str, Any]


class Interval(NamedTuple):
    """A mean over seeds, and half the width of its interval; NaN of one seed."""

    mean: float
    half: float

    def show(self, digits: int, scale: float = 1.0) -> str:
        half = "" if math.isnan(self.half) else f" ± {self.half * scale:.{digits}f}"
        return f"{self.mean * scale:.{digits}f}{half}"


def read(results: Path) -> list[Line]:
    """The finished runs; none where there is no file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line]


def interval(values: Sequence[float]) -> Interval:
    mean, number = statistics.fmean(values), len(values)
    if number < 2:
        return Interval(mean, math.nan)
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, number - 1))
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(number))


def summary(lines: Iterable[Line]) -> list[Line]:
    """One line for each row and number of epochs, over the seeds for which `ce` and `full` are there too."""
    by_run = {(line["row"], line["epochs"], line["seed"]): line for line in lines}
    pairs = dict.fromkeys((epochs, row) for row, epochs, _ in by_run)
    found = [_of_row(by_run, row, epochs) for epochs, row in sorted(pairs, key=lambda pair: pair[0])]
    return [line for line in found if line]


def _of_row(by_run: dict[tuple[str, int, int], Line], row: str, epochs: int) -> Line:
    seeds = [
        seed
        for seed in sorted({s for _, _, s in by_run})
        if all((name, epochs, seed) in by_run for name in (row, BASE, FULL))
    ]
    if not seeds:
        return {}
    ours, base, full = ([by_run[name, epochs, s] for s in seeds] for name in (row, BASE, FULL))
    losses = [[line["loss_nats"] for line in each] for each in (ours, base, full)]
    triples = list(zip(*losses, strict=True))

    def mean(name: str) -> float:
        return statistics.fmean(line[name] for line in ours)

    return {
        "row": row,
        "epochs": epochs,
        "seeds": seeds,
        "loss_nats": mean("loss_nats"),
        "loss_over_full_nats": interval([a - c for a, _, c in triples]),
        "gap_closed": interval([(b - a) / (b - c) for a, b, c in triples]),
        "kl_nats": mean("kl_nats"),
        "calibration_error": mean("calibration_error"),
        "agreement": mean("agreement"),
        "entry_bytes_a_token": ours[0]["entry_bytes_a_token"],
        "cache_bytes_a_token": ours[0]["cache_bytes_a_token"],
        "input_bytes_a_token": ours[0]["input_bytes_a_token"],
        "cpu_seconds_a_step": mean("cpu_seconds_a_step"),
        "tokens_a_step": mean("tokens_a_step"),
        "steps": ours[0]["steps"],
        "documents": ours[0]["documents"],
        "teacher_loss_nats": ours[0]["teacher_loss_nats"],
        "settings": ours[0]["settings"],
    }


def cells(line: Line) -> list[str]:
    """A line of the table for people."""
    size = line["entry_bytes_a_token"]
    own = line["row"] == FULL
    return [
        line["row"],
        "" if size is None else f"{size:.1f}",
        f"{line['loss_nats']:.4f}",
        "0" if own else line["loss_over_full_nats"].show(4),
        "100" if own else line["gap_closed"].show(1, 100),
        f"{line['kl_nats']:.4f}",
        f"{line['calibration_error'] * 100:.2f}",
        f"{line['agreement'] * 100:.2f}",
        f"{line['cpu_seconds_a_step'] * 1000:.0f}",
    ]


HEAD = (
    "row", "B/token", "loss, nats", "over full", "gap closed, %", "KL to teacher", "calibration error, %",
    "agreement, %", "ms/step",
)  # fmt: skip


def tables(lines: Sequence[Line]) -> str:
    """Markdown: one table for each number of epochs."""
    parts = []
    for epochs in sorted({line["epochs"] for line in lines}):
        chosen = [line for line in lines if line["epochs"] == epochs]
        first = chosen[0]
        seen = "once" if epochs == 1 else f"{epochs} times"
        settings = first["settings"]
        seeds = ", ".join(map(str, first["seeds"]))
        parts.append(
            f"{first['documents']} documents seen {seen}, {first['steps']} steps of {settings['batch_size']} rows "
            f"({first['tokens_a_step']:,.0f} tokens), learning rate {settings['learning_rate']:g}, seeds {seeds}; the "
            f"teacher's own loss is {first['teacher_loss_nats']:.4f} nats.\n"
        )
        parts.append(f"| {' | '.join(HEAD)} |\n|---|{'---:|' * (len(HEAD) - 1)}")
        parts += [f"| {' | '.join(cells(line))} |" for line in chosen]
        parts += ["", *at_equal_quality(chosen)]
    return "\n".join(parts)


def at_equal_quality(lines: Sequence[Line]) -> list[str]:
    """The bytes that `threshold` with k=1 takes for the quality of `sampled`, between its rows (log bytes)."""
    rows = [line for line in lines if line["row"].startswith("threshold") and "k=" not in line["row"]]
    pairs = sorted((line["gap_closed"].mean, math.log(line["entry_bytes_a_token"])) for line in rows)
    found = []
    for other in (line for line in lines if line["row"].startswith("sampled")):
        share, size = other["gap_closed"].mean, other["entry_bytes_a_token"]
        if len(pairs) > 1 and pairs[0][0] <= share <= pairs[-1][0]:
            ours = math.exp(np.interp(share, *zip(*pairs, strict=True)))
            found.append(
                f"At the quality of `{other['row']}` ({share:.1%} of the gap) `threshold` takes {ours:.1f} B, "
                f"{ours / size:.0%} of {size:.1f}.\n"
            )
    return found


def text(results: Path) -> str:
    """The tables of a results file."""
    return tables(summary(read(results)))


def publish(results: Path, docs: Path, *, of_losses: bool = False) -> None:
    """JSON and CSV beside the results, and the page's tables and, of policies, the plot."""
    lines = summary(read(results))
    results.with_suffix(".json").write_text(json.dumps([_plain(line) for line in lines], indent=1) + "\n")
    flat = [_plain(line) | {"seeds": " ".join(map(str, line["seeds"]))} for line in lines]
    with results.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    page = docs / "quality.md"
    begin = _BEGIN.format("--of_losses " if of_losses else "")
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{begin}\n\n{tables(lines)}\n{_END}{after}")
    if not of_losses:
        draw(lines, docs / "quality.png")
    print(f"wrote {results.with_suffix('.json')}, {results.with_suffix('.csv')} and {page}")


def _plain(line: Line) -> Line:
    """Intervals as two columns."""
    found: Line = {}
    for name, value in line.items():
        if isinstance(value, Interval):
            found |= {name: value.mean, f"{name}_half_width": None if math.isnan(value.half) else value.half}
        else:
            found[name] = value
    return found


_STYLES = {
    "top_k renormalised": ("tab:red", "v"),
    "top_k tail": ("tab:orange", "^"),
    "top_p tail": ("tab:brown", "D"),
    "sampled": ("tab:blue", "s"),
    "threshold": ("tab:green", "o"),
}


def _family(row: str) -> str:
    name = row.partition(":")[0]
    return name if name in _STYLES else f"{name} {row.rpartition(' ')[2]}"


def draw(lines: Sequence[Line], path: Path) -> None:
    """Share of the gap against bytes a token, a panel for each number of epochs."""
    every = sorted({line["epochs"] for line in lines})
    figure, panels = plt.subplots(
        1, len(every), figsize=(6 * len(every), 4.5), layout="constrained", squeeze=False
    )
    for axes, epochs in zip(panels[0], every, strict=True):
        chosen = [line for line in lines if line["epochs"] == epochs and line["entry_bytes_a_token"]]
        for family in dict.fromkeys(_family(line["row"]) for line in chosen):
            _draw_family(axes, family, [line for line in chosen if _family(line["row"]) == family])
        axes.axhline(100, color="gray", linestyle=":", label="full distribution")
        axes.axhline(0, color="gray", linestyle="--", label="no teacher (CE)")
        axes.set(
            xscale="log",
            xlabel="bytes a token: entries and counts",
            ylabel="share of the gap closed, %",
            title=f"{epochs} epoch{'s' if epochs > 1 else ''}",
        )
        for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis("{x:g}")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_family(axes: Any, family: str, lines: Sequence[Line]) -> None:
    color, marker = _STYLES[family]
    lines = sorted(lines, key=lambda line: line["entry_bytes_a_token"])
    sizes = [line["entry_bytes_a_token"] for line in lines]
    shares = [line["gap_closed"].mean * 100 for line in lines]
    halves = [0.0 if math.isnan(line["gap_closed"].half) else line["gap_closed"].half * 100 for line in lines]
    axes.errorbar(sizes, shares, yerr=halves, color=color, marker=marker, label=family, capsize=3, lw=1)
    for line, size, share in zip(lines, sizes, shares, strict=True):
        name = line["row"].partition(":")[2].partition(" ")[0]
        axes.annotate(name, (size, share), textcoords="offset points", xytext=(5, -10), fontsize=7)
