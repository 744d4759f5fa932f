"""What several teachers, and generations of one, gain over a plain student of as many steps: a row each.

The demo's teacher a, and b: four of its layers, distilled from it. All students begin as two of a's layers and see the
same batches in the same order; a born-again generation is taught by the one before. Measured against a on documents
that nobody was trained on.

    python benchmarks/several.py            # some minutes on one core; what is there is kept
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from quality_parts import HELD_OUT, ROOT, documents_below

import teachonce
from schemas.identity import document_hash, is_held_out

TEACHER = ROOT / "examples/teacher"


def main() -> None:
    arguments = parse_arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(take(arguments.documents)))
    precompute(folder, TEACHER, "a")
    train(folder, "b", ["a"], *told(4, 1, 2 * arguments.steps))
    precompute(folder, folder / "b", "b")
    for seed in arguments.seeds:
        of_seed = told(2, seed, arguments.steps)
        report(
            folder,
            f"plain from a, seed {seed}",
            train(folder, f"plain-{seed}", ["a"], *of_seed),
        )
        report(
            folder,
            f"plain from b, seed {seed}",
            train(folder, f"weak-{seed}", ["b"], *of_seed),
        )
        joined = train(folder, f"join-{seed}", ["a", "b"], *of_seed, "--join", "example")
        report(folder, f"join of a and b, seed {seed}", joined)
        before = folder / f"plain-{seed}"
        for generation in (2, 3):
            name = f"born-{generation}-{seed}"
            precompute(folder, before, f"{name}-said")
            before = train(folder, name, [f"{name}-said"], *of_seed)
            report(folder, f"generation {generation}, seed {seed}", before)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "data/several")
    parser.add_argument("--documents", type=int, default=40, help="to train on")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    return parser.parse_args()


def take(documents: int) -> list[str]:
    """The documents that the demo's teacher held out, and so many others."""
    held, others = [], []
    for line in documents_below(1 - 2**-50):
        text = json.loads(line)["text"]
        place = held if is_held_out(document_hash({"text": text}), HELD_OUT) else others
        place.append(json.dumps({"text": text}) + "\n")
    return held + others[:documents]


def precompute(folder: Path, teacher: Path, name: str) -> None:
    """One teacher's cache; a second time nothing is done."""
    run("precompute", "--corpus", str(folder / "corpus.jsonl"), "--teacher", str(teacher), "--task", "causal-lm",
        "--cache", str(folder / f"{name}.cache"), "--keep", "threshold:1/32", "--max_length", "128",
        "--no_progress")  # fmt: skip


def told(layers: int, seed: int, steps: int) -> list[str]:
    """Flags of a student."""
    return ["--student", f"shrink:layers={layers}", "--seed", str(seed), "--max_steps", str(steps)]


def train(folder: Path, name: str, caches: list[str], *more: str) -> Path:
    """One student, unless it is there."""
    out = folder / name
    if not (out / "config.json").exists():
        run("train", "--cache", *(str(folder / f"{cache}.cache") for cache in caches), *more, "--teacher",
            str(TEACHER), "--losses", "kl=1", "--output_dir", str(out), "--per_device_train_batch_size", "4",
            "--learning_rate", "1e-3", "--eval_fraction", str(HELD_OUT), "--save_strategy", "no",
            "--logging_steps", "50", "--disable_tqdm", "true", "--use_cpu")  # fmt: skip
    return out


def report(folder: Path, name: str, student: Path) -> None:
    """One line of the table."""
    file = student / "evaluated.json"
    if not file.exists():
        with file.open("w", encoding="utf-8") as stream:
            usual, sys.stdout = sys.stdout, stream
            try:
                run("evaluate", "--cache", str(folder / "a.cache"), "--student", str(student), "--json",
                    "--speed_seconds", "0")  # fmt: skip
            finally:
                sys.stdout = usual
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    ours, kl = found["cross_entropy_nats"], found["kl_nats"]
    print(
        f"{name}: cross entropy {ours:.4f}, KL to a {kl:.4f}, agreement {found['top1_agreement']:.1%}",
        flush=True,
    )


def run(*command: str) -> None:
    """One `teachonce` command in this process."""
    if status := teachonce.main(command):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
