"""Where the precompute job's processor time goes, part by part, beside the teacher's forward.

The job is the real one, from corpus files to the committed version: `pipelines.precompute`, in this process. With
`stored` answers the forward is replaced by logits that arrive at once (`stored_teacher.py`), so that what is left is
all that a fast teacher would wait for; with `real` the forward is the demo teacher's own. Each part's functions are
wrapped (`clock.py`), and charged the processor time of their thread, less that of the parts inside them. What no part
has is the *rest*: Beam's own steps, its coders and shuffles (compiled: they cannot be told apart), and threads.

A run of few documents costs a second before the first of them. So each figure is a difference: a run over the whole
corpus less one over a quarter of it, by the tokens (examples) that are more; medians over `--turns`. Then the same
corpus again (nothing new), and with 1% new documents, against the first run with its answers at `--speed`.

    python benchmarks/job_parts.py                     # all cases, some minutes
    python benchmarks/job_parts.py --case 49k          # one
    python benchmarks/job_parts.py --case real         # the demo's teacher's own forward
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import pstats
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import Clock
from precompute import ROOT, paragraphs
from stored_teacher import make_teacher, with_stored_answers, with_timed_forward

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from pipelines.corpus import documents, tokenization
from pipelines.job import existing_rows, pipeline, run, steps
from pipelines.scoring import handler, units
from pipelines.teacher import model
from schemas.policies import parse_keep
from schemas.rows import rows as rows_module
from schemas.shards import rewrite, seal
from schemas.storage.storage import Storage

DEMO = str(ROOT / "examples/teacher")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: a teacher, a policy, and what a figure is divided by."""

    vocab_size: int | None = None
    classes: int | None = None
    keep: str | None = None
    features: tuple[str, ...] = ()
    real: bool = False

    @property
    def per(self) -> str:
        return "example" if self.classes else "token"


CASES = {
    "4k": Case(vocab_size=4096),
    "49k": Case(vocab_size=49_152),
    "128k": Case(vocab_size=128_256),
    "4k-top_p": Case(vocab_size=4096, keep="top_p:0.99,k=64"),
    "49k-top_p": Case(vocab_size=49_152, keep="top_p:0.99,k=64"),
    "128k-top_p": Case(vocab_size=128_256, keep="top_p:0.99,k=64"),
    "classes": Case(classes=45),
    "features": Case(classes=45, features=("mean:-1",)),
    "real": Case(real=True),
}
_TOKENS = {"4k": 160_000, "49k": 40_000, "128k": 16_000, "real": 30_000}
_EXAMPLES = 12_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--case", choices=list(CASES), action="append", help="may be given again; all if not")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object a case instead of tables")
    parser.add_argument("--profile", action="store_true", help="one run of the case under cProfile instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in arguments.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name, Path(folder))
            if arguments.profile:
                bench.profile()
                continue
            found = bench.measured(arguments.turns)
        print(json.dumps({"case": name, **found}) if arguments.json else table(name, found), flush=True)


class Bench:
    """One case with its corpus and its teacher."""

    def __init__(self, name: str, folder: Path) -> None:
        self.case, self._folder, self._caches = CASES[name], folder, itertools.count()
        self.teacher = DEMO
        if not self.case.real:
            self.teacher = str(folder / "teacher")
            make_teacher(Path(self.teacher), DEMO, vocab_size=self.case.vocab_size, classes=self.case.classes)
        self.files = write_corpus(name, self.case, folder)
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
        del found[OPENING]
        return found, summary.totals.examples if self.case.classes else summary.totals.tokens

    def measured(self, turns: int) -> dict[str, Any]:
        wrap_all(self.clock, self.case)
        try:
            self.run(self.config(self.files[0]))  # imports, and what else is done once a process
            pairs, again, more = [], [], []
            for _ in range(turns):
                small, large = (self.run(config) for config in map(self.config, self.files[:2]))
                pairs.append((small, large))
                config = self.config(self.files[1])
                self.run(config)
                again.append(self._plain(config))
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
        return {
            "per": self.case.per,
            "count": per,
            "us": slopes,
            "fixed_s": statistics.median(
                sum(v for k, v in small.items() if k != "forward")
                - few * sum(s for k, s in slopes.items() if k != "forward") / 1e6
                for (small, few), _ in pairs
            ),
            "again_us": 1e6 * statistics.median(again) / per,
            "more_us": 1e6 * statistics.median(more) / per,
        }

    def _plain(self, config: PrecomputeConfig) -> float:
        """Processor seconds of a whole run, opening the teacher left out."""
        self.clock.taken()
        started = time.process_time()
        precompute(config)
        return time.process_time() - started - self.clock.taken().get(OPENING, 0.0)

    def profile(self) -> None:
        wrap_all(self.clock, self.case, only_forward=True)
        self.run(self.config(self.files[0]))
        profile = cProfile.Profile()
        threading.setprofile(lambda *_: profile.enable())
        profile.enable()
        self.run(self.config(self.files[1]))
        profile.disable()
        threading.setprofile(None)
        for key in ("tottime", "cumtime"):
            pstats.Stats(profile).sort_stats(key).print_stats(60)


OPENING = "open the teacher"


def wrap_all(clock: Clock, case: Case, *, only_forward: bool = False) -> None:
    """Wraps each part where it is looked up, and puts the stored answers in."""
    opened = handler.open_scorer
    answered = with_timed_forward if case.real else with_stored_answers

    def open_scorer(job: Any) -> Any:
        with clock.part(OPENING):
            scorer, here = opened(job)
            return replace(scorer, teacher=answered(scorer.teacher, clock)), here

    clock.replace(handler, "open_scorer", open_scorer)
    if only_forward:
        return
    clock.wrap_steps(steps, "read_piece", "read")
    clock.wrap(steps, "read_document", "parse")
    clock.wrap(documents, "document_hash", "hash")
    clock.wrap(tokenization, "example_id", "hash")
    clock.wrap(handler, "unit_name", "hash")
    clock.wrap_steps(tokenization.Tokeniser, "examples", "windows")
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


def write_corpus(name: str, case: Case, folder: Path) -> list[Path]:
    """A quarter of some paragraphs, all of them, and 1% more: a file each."""
    texts = paragraphs(str(ROOT / "examples/corpus.jsonl.zst"))
    if case.classes:
        every = [text for text in texts if len(text) <= 160]
        every += [f"{text} {number}" for number in (2, 3) for text in every]
        size = _EXAMPLES
    else:
        every, lengths = [], 0
        most = _TOKENS.get(name.partition("-")[0], 0) * 3
        for text in texts:
            every.append(text)
            lengths += len(text)
            if lengths > most:
                break
        size = len(every) * 100 // 101
    parts = (every[: size // 4], every[:size], every[size : size + max(1, size // 100)])
    files = [folder / f"part{index}.jsonl" for index in range(3)]
    for file, part in zip(files, parts, strict=True):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in part), encoding="utf-8")
    return files


def table(name: str, found: dict[str, Any]) -> str:
    us = found["us"]
    own = {part: value for part, value in us.items() if part != "forward"}
    total = sum(own.values())
    lines = [f"\n{name}: us of processor a {found['per']} ({found['count']:,} {found['per']}s a run)"]
    for part, value in sorted(own.items(), key=lambda item: -item[1]):
        lines.append(f"  {part:10} {value:9.2f}  {value / total:5.1%}")
    lines.append(f"  {'in all':10} {total:9.2f}  beside the forward ({us['forward']:.2f})")
    lines.append(f"  {'less select':11}{total - us.get('select', 0.0):8.2f}")
    lines.append(f"  a run's start {found['fixed_s']:.2f} s")
    lines.append(
        f"  nothing new {found['again_us']:.2f}, 1% new {found['more_us']:.2f} us of all {found['per']}s"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
