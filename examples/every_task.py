"""A teacher, a student with it and the same student without, for every task, on real text: one table a task.

    python benchmarks/assets.py data
    python -m examples.every_task FOLDER --data data --only embeddings entities

Cases: `entities` (what the PostgreSQL pages mark as a command, a function, ...), `answers` (which word of a sentence
has this meaning: WordNet), `sequences` (a word's sounds from its letters: CMU's dictionary), `embeddings` (MiniLM into
three of its layers, and into a table of words), `reranking` (which word a definition is of: WordNet) and `masks`
(DistilBERT's recipe on WordNet's definitions). `digits.py` and `digit_embeddings.py` are images,
`wordnet.py` classes of texts.

What is compared: students of one start, one order and as many steps; `with` learns from the teacher's answers (and the
labels where its losses say so), `without` from the labels alone. A row's metrics are what `teachonce evaluate` says of
it on held-out documents; the teacher is measured by the same command. Teachers were trained on documents that are not
in the students' corpus at all, and on more of them than it has. No labels tell embeddings: there `without` is the same
start untaught, and a second measure is independent of the teacher: how often a definition's nearest neighbour, among
definitions of which none is in the corpus, is of its class.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import teachonce
from examples.every_task_cases import CASES, Case
from examples.every_task_teachers import Rows
from schemas.cli.tables import Table, console, print_table

EVAL_FRACTION = "0.2"
ASIDE = 1_000
"""Definitions that neither teacher nor students are trained on."""
SETTINGS = (
    *(
        "--per_device_train_batch_size",
        "16",
        "--eval_fraction",
        EVAL_FRACTION,
        "--warmup_steps",
        "0.1",
        "--use_cpu",
    ),
    *(
        "--save_strategy",
        "no",
        "--logging_steps",
        "100",
        "--disable_tqdm",
        "true",
        "--lr_scheduler_type",
        "cosine",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="a new folder; each case gets one in it")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="made by benchmarks/assets.py (default: data)"
    )
    parser.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of documents and of steps: 0.1 is a tenth (1)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the students (0)")
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    for name in arguments.only:
        began, place = time.monotonic(), arguments.folder / name
        place.mkdir(parents=True)
        with chdir(place):
            found = run_case(CASES[name], data, arguments.scale, arguments.seeds)
        (place / "results.json").write_text(json.dumps(found, indent=2) + "\n")
        show(name, CASES[name], found, time.monotonic() - began)


def run_case(case: Case, data: Path, scale: float, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """What each model of a case came to, by name, a measurement a seed; all files in the folder where it is run."""
    rows = case.rows(data)
    random.Random(0).shuffle(rows)
    size = round(case.size * scale)
    corpus, aside, rest = rows[:size], rows[size : size + ASIDE], rows[size + ASIDE :]
    Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus), "utf-8")
    Path("student.json").write_text(json.dumps(case.config))
    began = time.monotonic()
    case.teacher(data, Path("teacher"), rest, max(3, round(case.teacher_steps * scale)))
    print(f"{len(rest):,} other documents taught the teacher in {time.monotonic() - began:.0f} s", flush=True)
    known = ("--teacher", "teacher", "--task", case.task, "--cache", "cache", "--no_progress")
    command("precompute", "--corpus", "corpus.jsonl", *known, *case.precompute)
    found = {"teacher": [measured("teacher", case, aside)]}
    for name, student in case.students.items():
        steps = max(1, round(case.steps * scale) * student.times)
        for seed in seeds:
            folder = f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            told = ("--max_steps", str(steps), "--seed", str(seed), "--output_dir", folder)
            command("train", "--cache", "cache", *SETTINGS, *told, *student.flags)
            found.setdefault(name, []).append(measured(folder, case, aside))
    return found


def command(*words: str) -> None:
    """One `teachonce` command, in this process; it is printed, so that it can be typed again."""
    print(f"\n$ teachonce {shlex.join(words)}", flush=True)
    if status := teachonce.main(words):
        sys.exit(status)


def measured(folder: str, case: Case, aside: Rows) -> dict[str, Any]:
    """What `evaluate` says of a model; of one of embeddings also what its neighbours are."""
    report = Path(f"{folder}.json")
    with report.open("w") as file, redirect_stdout(file):
        told = ("--eval_fraction", EVAL_FRACTION, "--speed_seconds", "1", "--device", "cpu", "--json")
        command("evaluate", "--cache", "cache", "--student", folder, *told)
    said = json.loads(report.read_text().partition("\n{")[2].join(("{", "")))
    found = said["models"][0] | said["metrics"]
    if case.task == "feature-extraction":
        found["neighbours_of_its_class"] = neighbours(Path(folder), aside)
    return found


@torch.no_grad()
def neighbours(folder: Path, rows: Rows) -> float:
    """The share of definitions whose nearest by cosine is of their class, by plain transformers and torch."""
    ordered = sorted(rows, key=lambda row: len(row["text"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    states_of, last = token_states(folder, tokenizer), dense(folder)
    pooled = list[Tensor]()
    for start in range(0, len(ordered), 50):
        texts = [row["text"] for row in ordered[start : start + 50]]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        states, mask = states_of(inputs["input_ids"], inputs["attention_mask"])
        pooled.append(last((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)))
    unit = torch.nn.functional.normalize(torch.cat(pooled))
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1).tolist()
    return statistics.mean(
        ordered[place]["class"] == ordered[near]["class"] for place, near in enumerate(nearest)
    )


def token_states(folder: Path, tokenizer: Any) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What gives tokens' states, and which of them are pooled: of a table all but special ones."""
    if "StaticEmbedding" not in (folder / "modules.json").read_text():
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        return lambda ids, mask: (model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    table = load_file(folder / "model.safetensors")["embedding.weight"]
    special = torch.tensor(tokenizer.all_special_ids)
    return lambda ids, mask: (table[ids], mask * ~torch.isin(ids, special))


def dense(folder: Path) -> Callable[[Tensor], Tensor]:
    """The map to the teacher's width, where there is one."""
    if not (folder / "2_Dense").exists():
        return lambda pooled: pooled
    weights = load_file(folder / "2_Dense/model.safetensors")
    return lambda pooled: pooled @ weights["linear.weight"].T + weights["linear.bias"]


def show(name: str, case: Case, found: dict[str, list[dict[str, Any]]], seconds: float) -> None:
    """The table, for people and for a page: means of the seeds."""
    extra = ("neighbours_of_its_class",) if case.task == "feature-extraction" else ()
    columns = ("parameters", *case.metrics, *extra)
    rows = [(model, *(mean(runs, column) for column in columns)) for model, runs in found.items()]
    title = f"{name} ({case.task}): {seconds:.0f} s in all, load {os.getloadavg()[0]:.1f}"
    print_table(Table(title=title, names=("model", *columns), rows=tuple(rows)), console())


def mean(runs: list[dict[str, Any]], column: str) -> float | None:
    values = [one.get(column) for one in runs]
    return None if None in values else statistics.mean(values)  # type: ignore[type-var]


if __name__ == "__main__":
    main()
