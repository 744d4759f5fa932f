"""Embeddings of handwritten digits: students with the teacher's embeddings, and without, on as many steps: one table.

    python -m examples.digit_embeddings FOLDER

The teacher is `digits.py`'s, trained with the labels of what is not held out; a digit's embedding is the mean of its
last states, of length 1. Students are one config. With the teacher: by embeddings alone, no label known. Without: by
labels, as a classifier whose head is then left out, all of them or those of 100 digits; and untaught. All are measured
on held-out digits, by the teacher's neighbours (`teachonce evaluate`) and by what owes nothing to its opinion: how
often the nearest other digit is the same one.
"""

import io
import json
import statistics
import sys
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from examples import digits
from schemas.identity import document_hash, is_held_out

SEEDS = (0, 1)
STEPS = 400
FEW = 100
METRICS = ("spearman", "recall_at_1", "recall_at_10", "nearest_alike")
EMBEDDED = ("feature=1,distance=cosine", "similarity=10")
RUNS = {
    "the teacher's embeddings": ("embedded", EMBEDDED, STEPS),
    "labels alone": ("labelled", ("ce=1",), STEPS),
    f"{FEW} labels alone": ("few", ("ce=1",), STEPS),
    "untaught": ("embedded", (*EMBEDDED, "--learning_rate", "1e-12"), 1),
}


def main() -> None:
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    pixels, labels, _ = digits.corpus(root / "digits.parquet")
    rows = pq.read_table(root / "digits.parquet").to_pylist()
    held = [
        is_held_out(document_hash({"image": sha256(row["image"]).hexdigest()}), digits.FRACTION)
        for row in rows
    ]
    own = [place for place, one in enumerate(held) if not one]
    digits.teacher(root / "teacher", pixels[own], labels[own])
    (root / "student.json").write_text(json.dumps(digits.STUDENT))
    table = pq.read_table(root / "digits.parquet")
    for name, places in {"labelled": own, "few": own[:FEW]}.items():
        pq.write_table(table.take(places), root / f"{name}.parquet")
        cached(root, name, f"{name}.parquet", "image-classification", "--label_field", "label")
    cached(
        root, "embedded", "digits.parquet", "image-feature-extraction", "--features", "mean:-1", "--normalize"
    )
    aside = [row for row, one in zip(rows, held, strict=True) if one]
    found = {"the teacher": [measured(root, root / "teacher", aside)]}
    for run in RUNS:
        for seed in SEEDS:
            found.setdefault(run, []).append(measured(root, trained(root, run, seed), aside))
    print(f"{len(aside)} of {len(rows)} digits held out")
    for run, each in found.items():
        values = [(name, [one[name] for one in each]) for name in METRICS]
        told = [f"{name} {statistics.mean(of):.4f} ({min(of):.4f} to {max(of):.4f})" for name, of in values]
        print(f"{run:26}", "  ".join(told))


def cached(root: Path, name: str, corpus: str, task: str, *flags: str) -> None:
    """The teacher's cache of a corpus."""
    known = ("--teacher", root / "teacher", "--cache", root / name, "--no_progress")
    digits.command("precompute", "--corpus", root / corpus, "--task", task, *known, *flags)


def trained(root: Path, run: str, seed: int) -> Path:
    """One student. Who learns from labels learns from all images that its corpus has."""
    cache, losses, steps = RUNS[run]
    out = root / f"{run.replace(' ', '-').replace(chr(39), '')}-{seed}"
    digits.command(
        *("train", "--cache", root / cache, "--student", root / "student.json", "--output_dir", out),
        *(
            "--eval_fraction",
            digits.FRACTION if cache == "embedded" else 0,
            "--seed",
            seed,
            "--max_steps",
            steps,
        ),
        *(
            "--per_device_train_batch_size",
            32,
            "--learning_rate",
            5e-3,
            "--use_cpu",
            "--disable_tqdm",
            "True",
        ),
        *("--save_strategy", "no", "--losses", *losses),
    )
    return out


def measured(root: Path, student: Path, aside: list[dict]) -> dict[str, float]:
    """What `evaluate` says of its neighbours, and how many of them are the same digit."""
    said = io.StringIO()
    with redirect_stdout(said):
        digits.command(
            *(
                "evaluate",
                "--cache",
                root / "embedded",
                "--student",
                student,
                "--eval_fraction",
                digits.FRACTION,
            ),
            *("--speed_seconds", 0, "--device", "cpu", "--json"),
        )
    return json.loads(said.getvalue())["metrics"] | {"nearest_alike": nearest_alike(student, aside)}


@torch.no_grad()
def nearest_alike(folder: Path, rows: list[dict]) -> float:
    """The share of digits whose nearest by cosine is the same digit, by plain transformers and torch."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    images = [Image.open(io.BytesIO(row["image"])).convert("RGB") for row in rows]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    pooled = torch.cat(
        [model(pixel_values=part).last_hidden_state.mean((2, 3)) for part in pixels.split(100)]
    )
    if (folder / "2_Dense").exists():
        dense = load_file(folder / "2_Dense/model.safetensors")
        pooled = pooled @ dense["linear.weight"].T + dense["linear.bias"]
    unit = torch.nn.functional.normalize(pooled)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1).tolist()
    return statistics.mean(
        row["label"] == rows[near]["label"] for row, near in zip(rows, nearest, strict=True)
    )


if __name__ == "__main__":
    main()
