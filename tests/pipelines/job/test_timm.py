"""Teachers of timm's, through transformers' wrapper: a cache says what the plain model says of the pixels of its own
transforms, a student is given these pixels, and without the package it is refused."""

import importlib.util
import io
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from schemas import Cache
from schemas.errors import UsageError
from tests.images import LABELLED, encoded, images, logits_of, rows_of, write_parquet
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import run
from trainer.students.students import open_student

pytest.importorskip("timm", reason="pip install 'teachonce[images]'")
SHAPE = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.3] * 3, "crop_pct": 0.9}
CONFIG = {
    "model_type": "timm_wrapper",
    "architecture": "test_vit",
    "model_args": {"img_size": 32},
    "pretrained_cfg": {**SHAPE, "interpolation": "bicubic", "fixed_input_size": True},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**CONFIG, num_labels=3)
    model = transformers.AutoModelForImageClassification.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(8.0 if "head" in name and weight.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp("cache")
    rows = [(data, f"LABEL_{number % 3}") for number, (data, _) in enumerate(images(14))]
    run(write_parquet(folder / "c.parquet", rows), teacher, folder / "cache", **LABELLED)
    return folder / "cache"


def test_a_cache_says_what_the_plain_model_says(teacher, cache):
    processor = transformers.AutoImageProcessor.from_pretrained(teacher)
    model = transformers.AutoModelForImageClassification.from_pretrained(teacher).eval()
    rows = rows_of(cache)
    truths = []
    for data, _ in images(14):
        pixels = processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 32, 32)
        with torch.inference_mode():
            truth = model(pixel_values=pixels).logits[0].numpy()
        assert np.abs(logits_of(rows[data, 0]) - truth).max() < 0.05
        truths.append(truth)
    assert np.std(truths, axis=0).max() > 0.05


def test_students_are_given_the_teachers_pixels(teacher, cache, tmp_path):
    student = tmp_path / "student.json"
    student.write_text(json.dumps(CONFIG | {"architecture": "test_vit2"}))
    flags = ("--use_cpu", "--max_steps", "3", "--eval_fraction", "0.3", "--losses", "kl=1")
    status, said = teachonce_main(
        "train", "--cache", cache, "--student", student, *flags, "--output_dir", tmp_path / "out"
    )
    assert status == 0, said
    status, said = teachonce_main(
        "evaluate", "--cache", cache, "--student", tmp_path / "out", "--speed_seconds", "0", "--json"
    )
    assert status == 0, said
    assert json.loads(said)["metrics"]["kl_nats"] > 0
    opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert opened.config.architecture == "test_vit2"
    pictures = open_student(str(teacher), Cache.open(cache)).pictures
    data = encoded(Image.new("RGB", (40, 50), (9, 99, 199)))
    theirs = transformers.AutoImageProcessor.from_pretrained(teacher)(
        Image.new("RGB", (40, 50), (9, 99, 199)), return_tensors="pt"
    )["pixel_values"][0]
    assert np.array_equal(pictures.pixels(data, b"", 0), theirs.numpy())


def test_without_the_package_it_is_refused(teacher, cache, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "timm" else found(name, *a)
    )
    path = write_parquet(tmp_path / "c.parquet", images(2))
    with pytest.raises(UsageError, match=r"a model of timm's needs a package.*teachonce\[images\]"):
        run(path, teacher, tmp_path / "c", **LABELLED)
    with pytest.raises(UsageError, match="a model of timm's needs a package"):
        open_student(str(teacher), Cache.open(cache))
