"""Students of images: plain transformers, given the pixels that the teacher was given, bit for bit."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from pipelines.teacher import batching
from schemas import Cache
from schemas.errors import CorruptionError, StudentError, UsageError
from schemas.rows.rows import Rows
from tests.images import CONFIGS, NAMES, image_teacher, images, write_parquet
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import run
from trainer.batches.images import pixels_of
from trainer.stream.side import Side
from trainer.students.image_students import fails_alone
from trainer.students.students import open_student, open_trained

LABELLED = {
    "task": "image-classification",
    "max_length": None,
    "image_field": "image",
    "label_field": "label",
}
VIEWS = {"views": 3, "augment": "crop,flip,colour"}
QUICK = ("--max_steps", "4", "--use_cpu", "--eval_fraction", "0.3", "--per_device_train_batch_size", "6")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return image_teacher(tmp_path_factory.mktemp("teacher") / "convnext", "convnext")


@pytest.fixture(scope="module")
def seen():
    """What the teacher was given of each example, by its id."""
    return {}


@pytest.fixture(scope="module")
def cache(tmp_path_factory, teacher, seen):
    """Three views of 14 images, with features of two stages."""
    folder = tmp_path_factory.mktemp("cache")
    plain = batching.pixels_of

    def watched(examples, spec, pictures):
        found = plain(examples, spec, pictures)
        seen.update(
            {example.id: pixels.numpy().copy() for example, pixels in zip(examples, found, strict=True)}
        )
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "pixels_of", watched)
        path = write_parquet(folder / "c.parquet", images(14))
        features = ("mean:-1", "mean:1")
        run(path, teacher, folder / "c", task_settings=VIEWS, features=features, **LABELLED)
    return folder / "c"


def config_of(kind, path, **changes):
    """A config from scratch, which says nothing of sizes and classes."""
    values = CONFIGS[kind]().to_dict() | changes
    for name in ("image_size", "num_channels", "id2label", "label2id"):
        values.pop(name, None)
    path.write_text(json.dumps(values))
    return path


def test_a_student_is_given_the_pixels_that_the_teacher_was_given(tmp_path, cache, seen):
    student = open_student(str(config_of("resnet", tmp_path / "s.json")), Cache.open(cache))
    assert len(seen) == 3 * 14
    found = 0
    for rows in Cache.open(cache).read_all():
        batch = student.collation().batch(rows)
        assert set(batch.model_inputs) == {"pixel_values"}
        for example, pixels in zip(rows.example_ids, batch.pixel_values.numpy(), strict=True):
            assert pixels.tobytes() == seen[example].tobytes()
            found += 1
    assert found == len(seen)


def test_batches_hold_the_pixels_of_their_own_rows(tmp_path, cache):
    student = open_student(str(config_of("resnet", tmp_path / "s.json")), Cache.open(cache))
    rows = Rows.concatenate([*Cache.open(cache).read_all()])
    every = student.collation().batch(rows).pixel_values
    order = np.random.default_rng(0).permutation(len(rows))
    for cut in np.array_split(order, 5):
        assert torch.equal(student.collation().batch(rows.take(cut)).pixel_values, every[cut])


def test_an_image_of_a_cache_that_is_none_is_told_by_its_example(tmp_path, cache):
    student = open_student(str(config_of("resnet", tmp_path / "s.json")), Cache.open(cache))
    rows = next(Cache.open(cache).read_all())
    data = {**rows.data, "image": np.array([b"no image"] * len(rows), object)}
    with pytest.raises(CorruptionError, match=rows.example_ids[0].hex()):
        pixels_of(Rows(spec=rows.spec, data=data), student.pictures)


@pytest.mark.parametrize("kind", CONFIGS)
def test_students_of_every_kind_learn_and_are_plain_models(tmp_path, cache, kind):
    out = tmp_path / "s"
    status, said = teachonce_main(
        *("train", "--cache", cache, "--student", config_of(kind, tmp_path / "s.json"), "--output_dir", out),
        *("--losses", "kl=1", "ce=0.5", "feature=0.2", *QUICK),
    )
    assert status == 0, said
    model = transformers.AutoModelForImageClassification.from_pretrained(out)
    assert tuple(model.config.id2label.values()) == NAMES
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    held = json.loads(Cache.open(cache).tokenizer_file("preprocessor_config.json"))
    assert list(processor.image_mean) == held["image_mean"]
    assert model(**processor(images=Image.new("RGB", (50, 40)), return_tensors="pt")).logits.shape == (1, 3)
    status, said = teachonce_main(
        "evaluate", "--cache", cache, "--student", out, "--speed_seconds", "0.1", "--json"
    )
    assert status == 0, said
    told = json.loads(said[said.index("{") :])
    assert {"accuracy", "agreement", "kl_nats", "macro_f1", "teacher_accuracy"} <= told["metrics"].keys()
    assert 0 <= told["metrics"]["agreement"] <= 1


def test_the_teacher_agrees_with_itself(cache, teacher):
    status, said = teachonce_main(
        *("evaluate", "--cache", cache, "--student", teacher, "--eval_fraction", "0.4"),
        *("--speed_seconds", "0", "--json"),
    )
    assert status == 0, said
    metrics = json.loads(said[said.index("{") :])["metrics"]
    assert metrics["agreement"] == 1
    assert metrics["kl_nats"] < 1e-3
    assert metrics["accuracy"] == metrics["teacher_accuracy"]


def test_a_pretrained_body_is_taken_with_a_new_head_and_the_caches_processor(tmp_path, cache):
    transformers.ViTModel(CONFIGS["vit"]()).save_pretrained(tmp_path / "body")
    transformers.ViTImageProcessor(size={"height": 99, "width": 99}).save_pretrained(tmp_path / "body")
    student = open_student(str(tmp_path / "body"), Cache.open(cache))
    assert student.model.config.num_labels == 3
    assert student.tokenizer.to_dict()["crop_pct"] == 0.875, "ConvNeXT's, and not ViT's"


def test_runs_that_go_on_come_to_the_same_weights(tmp_path, cache):
    config = config_of("vit", tmp_path / "s.json")
    base = ("train", "--cache", cache, "--student", config, "--save_steps", "2", *QUICK)
    assert teachonce_main(*base, "--output_dir", tmp_path / "a")[0] == 0
    assert teachonce_main(*base, "--output_dir", tmp_path / "b")[0] == 0
    shutil.rmtree(tmp_path / "b" / "checkpoint-4")
    for path in (tmp_path / "b").glob("*.*"):
        path.unlink()
    status, said = teachonce_main(*base, "--output_dir", tmp_path / "b", "--resume_from_checkpoint", "last")
    assert status == 0, said
    a, b = (
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path / name).state_dict()
        for name in "ab"
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_batch_of_one_image_is_refused_before_the_first_step_where_it_cannot_be_learnt(tmp_path, cache):
    """MobileNet's last map of 32 x 32 is 1 x 1; ResNet's of two stages is not."""
    rows = int(Side(cache=Cache.open(cache), eval_fraction=0.3, is_eval=False).counts().sum())
    base = ("train", "--cache", cache, *QUICK, "--per_device_train_batch_size", rows - 1, "--student")
    mobile, resnet = (config_of(kind, tmp_path / f"{kind}.json") for kind in ("mobilenet", "resnet"))
    status, said = teachonce_main(*base, mobile, "--output_dir", tmp_path / "a")
    assert status == 2, said
    line = said.splitlines()[-1]
    assert (
        "MobileNetV2ForImageClassification cannot be trained on one image, and a batch will hold one" in line
    )
    assert f"{rows} images an epoch in batches of {rows - 1}" in line
    assert not (tmp_path / "a" / "model.safetensors").exists()
    (size,) = re.findall(r"--per_device_train_batch_size (\d+), which leaves no such batch", line)
    told = ("--per_device_train_batch_size", size, "--max_steps", "5")
    assert teachonce_main(*base, mobile, "--output_dir", tmp_path / "b", *told)[0] == 0
    assert teachonce_main(*base, mobile, "--output_dir", tmp_path / "c", "--max_steps", "1")[0] == 0
    assert teachonce_main(*base, resnet, "--output_dir", tmp_path / "d")[0] == 0


@pytest.mark.parametrize("kind", ["mobilenet", "resnet"])
def test_the_trial_on_one_image_leaves_a_student_as_it_was(tmp_path, cache, kind):
    student = open_student(str(config_of(kind, tmp_path / "s.json")), Cache.open(cache))
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    random = torch.random.get_rng_state()
    found = fails_alone(student.model, student.pictures)
    assert (found is not None) == (kind == "mobilenet")
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in student.model.state_dict().items())


REFUSED = {
    "a size that it cannot take": ("vit", {"image_size": 40}, (), "fails on the cache's images"),
    "packing": ("vit", {}, ("--batching", "pack"), "pack"),
    "adapters": ("vit", {}, ("--lora", "r=4"), "lora"),
    "words' embeddings": ("vit", {}, ("--adversarial", "fgm=1"), "adversarial"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_student_of_images_can_is_one_line(tmp_path, cache, name):
    kind, changes, flags, told = REFUSED[name]
    path = config_of(kind, tmp_path / "s.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    status, said = teachonce_main(
        "train", "--cache", cache, "--student", path, "--output_dir", tmp_path / "s", *QUICK, *flags
    )
    assert status in (1, 2), said
    assert told in said.splitlines()[-1]
    assert not (tmp_path / "s" / "model.safetensors").exists()


def test_other_students_are_refused(tmp_path, cache, teacher):
    opened = Cache.open(cache)
    with pytest.raises(UsageError, match="shrink"):
        open_student("shrink:layers=1", opened, teacher=str(teacher))
    other = image_teacher(tmp_path / "other", "vit")
    with pytest.raises(StudentError, match="image processor is not the cache's"):
        open_trained(str(other), opened)
    four = image_teacher(tmp_path / "four", "vit", id2label=dict(enumerate("abcd")))
    with pytest.raises(StudentError, match="number of classes"):
        open_student(str(four), opened)


def test_a_missing_package_is_one_clear_error(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("schemas.images.PACKAGES", ("PIL", "no_such_package"))
    with pytest.raises(UsageError, match=r"teachonce\[images\]"):
        open_student(str(config_of("vit", tmp_path / "s.json")), Cache.open(cache))


def test_an_image_processor_with_code_is_refused(tmp_path, cache, monkeypatch):
    evil = b'{"image_processor_type": "X", "auto_map": {"AutoImageProcessor": "evil.X"}}'
    monkeypatch.setattr(Cache, "tokenizer_file", lambda self, name: evil)
    with pytest.raises(UsageError, match="code of its own"):
        open_student(str(config_of("vit", tmp_path / "s.json")), Cache.open(cache))
