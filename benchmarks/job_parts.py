"""Where the precompute job's processor time goes, part by part, beside the teacher's forward.

The job is the real one, from corpus files to the committed version: `pipelines.precompute`, in this process. With
`stored` answers the forward is replaced by logits that arrive at once (`stored_teacher.py`), so that what is left is
all that a fast teacher would wait for; with `real` the forward is the demo teacher's own. Each part's functions are
wrapped (`clock.py`), and charged the processor time of their thread, less that of the parts inside them. What no part
has is the *rest*: Beam's own steps, its coders and shuffles (compiled: they cannot be told apart), and threads.

A run of few documents costs a second before the first of them. So each figure is a difference: a run over the whole
corpus less one over a quarter of it, by the tokens (examples) that are more; medians over `--turns`. Selection is
compared with the head's product, of a head as wide as a real one's, in the same process. Then the same corpus again
(nothing new), and with 1% new documents: what both would cost beside a first run of 640,000 tokens and a forward of
100 us a token, as the demo's teacher takes on one core.

`accelerator` is a teacher whose answers, with what is kept of them, arrive at 50,000 tokens a second and take no core:
how much of the time from the first batch of a unit to the last of all it was busy, with one core for all else.

    python benchmarks/job_parts.py                     # all cases, some minutes
    python benchmarks/job_parts.py --case 49k          # one; `--case real` is the demo's teacher itself
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import OWN, Clock
from job_cases import CASES, DEMO, Case, product_us, write_corpus
from ratios import tell
from stored_teacher import Accelerator, make_teacher, with_stored_answers, with_timed_forward

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from pipelines.corpus import documents, tokenization
from pipelines.job import existing_rows, pipeline, run, steps
from pipelines.scoring import handler, units
from pipelines.teacher import model
from schemas.policies import parse_keep
from schemas.rows import rows as rows_module
from schemas.shards import rewrite, seal
from schemas.storage.storage import Storage

_FAST_TOKENS, _FAST_US = 640_000, 100.0
ACCELERATOR, _PACED_RATE, _PACED_TOKENS = "accelerator", 50_000, 1_000_000
_AIM_US = {"token": 8.0, "example": 100.0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--case", choices=[*CASES, ACCELERATOR], action="append", help="may be given again; all if not"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--tokens", type=int, help="of a corpus of texts; if not given, each case's own number"
    )
    parser.add_argument("--first_runs", action="store_true", help="leave out what a second run takes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in arguments.case or [*CASES, ACCELERATOR]:
        if name == ACCELERATOR:
            tell_busy(arguments.tokens or _PACED_TOKENS)
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = Bench(name, Path(folder), arguments.tokens).measured(
                arguments.turns, arguments.first_runs
            )
        print(table(name, found), flush=True)
        tell_ratios(name, CASES[name], found)


class Bench:
    """One case with its corpus and its teacher."""

    def __init__(self, name: str, folder: Path, tokens: int | None = None) -> None:
        self.case, self._folder, self._caches = CASES[name], folder, itertools.count()
        self.teacher = DEMO
        if not self.case.real:
            self.teacher = str(folder / "teacher")
            make_teacher(Path(self.teacher), DEMO, vocab_size=self.case.vocab_size, classes=self.case.classes)
        self.files = write_corpus(name, self.case, folder, tokens)
        self.clock = Clock()

    def config(self, *files: Path) -> PrecomputeConfig:
        task = "sequence-classification" if self.case.classes else "causal-lm"
        return PrecomputeConfig(
            corpus=CorpusConfig(files=tuple(map(str, files))),
            teacher=TeacherConfig(path=self.teacher, task=task, device="cpu"),
            cache=str(self._folder / f"cache{next(self._caches)}"),
            keep=None if self.case.keep is None else parse_keep(self.case.keep),
            features=self.case.features,
            max_length=512,
            max_reject_fraction=1.0,
            show_progress=False,
        )

    def run(self, config: PrecomputeConfig) -> tuple[dict[str, float], int]:
        """Processor seconds by part, the rest among them; and how many tokens or examples were scored."""
        self.clock.taken()
        started = time.process_time()
        summary = precompute(config)
        whole = time.process_time() - started
        found = self.clock.taken()
        found["rest"] = whole - sum(found.values())
        del found[OPENING], found[OWN]
        return found, summary.totals.examples if self.case.classes else summary.totals.tokens

    def measured(self, turns: int, first_runs: bool = False) -> dict[str, Any]:
        wrap_all(self.clock, self.case)
        try:
            self.run(self.config(self.files[0]))  # imports, and what else is done once a process
            pairs, again, more = [], [], []
            some = self.config(self.files[0])
            if not first_runs:
                self.run(some)
            for _ in range(turns):
                small, large = (self.run(config) for config in map(self.config, self.files[:2]))
                pairs.append((small, large))
                if first_runs:
                    continue
                config = self.config(self.files[1])
                self.run(config)
                again.append((self._plain(some), self._plain(config)))
                grown = replace(config, corpus=CorpusConfig(files=tuple(map(str, self.files[1:]))))
                more.append(self._plain(grown))
        finally:
            self.clock.undo()
        names = sorted({name for pair in pairs for part, _ in pair for name in part})
        slopes = {
            name: statistics.median(
                1e6 * (large.get(name, 0) - small.get(name, 0)) / (many - few)
                for (small, few), (large, many) in pairs
            )
            for name in names
        }
        per = pairs[0][1][1]
        found: dict[str, Any] = {
            "per": self.case.per,
            "count": per,
            "us": slopes,
            "fixed_s": statistics.median(
                sum(v for k, v in small.items() if k != "forward")
                - few * sum(s for k, s in slopes.items() if k != "forward") / 1e6
                for (small, few), _ in pairs
            ),
        }
        if again:
            found["again"] = self._line(again, pairs)
            found["more_s"] = statistics.median(
                new - known for new, (_, known) in zip(more, again, strict=True)
            )
        return found

    @staticmethod
    def _line(again: list[tuple[float, float]], pairs: list[Any]) -> dict[str, float]:
        """Seconds of a run with nothing new: those of any, and those for each token or example that is known."""
        (_, few), (_, many) = pairs[0]
        slope = statistics.median((large - small) / (many - few) for small, large in again)
        return {"fixed_s": statistics.median(small for small, _ in again) - few * slope, "us": 1e6 * slope}

    def _plain(self, config: PrecomputeConfig) -> float:
        """Processor seconds of a whole run, opening the teacher and the clock's own left out."""
        self.clock.taken()
        started = time.process_time()
        precompute(config)
        whole, taken = time.process_time() - started, self.clock.taken()
        return whole - taken.get(OPENING, 0.0) - taken[OWN]


OPENING = "open the teacher"


def wrap_all(clock: Clock, case: Case) -> None:
    """Wraps each part where it is looked up, and puts the stored answers in."""
    opened = handler.open_scorer
    answered = with_timed_forward if case.real else with_stored_answers

    def open_scorer(job: Any) -> Any:
        with clock.part(OPENING):
            scorer, here = opened(job)
            return replace(scorer, teacher=answered(scorer.teacher, clock)), here

    clock.replace(handler, "open_scorer", open_scorer)
    clock.wrap_steps(steps, "read_piece", "read")
    clock.wrap(steps, "read_document", "parse")
    clock.wrap(documents, "document_hash", "hash")
    clock.wrap(tokenization, "example_id", "hash")
    clock.wrap(handler, "unit_name", "hash")
    clock.wrap_steps(tokenization.Tokeniser, "batch", "windows")
    clock.wrap(transformers.PreTrainedTokenizerFast, "__call__", "tokenise")
    clock.wrap(existing_rows, "decide", "join")
    clock.wrap(steps, "decide", "join")
    clock.wrap(units, "askable", "check")
    clock.wrap(units, "collate", "collate")
    clock.wrap_steps(units, "each_batch", "collate")
    clock.wrap(model, "select", "select")
    clock.wrap(model.Teacher, "answer", "transfer")
    clock.wrap(units, "encode_sound", "encode")
    clock.wrap(rows_module.Rows, "check", "check")
    clock.wrap(rewrite, "ranking_of", "rank")
    clock.wrap(rows_module, "ranked", "rank")
    clock.wrap(units, "seal_rows", "seal")
    clock.wrap(seal.pq.ParquetWriter, "write_table", "write")
    clock.wrap(Storage, "put", "write")
    clock.wrap(pipeline, "finish", "commit")
    clock.wrap(run, "prepare", "prepare")


def tell_busy(tokens: int) -> None:
    """How much of its time a teacher on an accelerator is busy, in four units."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench("49k", Path(folder), tokens=tokens)
        config = replace(bench.config(bench.files[1]), unit_tokens=tokens // 4)
        paced, opened, cores = Accelerator(_PACED_RATE), handler.open_scorer, os.sched_getaffinity(0)

        def open_scorer(job: Any) -> Any:
            scorer, here = opened(job)
            return replace(scorer, teacher=paced.of(scorer.teacher)), here

        bench.clock.replace(handler, "open_scorer", open_scorer)
        os.sched_setaffinity(0, {min(cores)})
        try:
            precompute(config)
        finally:
            os.sched_setaffinity(0, cores)
            bench.clock.undo()
    tell("accelerator: busy / from its first batch to its last", paced.share, 0.95, at_least=True)


def table(name: str, found: dict[str, Any]) -> str:
    us, known = found["us"], found.get("again")
    own = {part: value for part, value in us.items() if part != "forward"}
    total = sum(own.values())
    lines = [f"\n{name}: us of processor a {found['per']} ({found['count']:,} {found['per']}s a run)"]
    for part, value in sorted(own.items(), key=lambda item: -item[1]):
        lines.append(f"  {part:10} {value:9.2f}  {value / total:5.1%}")
    lines += [
        f"  {'in all':10} {total:9.2f}  beside the forward ({us['forward']:.2f})",
        f"  a run's start {found['fixed_s']:.2f} s",
    ]
    if known is not None:
        lines += [
            f"  nothing new {known['fixed_s']:.2f} s, and {known['us']:.2f} us a {found['per']}",
            f"  1% new documents {found['more_s']:.2f} s more",
        ]
    return "\n".join(lines)


def tell_ratios(name: str, case: Case, found: dict[str, Any]) -> None:
    us = found["us"]
    own = sum(value for part, value in us.items() if part != "forward")
    chosen = us.get("select", 0.0)
    tell(f"{name}: us a {case.per} beside forward and selection", own - chosen, _AIM_US[case.per])
    if case.real:
        tell(f"{name}: job / forward", (own + us["forward"]) / us["forward"], 1.05)
        return
    if case.vocab_size:
        tell(f"{name}: selection / the head's product", chosen / product_us(case.vocab_size), 0.1)
    if case.vocab_size and "again" in found:
        first = found["fixed_s"] + _FAST_TOKENS * (own + _FAST_US) / 1e6
        again = found["again"]["fixed_s"] + _FAST_TOKENS * found["again"]["us"] / 1e6
        tell(f"{name}: nothing new / first run of a fast teacher", again / first, 0.02)
        more = again + found["more_s"] + _FAST_TOKENS / 100 * (own + _FAST_US) / 1e6
        tell(f"{name}: 1% new / first run of a fast teacher", more / first, 0.03)


if __name__ == "__main__":
    main()
