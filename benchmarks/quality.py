"""Does a student lose anything by a smaller cache? One corpus, one teacher, one student; a row for each way to keep.

Every row trains the same student from the same start on the same batches in the same order, once for each seed; rows
differ in the loss alone. `ce` has the corpus's tokens and no teacher; `full` has the teacher beside it and its whole
distribution; all others replay a real cache, made by `teachonce precompute` with that row's policy. Draws are frozen in
a cache, so a run of several epochs sees the same ones again: it has about as many steps as the run of one epoch, and so
many times fewer documents.

    python benchmarks/quality.py                      # everything: 90 runs
    python benchmarks/quality.py --quick              # four minutes: four rows, one epoch
    python benchmarks/quality.py --of_losses          # one epoch of a dozen other losses than KL: 45 runs
    python benchmarks/quality.py --report             # table, CSV and plot from what has been run so far
    python benchmarks/quality.py --of_losses --report       # the same of the losses, without a plot

Every finished run is a line of `benchmarks/results/quality-demo.jsonl`; started again, what is there is not run again.
`--quick` begins anew each time, but for its caches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import quality_report
import torch
import transformers
from quality_parts import HELD_OUT, ROOT, Online, Part, Test, documents_below
from quality_rows import EVERY_ROW, LOSS_ROWS, QUICK, ROWS
from ratios import tell

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from schemas import Cache
from schemas.cli.cache_report import bytes_by_column
from schemas.errors import CacheError
from schemas.policies import parse_keep
from trainer.batches.collate import Collation
from trainer.losses.objective import Objective
from trainer.models.shrink import parse_shrink
from trainer.stream.order import Order
from trainer.stream.replay import Address, Replay, Share
from trainer.students.student import Student
from trainer.students.students import open_student, open_trained
from trainer.training.distiller import Distiller
from trainer.training.training import make_distiller

TEACHER = ROOT / "examples/teacher"
MAX_LENGTH = 128


_ENTRIES = (
    "num_kept", "kept_ranks", "kept_codes", "num_sampled", "sampled_gaps", "sampled_counts", "sampled_codes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs of a file have in common."""

    student: dict[str, Any] | str
    """A config, or `shrink:layers=N` of the teacher."""
    share: float
    """Of the documents that are not held out."""
    batch_size: int
    learning_rate: float
    warmup: float = 0.1


class Run(NamedTuple):
    """One student: which row, over how many epochs, from which start and in which order."""

    row: str
    epochs: int
    seed: int


def main() -> int:
    arguments = parse_arguments()
    results = Path(arguments.results)
    if arguments.report:
        quality_report.publish(results, ROOT / "docs", of_losses=arguments.of_losses)
        return 0
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    settings = Settings(
        student=student_of(arguments.student),
        share=arguments.share,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
    )
    runs = [
        Run(row, epochs, seed)
        for seed, epochs, row in itertools.product(arguments.seeds, arguments.epochs, arguments.rows)
    ]
    done = finished(results, settings)
    bench = Bench(settings, arguments.folder)
    for number, run in enumerate(runs, start=1):
        if run not in done:
            line = bench.run(run)
            append(results, line | {"settings": asdict(settings)})
            say(
                f"{number:>3} of {len(runs)}  {run.row:<22} epochs {run.epochs}  seed {run.seed}  "
                f"loss {line['loss_nats']:.4f}  KL {line['kl_nats']:.4f}  {line['seconds']:.0f} s"
            )
    print(quality_report.text(results))
    for line in quality_report.read(results):
        tell(
            f"{line['row']}, {line['epochs']} epochs, seed {line['seed']}: KL to the teacher", line["kl_nats"]
        )
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", nargs="+", choices=list(EVERY_ROW), default=list(ROWS))
    parser.add_argument(
        "--of_losses",
        action="store_true",
        help="one epoch of ce, full, threshold:1/32 and of a dozen other losses",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--share", type=float, default=0.4, help="of the documents to train on")
    parser.add_argument("--student", default="shrink:layers=2", help="or a config of a causal LM")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "data/quality", help="where the caches are made"
    )
    parser.add_argument("--results", help="default: benchmarks/results/quality-demo.jsonl")
    parser.add_argument(
        "--quick", action="store_true", help="four rows, one epoch, a quarter of the documents"
    )
    parser.add_argument("--report", action="store_true", help="run nothing; write table and plot into docs/")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.epochs, arguments.share = list(QUICK), [1], 0.25
        arguments.results = arguments.folder / "quick.jsonl"
        arguments.results.unlink(missing_ok=True)
    if arguments.of_losses:
        arguments.rows, arguments.epochs = ["ce", "full", "threshold:1/32", *LOSS_ROWS], [1]
        arguments.results = arguments.results or ROOT / "benchmarks/results/quality-losses.jsonl"
    arguments.results = arguments.results or ROOT / "benchmarks/results/quality-demo.jsonl"
    return arguments


def student_of(name: str) -> dict[str, Any] | str:
    found: dict[str, Any] | str = name if parse_shrink(name) else json.loads(Path(name).read_text())
    return found


def finished(results: Path, settings: Settings) -> set[Run]:
    """What a results file holds; one that was made with other settings is refused."""
    lines = quality_report.read(results)
    if any(line["settings"] != asdict(settings) for line in lines):
        sys.exit(f"{results} was made with other settings: name another file with --results")
    return {Run(line["row"], line["epochs"], line["seed"]) for line in lines}


def train_below(settings: Settings, epochs: int) -> float:
    """Documents whose hash is below this, and that are not held out, are trained on."""
    return min(HELD_OUT + (1 - HELD_OUT) * settings.share / epochs, 1 - 2**-50)  # 1 is no 64-bit fraction


def append(results: Path, line: dict[str, Any]) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def say(line: str) -> None:
    print(line, flush=True)


class Bench:
    """The teacher, its caches, and the held-out part, which every run shares."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder / f"{settings.share:g}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._student, self._corpus = settings.student, self._folder / "corpus.jsonl"
        if not isinstance(settings.student, str):
            self._student = str(self._folder / "student.json")
            Path(self._student).write_text(json.dumps(settings.student))
        self._corpus.write_text("".join(documents_below(train_below(settings, 1))))
        first = self.cache(ROWS["ce"].keep)
        self._teacher = open_trained(str(TEACHER), first)
        self._test = Test(first, self._teacher)

    def cache(self, keep: str, *, own_logits: bool = False) -> Cache:
        """A policy's cache, made if it is not there."""
        name = keep.replace("/", "_").replace(":", "-").replace(",", "-") + ("-own" if own_logits else "")
        path = self._folder / name
        try:
            return Cache.open(str(path))
        except CacheError:
            say(f"precompute --keep {keep}")
        precompute(
            PrecomputeConfig(
                corpus=CorpusConfig(files=(str(self._corpus),)),
                teacher=TeacherConfig(path=str(TEACHER), task="causal-lm"),
                cache=str(path),
                keep=parse_keep(keep),
                own_logits=own_logits,
                max_length=MAX_LENGTH,
                show_progress=False,
            )
        )
        return Cache.open(str(path))

    def run(self, run: Run) -> dict[str, Any]:
        """Trains and measures one student."""
        row, started = EVERY_ROW[run.row], time.monotonic()
        cache = self.cache(row.keep, own_logits=row.own_logits)
        student = open_student(self._student, cache, teacher=str(TEACHER), seed=run.seed)
        part = Part(
            cache=cache,
            eval_fraction=HELD_OUT,
            is_eval=False,
            high=train_below(self._settings, run.epochs),
        )
        trained = self._train(student, part, row.loss, run)
        tokens = cache.totals.tokens
        sizes = {name: size / tokens for name, size in bytes_by_column(cache).items()}
        entries = sum(size for name, size in sizes.items() if name in _ENTRIES)
        has_cache = row.loss not in ("ce", "online")
        return {
            **run._asdict(),
            **trained,
            **self._test.measure(student),
            "teacher_loss_nats": self._test.teacher_loss,
            "held_out_positions": self._test.positions,
            "entry_bytes_a_token": entries if has_cache else None,
            "cache_bytes_a_token": sum(sizes.values()) if has_cache else None,
            "input_bytes_a_token": sizes["input_ids"],
            "seconds": time.monotonic() - started,
        }

    def _train(self, student: Student, part: Part, loss: str, run: Run) -> dict[str, Any]:
        settings = self._settings
        size, counts = settings.batch_size, part.counts()
        order = Order(counts=(counts,), batch_size=size, row_groups=10**6, lanes=1, seed=run.seed)
        stored = frozenset[str]() if loss == "online" else Objective.parse([loss]).stored(part.cache.spec)
        collation = Collation(student_vocab=student.vocab_size, pad_id=student.pad_id, stored=stored)
        replay = Replay([part], order, collation, Share(batch_size=size))
        steps = order.num_steps * run.epochs
        distiller = self._distiller(student, part.cache, loss)
        optimiser = torch.optim.AdamW(student.model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        warmup = max(1, round(steps * settings.warmup))
        schedule = transformers.get_linear_schedule_with_warmup(optimiser, warmup, steps)
        student.model.train()
        tokens, started = 0, time.process_time()
        for epoch, number in itertools.product(range(run.epochs), range(order.num_steps)):
            batch = replay[Address(epoch, number)]
            distiller(batch)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            tokens += batch.num_tokens
        taken = time.process_time() - started
        replay.close()
        return {
            "steps": steps,
            "tokens_a_step": tokens / steps,
            "documents": part.num_documents,
            "cpu_seconds_a_step": taken / steps,
        }

    def _distiller(self, student: Student, cache: Cache, loss: str) -> Any:
        if loss == "online":
            return Online(student, self._teacher)
        objective = Objective.parse([loss])
        objective.check(cache.spec)
        distiller: Distiller = make_distiller(student, cache, objective)
        return distiller


if __name__ == "__main__":
    sys.exit(main())
