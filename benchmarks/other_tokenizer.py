"""A student with another tokenizer: SmolLM2-135M as the teacher (V = 49,152), a student with the demo's (V = 4,096).

The teacher runs once, over part of the demo's corpus; each row trains the same student from that one cache, from the
same start (two layers of the demo's own teacher), in the same order and as many steps. Measured on documents that
neither the student's start nor the student has seen, in bits a byte, which tokenizers share.

    python benchmarks/assets.py data --only smollm2       # once: the real model
    python benchmarks/other_tokenizer.py                  # some minutes on one core; what is there is kept
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from quality_parts import HELD_OUT, ROOT, documents_below

import teachonce
from schemas.identity import document_hash, is_held_out

STUDENT = ROOT / "examples/teacher"
"""Whose tokenizer and first layers a student begins with."""
ROWS = {
    "ce=1": ("ce=1",),
    "alm=1": ("alm=1",),
    "alm=1 ce=1": ("alm=1", "ce=1"),
    "projected_kl=1": ("projected_kl=1",),
    "projected_kl=1 ce=1": ("projected_kl=1", "ce=1"),
}


def main() -> None:
    arguments = parse_arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    corpus, cache = folder / "corpus.jsonl", folder / "cache"
    corpus.write_text("".join(take(arguments.documents, arguments.held_out)))
    run("precompute", "--corpus", str(corpus), "--teacher", arguments.teacher, "--task", "causal-lm", "--cache",
        str(cache), "--keep", "threshold:1/32", "--max_length", "128", "--stride", "0", "--keep_text", "--no_progress",
        )  # fmt: skip
    found: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for name, losses in ROWS.items():
            line = measured(name, losses, seed, cache, arguments)
            found.setdefault(name, []).append(line["bits_per_byte"])
            print(
                f"{name}, seed {seed}: {line['bits_per_byte']:.4f} bits a byte, {line['seconds']:.0f} s",
                flush=True,
            )
    print(f"teacher: {line['teacher_bits_per_byte']:.4f} bits a byte; {arguments.steps} steps")
    for name, values in found.items():
        gains = [ours - theirs for ours, theirs in zip(found["ce=1"], values, strict=True)]
        print(
            f"{name}: {statistics.mean(values):.4f}, below ce=1 by {' '.join(f'{gain:+.4f}' for gain in gains)}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "data/other-tokenizer")
    parser.add_argument("--teacher", default=str(ROOT / "data/smollm2"))
    parser.add_argument("--documents", type=int, default=8, help="to train on")
    parser.add_argument("--held_out", type=int, default=2, help="documents to measure on")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    return parser.parse_args()


def take(documents: int, held_out: int) -> list[str]:
    """So many documents that the demo's teacher was trained on, and so many that it was not: the same split as then."""
    held, others = [], []
    for line in documents_below(1 - 2**-50):
        text = json.loads(line)["text"]
        place = held if is_held_out(document_hash({"text": text}), HELD_OUT) else others
        place.append(json.dumps({"text": text}) + "\n")
    return held[:held_out] + others[:documents]


def measured(
    name: str, losses: tuple[str, ...], seed: int, cache: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One student, trained and measured; or what was measured before."""
    stem = arguments.folder / f"{name.replace(' ', '-').replace('=', '')}-{seed}"
    report = stem.with_suffix(".json")
    if not report.exists():
        started = time.monotonic()
        run("train", "--cache", str(cache), "--student", "shrink:layers=2", "--teacher", str(STUDENT),
            "--losses", *losses, "--output_dir", str(stem), "--max_steps", str(arguments.steps),
            "--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--seed", str(seed),
            "--eval_fraction", str(HELD_OUT), "--save_strategy", "no", "--logging_steps", "40", "--disable_tqdm",
            "true", "--use_cpu")  # fmt: skip
        seconds = time.monotonic() - started
        with (stem / "evaluated.json").open("w", encoding="utf-8") as file:
            usual, sys.stdout = sys.stdout, file
            try:
                run(
                    "evaluate",
                    "--cache",
                    str(cache),
                    "--student",
                    str(stem),
                    "--json",
                    "--speed_seconds",
                    "0",
                )
            finally:
                sys.stdout = usual
        metrics = json.loads((stem / "evaluated.json").read_text())["metrics"]
        report.write_text(json.dumps({**metrics, "seconds": seconds}))
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def run(*command: str) -> None:
    """One `teachonce` command in this process."""
    if status := teachonce.main(command):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
