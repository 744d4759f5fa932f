"""A student with another tokenizer: SmolLM2-135M as the teacher (V = 49,152), a student with the demo's (V = 4,096).

The teacher runs once, over part of the demo's corpus, in small units, so that a run that was stopped loses little; each
row trains the same student from that one cache, from the same start (two layers of the demo's own teacher), in the same
order and as many steps. Measured on documents that neither the student's start nor the student has seen, in bits a
byte, which tokenizers share. A part of the rows (`--rows`) has results of its own: `results/other-tokenizer-part.json`.

    python benchmarks/assets.py data --only smollm2       # once: the real model
    python benchmarks/other_tokenizer.py                  # some minutes on one core; what is there is kept
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gains import finish, measured, run, trained
from quality_parts import HELD_OUT, ROOT
from several import take

STUDENT = ROOT / "examples/teacher"
"""Whose tokenizer and first layers a student begins with."""
ROWS = (
    "ce=1",
    "alm=1,word=1",
    "alm=1,word=1 ce=1",
    "alm=1",
    "alm=1 ce=1",
    "projected_kl=1",
    "projected_kl=1 ce=1",
)
"""The losses of each. `word=1` leaves out where words begin, which `alm` uses else."""
METRICS = ("bits_per_byte", "teacher_bits_per_byte")


def main() -> None:
    arguments = parse_arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    corpus, cache = folder / "corpus.jsonl", folder / "cache"
    corpus.write_text("".join(take(arguments.documents, arguments.held_out)))
    run("precompute", "--corpus", str(corpus), "--teacher", str(arguments.teacher), "--task", "causal-lm", "--cache",
        str(cache), "--keep", "threshold:1/32", "--max_length", "128", "--stride", "0", "--keep_text", "--no_progress",
        "--unit_tokens", "4096", "--scalars", "entropy", "gold", "word_start")  # fmt: skip
    rows = []
    for seed in arguments.seeds:
        for name in arguments.rows:
            stem = folder / f"{name.replace(' ', '-').replace('=', '').replace(',', '-')}-{seed}"
            trained(stem, "--cache", str(cache), "--student", "shrink:layers=2", "--teacher", str(STUDENT),
                    "--losses", *name.split(), "--max_steps", str(arguments.steps), "--seed", str(seed),
                    "--per_device_train_batch_size", "4", "--learning_rate", "1e-3",
                    "--eval_fraction", str(HELD_OUT))  # fmt: skip
            rows.append(measured(name, seed, stem, cache, METRICS))
    name = "other-tokenizer" if set(arguments.rows) == set(ROWS) else "other-tokenizer-part"
    finish(name, rows, vars(arguments), plain="ce=1")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "data/other-tokenizer")
    parser.add_argument("--teacher", type=Path, default=ROOT / "data/smollm2")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--documents", type=int, default=8, help="to train on")
    parser.add_argument("--held_out", type=int, default=2, help="documents to measure on")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
