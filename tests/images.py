"""Small images and classifiers of them, as files of every kind."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image

from schemas import Cache
from schemas.rows.entries import entries_of
from schemas.rows.rows import Rows

NAMES = ("round", "square", "other")
SIDE = 24

CONFIGS = {
    "vit": lambda: transformers.ViTConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    ),
    "convnext": lambda: transformers.ConvNextConfig(
        hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=4, image_size=SIDE
    ),
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
    ),
    "mobilenet": lambda: transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=SIDE),
}
PROCESSORS = {
    "vit": lambda: transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}),
    "convnext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=0.875),
    "resnet": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=0.875),
    "mobilenet": lambda: transformers.MobileNetV2ImageProcessor(
        size={"shortest_edge": SIDE + 8}, crop_size={"height": SIDE, "width": SIDE}
    ),
}


def image_teacher(path, kind="vit", *, seed=0, **changes):
    """A random classifier in a folder, with its image processor."""
    config = CONFIGS[kind]()
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: index for index, name in enumerate(NAMES)}
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    with (
        torch.no_grad()
    ):  # answers that differ from image to image, and running means that are not those of birth
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4.0 if "classifier" in name else 1.5)
    model.save_pretrained(path)
    PROCESSORS[kind]().save_pretrained(path)
    return Path(path)


def picture(seed, size=(30, 20), mode="RGB"):
    """Blocks of colour with some noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    blocks = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)).astype(int)
    pixels = np.clip(pixels + rng.integers(-20, 20, pixels.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG", **options):
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def images(count, start=0):
    """(bytes, name of class) of some images, of several sizes and formats."""
    found = []
    for seed in range(start, start + count):
        kind = ("PNG", "JPEG", "WEBP")[seed % 3]
        found.append((encoded(picture(seed, (24 + seed % 9, 40 - seed % 7)), kind), NAMES[seed % len(NAMES)]))
    return found


def write_parquet(path, rows, *, ids=None, structs=True, field="image"):
    """As Hugging Face `datasets` keeps images, or as plain bytes."""
    values = [{"bytes": data, "path": None} if structs else data for data, _ in rows]
    table = {field: values, "label": [label for _, label in rows]}
    if ids is not None:
        table["id"] = list(ids)
    pq.write_table(pa.table(table), path)
    return Path(path)


def write_tar(path, rows, *, mode="w"):
    """As webdataset keeps images: `key.png` beside `key.json`."""
    with tarfile.open(path, mode) as tar:
        for number, (data, label) in enumerate(rows):
            parts = (("png", data), ("json", json.dumps({"label": label}).encode()))
            for extension, content in parts:
                info = tarfile.TarInfo(f"part/{number:05}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return Path(path)


def write_files(folder, rows):
    """As `imagefolder`: a folder a class."""
    for number, (data, label) in enumerate(rows):
        place = Path(folder) / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05}.png").write_bytes(data)
    return Path(folder)


IMAGES = {"task": "image-classification", "max_length": None, "image_field": "image"}
LABELLED = IMAGES | {"label_field": "label"}


def rows_of(cache):
    """Every row, by its image's bytes and view."""
    rows = Rows.concatenate([*Cache.open(cache).read_all()])
    return {
        (rows.array("image")[i], int(rows.array("view_index")[i])): rows.take(np.array([i]))
        for i in range(len(rows))
    }


def logits_of(row):
    """The teacher's logits, as far as the cache tells."""
    found = entries_of(row)
    logits = np.empty(len(found.ids))
    logits[found.ids] = found.logprobs + row.logsumexp()[0]
    return logits


@torch.inference_mode()
def by_hand(teacher, data):
    """Logits and mean states of one image, as anybody would ask for them."""
    processor = transformers.AutoImageProcessor.from_pretrained(teacher)
    model = transformers.AutoModelForImageClassification.from_pretrained(teacher).eval()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    output = model(**processor(images=image, return_tensors="pt"), output_hidden_states=True)
    states = [s.mean((2, 3)) if s.ndim == 4 else s.mean(1) for s in output.hidden_states]
    return output.logits[0].numpy(), [state[0].numpy() for state in states]
