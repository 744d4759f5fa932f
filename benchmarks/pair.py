"""A real pair: SmolLM2-135M as the teacher, a small student with its tokenizer, cross entropy against distillation.

The teacher runs once, over as many of the PostgreSQL pages as make `--tokens`; both students are trained from that one
cache with the same start, order and steps, and compared on held-out documents. Prints losses, and each student's share
of the way from the cross-entropy student to the teacher.

    python benchmarks/assets.py data                  # once: the real model, and the real text
    python benchmarks/pair.py --folder data/pair      # two hours on one core; a cache that is there is kept
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import teachonce

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
EVAL_FRACTION = "0.1"


def main() -> None:
    arguments = parse_arguments()
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    cache, student = folder / "cache", folder / "student.json"
    student.write_text(json.dumps(json.loads(Path(arguments.teacher, "config.json").read_text()) | SMALL))
    corpus = take(Path(arguments.corpus), arguments.tokens, folder / "corpus.jsonl")
    run("precompute", "--corpus", str(corpus), "--teacher", arguments.teacher, "--task", "causal-lm",
        "--cache", str(cache), "--keep", arguments.keep, "--max_length", "256")  # fmt: skip
    found = {name: distil(name, losses, cache, folder, arguments) for name, losses in LOSSES.items()}
    ce, kl = (found[name]["metrics"]["cross_entropy_nats"] for name in LOSSES)
    teacher = found["kl"]["metrics"]["teacher_cross_entropy_nats"]
    print(f"held-out loss: CE {ce:.4f}, KL {kl:.4f}, teacher {teacher:.4f} nats; {arguments.steps} steps")
    for name, result in found.items():
        metrics = result["metrics"]
        print(
            f"{name}: top-1 agreement {metrics['top1_agreement']:.1%}, KL {metrics['kl_nats']:.3f} nats, "
            f"{result['seconds'] / arguments.steps:.2f} s a step"
        )
    print(f"KL against CE: {ce - kl:+.4f} nats, {(ce - kl) / (ce - teacher):.1%} of the way to the teacher")


LOSSES = {"ce": ("ce=1", "kl=0"), "kl": ("kl=1", "ce=0")}
"""A term of weight 0 is only logged."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--folder", required=True, help="cache, students and results")
    parser.add_argument("--teacher", default=str(ROOT / "data/smollm2"))
    parser.add_argument("--corpus", default=str(ROOT / "data/postgresql.jsonl"), help="JSONL with `text`")
    parser.add_argument("--tokens", type=int, default=200_000, help="about so many tokens of documents")
    parser.add_argument("--keep", default="threshold:1/32", help="keep policy")
    parser.add_argument("--steps", type=int, default=600)
    return parser.parse_args()


def take(corpus: Path, tokens: int, into: Path) -> Path:
    """Every so-manieth document, cut to 4,000 letters, until four letters a token make the tokens."""
    with corpus.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"][:4000] for line in lines]
    step = max(1, sum(map(len, texts)) // (4 * tokens))
    into.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[::step]), encoding="utf-8")
    return into


def distil(
    name: str, losses: Sequence[str], cache: Path, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Trains and evaluates one student."""
    out, report = folder / name, folder / f"{name}.json"
    started = time.monotonic()
    run("train", "--cache", str(cache), "--student", str(folder / "student.json"), "--losses", *losses,
        "--output_dir", str(out), "--max_steps", str(arguments.steps), "--eval_fraction", EVAL_FRACTION,
        "--per_device_train_batch_size", "8", "--learning_rate", "2e-3", "--lr_scheduler_type", "cosine",
        "--warmup_steps", "0.1", "--weight_decay", "0", "--logging_steps", "25", "--save_strategy", "no",
        "--seed", "1", "--disable_tqdm", "true")  # fmt: skip
    seconds = time.monotonic() - started
    with report.open("w", encoding="utf-8") as file:
        usual, sys.stdout = sys.stdout, file
        try:
            run("evaluate", "--cache", str(cache), "--student", str(out), "--json")
        finally:
            sys.stdout = usual
    return {**json.loads(report.read_text(encoding="utf-8")), "seconds": seconds}


def run(*command: str) -> None:
    """One `teachonce` command in this process."""
    if status := teachonce.main(command):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
