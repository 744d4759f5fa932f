"""Classification on real text: WordNet glosses -> a fine-tuned MiniLM -> cache with features -> students -> a table.

Every step is a `teachonce` command, printed before it runs, so that it can be typed again by hand; only the teacher
comes from a script (`make_wordnet_teacher.py`), which never saw the glosses that all are measured on. Three students:
two of the teacher's six layers with its distributions and features beside the labels (kl+feature), the same start,
steps and order with the labels alone (ce), and a small BERT from scratch. The teacher stands in the same table, by the
same command: how much it agrees with its own cache (all but rounding) is a check of the cache.

    python benchmarks/assets.py data --only minilm
    python benchmarks/assets.py data --only wordnet
    python examples/wordnet.py --data data

Takes about seven minutes on two quiet cores, half of them the teacher, which a second run takes as it is. Everything
else in the folder is made anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from make_wordnet_teacher import (
    EVAL_FRACTION,
    Gloss,
    add_flags,
    check_flags,
    is_there,
    make_teacher,
    read_glosses,
    sample,
)

import teachonce
from schemas.cli.tables import Table, console, print_table

ROOT = Path(__file__).resolve().parent.parent
SMALL_BERT = {
    "model_type": "bert",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TRAINING = {
    "per_device_train_batch_size": "32",
    "warmup_steps": "0.1",
    "logging_steps": "50",
    "save_strategy": "no",
    "seed": "1",
    "disable_tqdm": "true",
}
SHRINK_RATE, SCRATCH_RATE = "3e-4", "1e-3"


class Student(NamedTuple):
    """One row of the table, and the flags that make it."""

    name: str
    flags: tuple[str, ...]


class Result(NamedTuple):
    """What a student, or the teacher, came to."""

    name: str
    evaluated: dict[str, Any]
    seconds: float | None
    """Of training; None where it was not trained in this run."""


def main() -> int:
    arguments = parse_arguments()
    folder, started = Path(os.path.relpath(arguments.folder)), time.monotonic()
    corpus, cache, teacher = folder / "glosses.jsonl", folder / "cache", folder / "teacher"
    students = list_students(folder, str(teacher))
    clear(folder, [cache, *(folder / student.name for student in students)])
    seconds = make_or_take(teacher, arguments)
    write_corpus(corpus, sample(read_glosses(arguments.data / "wordnet.jsonl"), arguments.glosses))
    run("precompute", "--corpus", str(corpus), "--label_field", "label", "--teacher", str(teacher),
        "--task", "sequence-classification", "--features", "mean:-1", "--max_length", "64",
        "--cache", str(cache))  # fmt: skip
    run("verify", str(cache))
    results = [Result("teacher", evaluate(teacher, cache, folder / "teacher.json"), seconds)]
    results += [distil(student, cache, folder, arguments.student_steps) for student in students]
    out = console()
    print_table(table(results), out)
    out.print(f"cache, students and reports: {folder}; {time.monotonic() - started:.0f} s in all")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser)
    parser.add_argument("--folder", type=Path, default=ROOT / "demo-wordnet", help="default: demo-wordnet")
    parser.add_argument("--student_steps", type=int, default=640, metavar="N", help="of each student (640)")
    arguments = parser.parse_args()
    check_flags(parser, arguments)
    return arguments


def clear(folder: Path, made: Sequence[Path]) -> None:
    """Takes away what an earlier run made, the teacher excepted."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in made:
        shutil.rmtree(path, ignore_errors=True)


def make_or_take(teacher: Path, arguments: argparse.Namespace) -> float | None:
    """Seconds that making the teacher took; None where one is there."""
    if is_there(teacher):
        print(f"{teacher} is there and taken as it is; delete it to have it made anew")
        return None
    started = time.monotonic()
    make_teacher(arguments.data, teacher, arguments.glosses, arguments.steps)
    return time.monotonic() - started


def write_corpus(path: Path, glosses: Sequence[Gloss]) -> None:
    lines = (json.dumps(gloss._asdict(), ensure_ascii=False) + "\n" for gloss in glosses)
    path.write_text("".join(lines), encoding="utf-8")


def list_students(folder: Path, teacher: str) -> list[Student]:
    config = folder / "small_bert.json"
    shrink = ("--student", "shrink:layers=2", "--teacher", teacher, "--learning_rate", SHRINK_RATE)
    scratch = ("--student", str(config), "--learning_rate", SCRATCH_RATE)
    # A term of weight 0 is only logged, so that the runs compare.
    return [
        Student("kl+feature", (*shrink, "--losses", "kl=1", "feature=1", "ce=0.5")),
        Student("ce", (*shrink, "--losses", "ce=1", "kl=0")),
        Student("scratch", (*scratch, "--losses", "kl=1", "feature=1", "ce=0.5")),
    ]


def distil(student: Student, cache: Path, folder: Path, steps: int) -> Result:
    """Trains and evaluates one student."""
    (folder / "small_bert.json").write_text(json.dumps(SMALL_BERT, indent=2) + "\n")
    out, started = folder / student.name, time.monotonic()
    settings = TRAINING | {"max_steps": str(steps), "eval_fraction": str(EVAL_FRACTION)}
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    run("train", "--cache", str(cache), *student.flags, "--output_dir", str(out), *flags)
    seconds = time.monotonic() - started
    return Result(student.name, evaluate(out, cache, folder / f"{student.name}.json"), seconds)


def evaluate(model: Path, cache: Path, report: Path) -> dict[str, Any]:
    """What `teachonce evaluate` says of a student, or of the teacher."""
    with report.open("w") as file:
        run("evaluate", "--cache", str(cache), "--student", str(model),
            "--eval_fraction", str(EVAL_FRACTION), "--speed_seconds", "1", "--json", into=file)  # fmt: skip
    evaluated: dict[str, Any] = json.loads(report.read_text())
    return evaluated


def run(*command: str, into: Any = None) -> None:
    """Runs one `teachonce` command in this process, and stops the example when it fails."""
    print(f"\n$ teachonce {shlex.join(command)}", flush=True)
    with contextlib.redirect_stdout(into or sys.stdout):
        status = teachonce.main(command)
    if status:
        raise SystemExit(status)


def table(results: Sequence[Result]) -> Table:
    held_out = results[0].evaluated["metrics"]["labelled"]
    rows = []
    for result in results:
        metrics, model = result.evaluated["metrics"], result.evaluated["models"][0]
        measured = (metrics[key] for key in ("accuracy", "macro_f1", "agreement"))
        rows.append((result.name, model["parameters"], *measured, model["tokens_per_second"], result.seconds))
    return Table(
        title=f"{held_out:,} held-out glosses, 45 classes; neither teacher nor students saw them",
        names=("model", "weights", "accuracy", "macro F1", "agreement", "tokens/s", "seconds"),
        rows=tuple(rows),
    )


if __name__ == "__main__":
    sys.exit(main())
