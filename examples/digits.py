"""Handwritten digits (scikit-learn's 1,797 of 8 x 8 pixels): a small teacher is trained, and students with and without.

    python -m examples.digits FOLDER

The teacher sees only what the cache will train on: who is held out goes by a document's hash, which is known before.
Students are one config, trained for as many steps on the same images: by the labels alone, by the teacher alone, by
both, and by the teacher on augmented views. Each is trained with two seeds.
"""

import hashlib
import io
import json
import statistics
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits

import teachonce
from schemas.identity import document_hash, is_held_out

FRACTION, SIDE = 0.5, 32
SEEDS = (0, 1)
STEPS, TEACHER_STEPS = 400, 600
STUDENT = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
CACHES = {"plain": (), "views": ("--views", "4", "--augment", "crop,colour")}
RUNS = {
    "labels alone": ("plain", ("ce=1",)),
    "teacher alone": ("plain", ("kl=1",)),
    "teacher and labels": ("plain", ("kl=1", "ce=0.5")),
    "teacher, 4 views": ("views", ("kl=1",)),
}


def corpus(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes the digits as a Parquet column of PNGs; gives pixels, labels, and which of them are held out."""
    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    rows, held = [], []
    for image, label in zip(pixels, digits.target.tolist(), strict=True):
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, "PNG")
        data = sink.getvalue()
        rows.append({"image": data, "label": str(label)})
        digest = document_hash({"image": hashlib.sha256(data).hexdigest()}, label=label)
        held.append(is_held_out(digest, FRACTION))
    pq.write_table(pa.Table.from_pylist(rows), path)
    return pixels, digits.target, np.array(held)


def teacher(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """A small ResNet, trained by hand on images that are moved about."""
    names = {index: str(index) for index in range(10)}
    config = transformers.ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config)
    images = [Image.fromarray(image).convert("RGB") for image in pixels]
    given, right = processor(images=images, return_tensors="pt")["pixel_values"], torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=TEACHER_STEPS)
    for _ in range(TEACHER_STEPS):
        chosen = torch.randint(0, len(given), (64,))
        shifts = torch.randint(-4, 5, (2,)).tolist()
        loss = model(pixel_values=given[chosen].roll(shifts, (2, 3)), labels=right[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def command(*words: object) -> None:
    """One call of `teachonce`."""
    if status := teachonce.main([str(word) for word in words]):
        sys.exit(status)


def main() -> None:
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    pixels, labels, held = corpus(root / "digits.parquet")
    teacher(root / "teacher", pixels[~held], labels[~held])
    (root / "student.json").write_text(json.dumps(STUDENT))
    for name, flags in CACHES.items():
        command(
            *("precompute", "--corpus", root / "digits.parquet", "--label_field", "label"),
            *("--teacher", root / "teacher", "--task", "image-classification"),
            *("--cache", root / name, "--no_progress", *flags),
        )
    table = {}
    for run, (cache, losses) in RUNS.items():
        for seed in SEEDS:
            out = root / f"{run.replace(' ', '-').replace(',', '')}-{seed}"
            command(
                *("train", "--cache", root / cache, "--student", root / "student.json", "--losses", *losses),
                *("--output_dir", out, "--seed", seed, "--eval_fraction", FRACTION, "--max_steps", STEPS),
                *("--per_device_train_batch_size", 32, "--learning_rate", 5e-3, "--use_cpu"),
                *("--disable_tqdm", "True", "--save_strategy", "no"),
            )
            table.setdefault(run, []).append(measured(root / "plain", out))
    first = next(iter(table.values()))[0]
    print(
        f"{int(held.sum())} of {len(held)} digits held out; the teacher: accuracy {first['teacher_accuracy']:.4f}"
    )
    for run, found in table.items():
        told = [
            f"{name} {statistics.mean(one[name] for one in found):.4f} "
            f"({min(one[name] for one in found):.4f} to {max(one[name] for one in found):.4f})"
            for name in ("accuracy", "agreement", "cross_entropy_nats")
        ]
        print(f"{run:24}", "  ".join(told))


def measured(cache: Path, student: Path) -> dict[str, float]:
    """What `evaluate` says of a student on the images as they are."""
    said = io.StringIO()
    with redirect_stdout(said):
        command(
            "evaluate",
            "--cache",
            cache,
            "--student",
            student,
            "--speed_seconds",
            0,
            "--device",
            "cpu",
            "--json",
        )
    return json.loads(said.getvalue())["metrics"]


if __name__ == "__main__":
    main()
