"""Where a digit is on a canvas (scikit-learn's, of 8 x 8 pixels): a small DETR finds it, and teaches a smaller one.

    python -m examples.detected_digits FOLDER

A canvas holds one digit, enlarged, on noise; there is one class. The teacher is trained on 3,000 canvases of two thirds
of the digits, with transformers' own loss; the corpus is 400 canvases of the other third. Students are one config,
trained for as many steps on the same images: by the corpus's objects alone, by the teacher alone, and by both. Each is
trained with two seeds. `--scale 0.1` is a tenth of all steps.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits

import teachonce

FRACTION, SIDE, CANVASES, TAUGHT = 0.4, 48, 400, 3000
SEEDS = (0, 1)
STEPS, TEACHER_STEPS, BATCH = 1000, 3000, 32
NAMES = {0: "digit"}
RUNS = {
    "objects alone": ("ce=1", "gold_boxes=1"),
    "teacher alone": ("kl=1", "boxes=1"),
    "teacher and objects": ("kl=1", "boxes=1", "ce=0.5", "gold_boxes=0.5"),
}
METRICS = ("map_50", "map", "agreement")


class Canvas(NamedTuple):
    """Pixels, and what is on them: left, upper, width and height, and the class."""

    pixels: np.ndarray
    boxes: list[list[float]]
    names: list[str]


def config(width: int, states: int) -> transformers.DetrConfig:
    """A DETR with a ResNet of three stages, so wide, and an encoder and a decoder of one layer each."""
    backbone = transformers.ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[1, 1, 1],
        layer_type="basic",
        out_features=["stage3"],
    )
    return transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=states,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * states,
        decoder_ffn_dim=2 * states,
        dropout=0.0,
        num_queries=3,
        id2label=NAMES,
        label2id={name: index for index, name in NAMES.items()},
    )


def canvas(images: np.ndarray, rng: np.random.Generator) -> Canvas:
    """One digit on noise."""
    pixels = rng.integers(0, 40, (SIDE, SIDE)).astype(np.uint8)
    size, place = int(rng.integers(14, 29)), int(rng.integers(len(images)))
    left, top = (int(n) for n in rng.integers(0, SIDE - size + 1, 2))
    image = Image.fromarray(images[place]).resize((size, size), Image.Resampling.BILINEAR)
    part = pixels[top : top + size, left : left + size]
    np.maximum(part, np.asarray(image), out=part)
    return Canvas(pixels, [[float(left), float(top), float(size), float(size)]], [NAMES[0]])


def corpus(path: Path, images: np.ndarray) -> None:
    """Canvases as `datasets` keeps objects: a PNG beside boxes and categories."""
    rng, rows = np.random.default_rng(1), list[dict[str, Any]]()
    for _ in range(CANVASES):
        found, sink = canvas(images, rng), io.BytesIO()
        Image.fromarray(found.pixels).save(sink, "PNG")
        rows.append({"image": sink.getvalue(), "objects": {"bbox": found.boxes, "category": found.names}})
    pq.write_table(pa.Table.from_pylist(rows), path)


def teacher(folder: Path, images: np.ndarray, steps: int) -> None:
    """A DETR, trained by transformers' own loss."""
    torch.manual_seed(0)
    model = transformers.DetrForObjectDetection(config(16, 64))
    processor = transformers.DetrImageProcessor(size={"height": SIDE, "width": SIDE})
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    every = [canvas(images, rng) for _ in range(TAUGHT)]
    pictures = [Image.fromarray(found.pixels).convert("RGB") for found in every]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    right = [
        {
            "class_labels": torch.zeros(len(found.names), dtype=torch.int64),
            "boxes": torch.tensor([[x + w / 2, y + h / 2, w, h] for x, y, w, h in found.boxes]) / SIDE,
        }
        for found in every
    ]
    for _ in range(steps):
        chosen = torch.randint(0, TAUGHT, (BATCH,))
        loss = model(pixel_values=pixels[chosen], labels=[right[place] for place in chosen.tolist()]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def command(*words: object) -> None:
    """One call of `teachonce`."""
    if status := teachonce.main([str(word) for word in words]):
        sys.exit(status)


def measured(cache: Path, student: Path) -> dict[str, float]:
    """What `evaluate` says of a student on held-out images."""
    said = io.StringIO()
    told = ("--eval_fraction", FRACTION, "--speed_seconds", 0, "--device", "cpu", "--json")
    with redirect_stdout(said):
        command("evaluate", "--cache", cache, "--student", student, *told)
    found: dict[str, float] = json.loads(said.getvalue())["metrics"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--scale", type=float, default=1.0, help="of all steps (1)")
    arguments = parser.parse_args()
    root, scale = arguments.folder, arguments.scale
    root.mkdir(parents=True)
    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    is_corpus = np.arange(len(images)) % 3 == 0
    corpus(root / "digits.parquet", images[is_corpus])
    began = time.monotonic()
    teacher(root / "teacher", images[~is_corpus], max(2, round(TEACHER_STEPS * scale)))
    print(f"the teacher was trained in {time.monotonic() - began:.0f} s", flush=True)
    config(12, 32).to_json_file(root / "student.json", use_diff=False)
    command(
        *("precompute", "--corpus", root / "digits.parquet", "--label_field", "objects", "--no_progress"),
        *("--teacher", root / "teacher", "--task", "object-detection", "--cache", root / "cache"),
    )
    table = {"teacher": [measured(root / "cache", root / "teacher")]}
    for run, losses in RUNS.items():
        for seed in SEEDS:
            out = root / f"{run.replace(' ', '-')}-{seed}"
            command(
                *(
                    "train",
                    "--cache",
                    root / "cache",
                    "--student",
                    root / "student.json",
                    "--losses",
                    *losses,
                ),
                *("--output_dir", out, "--seed", seed, "--eval_fraction", FRACTION, "--use_cpu"),
                *("--max_steps", max(1, round(STEPS * scale)), "--per_device_train_batch_size", BATCH),
                *("--learning_rate", 1e-3, "--lr_scheduler_type", "cosine", "--warmup_steps", "0.1"),
                *("--disable_tqdm", "True", "--save_strategy", "no", "--logging_steps", "200"),
            )
            table.setdefault(run, []).append(measured(root / "cache", out))
    (root / "results.json").write_text(json.dumps(table, indent=2) + "\n")
    for run, found in table.items():
        told = [
            f"{name} {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for name in METRICS
            if (values := [one[name] for one in found if name in one])
        ]
        print(f"{run:24}", "  ".join(told))


if __name__ == "__main__":
    main()
