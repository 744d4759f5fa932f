"""The whole path on what the repository ships: corpus -> teacher -> cache -> three students -> a table and a picture.

Every step is a `teachonce` command, printed before it runs, so that it can be typed again by hand. Three students:
from scratch with the teacher's distributions (KL), the same start, steps and order with the corpus's tokens alone
(CE), and three of the teacher's own six layers (shrink). The KL student must beat the CE student on held-out text that
neither students nor teacher saw; if it does not, the demo says so and fails.

Takes two to three minutes on two cores. Everything lies in `demo/`, which is made anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from rich.console import Console

import teachonce
from schemas.cli.tables import Table, console, print_table

mpl.use("Agg")
from matplotlib import pyplot as plt

EXAMPLES = Path(__file__).resolve().parent
EVAL_FRACTION = "0.05"
"""The share of documents, by hash, that the teacher never saw: `make_teacher.py` asserts it."""

TRAINING = {
    "eval_fraction": EVAL_FRACTION,
    "per_device_train_batch_size": "16",
    "lr_scheduler_type": "linear",
    "warmup_steps": "0.1",
    "weight_decay": "0",
    "logging_steps": "10",
    "eval_strategy": "steps",
    "eval_steps": "50",
    "save_strategy": "no",
    "seed": "1",
}


class Student(NamedTuple):
    """One row of the table."""

    name: str
    flags: tuple[str, ...]
    steps: int
    learning_rate: str
    color: str


class Result(NamedTuple):
    """What a student came to."""

    student: Student
    evaluated: dict[str, Any]
    seconds: float
    history: list[dict[str, float]]


def main() -> int:
    arguments = parse_arguments()
    folder = Path(os.path.relpath(arguments.folder))
    shutil.rmtree(folder, ignore_errors=True)
    cache, started = folder / "cache", time.monotonic()
    corpus, teacher = relative("corpus.jsonl.zst"), relative("teacher")
    run("precompute", "--corpus", corpus, "--teacher", teacher, "--task", "causal-lm", "--cache", str(cache),
        "--max_length", "128", "--keep", "threshold:1/32", "--features", "mean:-1")  # fmt: skip
    run("inspect", str(cache))
    results = [distil(student, cache, folder) for student in students(teacher)]
    out = console()
    print_table(table(results), out)
    picture = draw(results, folder / "loss.png")
    out.print(
        f"cache: {cache}   students: {', '.join(str(folder / r.student.name) for r in results)}   "
        f"loss curves: {picture}   {time.monotonic() - started:.0f} s in all"
    )
    return verdict(results, out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--folder", type=Path, default=EXAMPLES.parent / "demo", help="made anew (default: demo)"
    )
    return parser.parse_args()


def students(teacher: str) -> list[Student]:
    scratch = ("--student", relative("student.json"))
    shrunk = ("--student", "shrink:layers=3", "--teacher", teacher)
    # A term of weight 0 is only logged, so that the curves compare.
    return [
        Student("kl", (*scratch, "--losses", "kl=1", "ce=0"), 200, "3e-3", "tab:blue"),
        Student("ce", (*scratch, "--losses", "ce=1", "kl=0"), 200, "3e-3", "tab:orange"),
        Student("shrink", (*shrunk, "--losses", "kl=1", "ce=0"), 100, "1e-3", "tab:green"),
    ]


def distil(student: Student, cache: Path, folder: Path) -> Result:
    """Trains and evaluates one student."""
    out, report = folder / student.name, folder / f"{student.name}.json"
    own = {"max_steps": str(student.steps), "learning_rate": student.learning_rate}
    settings = [part for key, value in (own | TRAINING).items() for part in (f"--{key}", value)]
    started = time.monotonic()
    run(
        "train",
        "--cache",
        str(cache),
        *student.flags,
        "--output_dir",
        str(out),
        *settings,
        "--disable_tqdm",
        "true",
    )
    seconds = time.monotonic() - started
    with report.open("w") as file:
        run("evaluate", "--cache", str(cache), "--student", str(out), "--json", into=file)
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return Result(student, json.loads(report.read_text()), seconds, history)


def run(*command: str, into: Any = None) -> None:
    """Runs one `teachonce` command in this process, and stops the demo when it fails."""
    sys.stdout.write(f"\n$ teachonce {shlex.join(command)}\n")
    sys.stdout.flush()
    usual = sys.stdout
    sys.stdout = into or usual
    try:
        status = teachonce.main(command)
    finally:
        sys.stdout = usual
    if status:
        raise SystemExit(status)


def table(results: Sequence[Result]) -> Table:
    rows = []
    for result in results:
        metrics, model = result.evaluated["metrics"], result.evaluated["models"][0]
        keys = ("cross_entropy_nats", "perplexity", "top1_agreement", "kl_nats")
        measured = (metrics[key] for key in keys)
        rows.append((result.student.name, model["parameters"], *measured, result.seconds))
    teacher = results[0].evaluated["metrics"]["teacher_cross_entropy_nats"]
    rows.append(("(teacher)", None, teacher, math.exp(teacher), None, None, None))
    return Table(
        title=f"held-out {float(EVAL_FRACTION):.0%} of documents, which neither teacher nor students saw",
        names=("student", "parameters", "loss, nats", "perplexity", "agreement", "KL, nats", "seconds"),
        rows=tuple(rows),
    )


def draw(results: Sequence[Result], path: Path) -> Path:
    """Training and held-out curves of the same two quantities for every student, whatever it was trained with."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, term, title in zip(panels, ("ce", "kl"), ("cross entropy", "KL to the teacher"), strict=True):
        for result in results:
            for key, style in ((term, ":"), (f"eval_{term}", "o-")):
                points = [(entry["step"], entry[key]) for entry in result.history if key in entry]
                label = f"{result.student.name}, {'held out' if key.startswith('eval') else 'training'}"
                axes.plot(*zip(*points, strict=True), style, label=label, color=result.student.color)
        axes.set(title=title, xlabel="step", ylabel="nats")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def verdict(results: Sequence[Result], out: Console) -> int:
    """0 when the student that learned from the teacher is the better one."""
    losses = {result.student.name: result.evaluated["metrics"]["cross_entropy_nats"] for result in results}
    better = losses["ce"] - losses["kl"]
    if better <= 0:
        out.print(f"FAILED: the KL student is no better than the CE student ({-better:.3f} nats worse)")
        return 1
    out.print(f"The KL student beats the CE student by {better:.3f} nats: same start, steps and order.")
    return 0


def relative(name: str) -> str:
    return os.path.relpath(EXAMPLES / name)


if __name__ == "__main__":
    sys.exit(main())
