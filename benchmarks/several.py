"""What several teachers, and generations of one, gain over a plain student of as many steps: a row each.

The demo's teacher a, and b: four of its layers, distilled from it. All students begin as two of a's layers and see the
same batches in the same order; a born-again generation is taught by the one before, and the student of an assistant by
b. Measured against a on documents that nobody was trained on.

    python benchmarks/several.py            # some minutes on one core; what is there is kept
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from gains import Row, finish, measured, run, trained
from quality_parts import HELD_OUT, ROOT, documents_below

from schemas.identity import document_hash, is_held_out

TEACHER = ROOT / "examples/teacher"
METRICS = ("cross_entropy_nats", "kl_nats", "top1_agreement")


def main() -> None:
    arguments = parse_arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(take(arguments.documents, arguments.held_out)))
    precompute(folder, TEACHER, "a")
    train(folder, "b", ["a"], *told(4, 1, 2 * arguments.steps))
    precompute(folder, folder / "b", "b")
    rows = [measured("b itself", 1, folder / "b", folder / "a.cache", METRICS)]
    for seed in arguments.seeds:
        rows += of_seed(folder, seed, arguments.steps)
    finish("several", rows, vars(arguments), plain="plain from a")


def of_seed(folder: Path, seed: int, steps: int) -> Iterator[Row]:
    """The students of one seed, each trained and measured."""
    flags = told(2, seed, steps)

    def row(name: str, out: Path) -> Row:
        return measured(name, seed, out, folder / "a.cache", METRICS)

    yield row("text alone", train(folder, f"text-{seed}", ["a"], *flags, losses=("ce=1",)))
    yield row("plain from a", train(folder, f"plain-{seed}", ["a"], *flags))
    yield row("plain from b", train(folder, f"weak-{seed}", ["b"], *flags))
    yield row("join of a and b", train(folder, f"join-{seed}", ["a", "b"], *flags, "--join", "example"))
    picked = ("--join", "example", "--join_pick", "loss")
    yield row("the likelier of a and b", train(folder, f"pick-{seed}", ["a", "b"], *flags, *picked))
    before = folder / f"plain-{seed}"
    for generation in (2, 3):
        name = f"born-{generation}-{seed}"
        precompute(folder, before, f"{name}-said")
        before = train(folder, name, [f"{name}-said"], *flags)
        yield row(f"generation {generation}", before)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "data/several")
    parser.add_argument("--documents", type=int, default=60, help="to train on")
    parser.add_argument("--held_out", type=int, default=12, help="documents to measure on")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    return parser.parse_args()


def take(documents: int, held_out: int) -> list[str]:
    """So many documents that the demo's teacher held out, and so many that it was trained on: the same split as
    then."""
    held, others = [], []
    for line in documents_below(1 - 2**-50):
        text = json.loads(line)["text"]
        place = held if is_held_out(document_hash({"text": text}), HELD_OUT) else others
        place.append(json.dumps({"text": text}) + "\n")
    return held[:held_out] + others[:documents]


def precompute(folder: Path, teacher: Path, name: str) -> None:
    """One teacher's cache; a second time nothing is done."""
    run("precompute", "--corpus", str(folder / "corpus.jsonl"), "--teacher", str(teacher), "--task", "causal-lm",
        "--cache", str(folder / f"{name}.cache"), "--keep", "threshold:1/32", "--max_length", "128",
        "--no_progress")  # fmt: skip


def told(layers: int, seed: int, steps: int) -> list[str]:
    """Flags of a student."""
    return ["--student", f"shrink:layers={layers}", "--seed", str(seed), "--max_steps", str(steps)]


def train(
    folder: Path, name: str, caches: list[str], *more: str, losses: tuple[str, ...] = ("kl=1",)
) -> Path:
    """One student, unless it is there."""
    places = [str(folder / f"{cache}.cache") for cache in caches]
    trained(folder / name, "--cache", *places, *more, "--teacher", str(TEACHER), "--losses", *losses,
            "--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--eval_fraction", str(HELD_OUT),
            )  # fmt: skip
    return folder / name


if __name__ == "__main__":
    main()
