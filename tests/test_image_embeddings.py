"""Embeddings of images, from teacher to student: what plain transformers, pooled by hand, say of each image alone."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from schemas import Cache
from tests.images import CONFIGS, image_teacher, images, rows_of, write_parquet
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import run

TASK = {"task": "image-feature-extraction", "keep": None, "max_length": None, "image_field": "image"}
QUICK = (
    "--use_cpu",
    "--eval_fraction",
    "0.4",
    "--max_steps",
    "12",
    "--learning_rate",
    "3e-3",
    "--per_device_train_batch_size",
    "8",
)


@torch.inference_mode()
def by_hand(folder, data, pooling="mean", layer=None):
    """One image's pooled states, of its last ones or of a stage, as anybody would ask for them."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    output = model(**processor(images=image, return_tensors="pt"), output_hidden_states=True)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    if states.ndim == 4:
        return states.mean((2, 3))[0].numpy()
    return (states[:, 0] if pooling == "cls" else states.mean(1))[0].numpy()


@pytest.fixture(scope="module")
def some():
    return images(12)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_cache_says_what_a_plain_forward_of_each_image_says(tmp_path, some, kind):
    teacher, pooling = image_teacher(tmp_path / "t", kind), "cls" if kind == "vit" else "mean"
    path = write_parquet(tmp_path / "c.parquet", some)
    told = {"features": (f"{pooling}:-1", "mean:1"), "feature_dtype": "float32", **TASK}
    summary = run(path, teacher, tmp_path / "c", **told)
    opened, rows = Cache.open(tmp_path / "c"), rows_of(tmp_path / "c")
    assert (summary.documents, summary.rejects, len(rows)) == (len(some), {}, len(some))
    for data, _ in some:
        row = rows[data, 0]
        last, inner = (row.feature(feature)[0] for feature in opened.spec.features)
        np.testing.assert_allclose(last, by_hand(teacher, data, pooling), atol=2e-4)
        np.testing.assert_allclose(inner, by_hand(teacher, data, layer=1), atol=2e-4)
        assert len(row.position_index()) == 0
    assert (opened.spec.score, opened.spec.vocab_size, opened.totals.positions) == ("none", 0, 0)
    assert "task:image-feature-extraction" in opened.header.to_json()["required_features"]
    assert not run(path, teacher, tmp_path / "c", **told).committed, "nothing is new"


def test_nightly_nothing_new_more_edited_and_gone(tmp_path, some):
    """Only what is new or edited is asked for; what is gone is pruned."""
    teacher, path, ids = (
        image_teacher(tmp_path / "t"),
        tmp_path / "c.parquet",
        [f"i{n}" for n in range(len(some))],
    )
    nightly = {"features": ("mean:-1",), "id_field": "id", "prune": True, "replace": True, **TASK}
    nightly |= {"max_prune_fraction": 0.9, "feature_dtype": "float32"}
    write_parquet(path, some, ids=ids)
    assert run(path, teacher, tmp_path / "c", **nightly).committed
    assert not run(path, teacher, tmp_path / "c", **nightly).committed
    edited, *more = images(4, start=80)
    write_parquet(path, [edited, *some[2:], *more], ids=[ids[0], *ids[2:], "m0", "m1", "m2"])
    summary = run(path, teacher, tmp_path / "c", **nightly)
    assert (summary.totals.examples, summary.replaced_examples, summary.pruned_examples) == (4, 1, 1)
    rows, (feature,) = rows_of(tmp_path / "c"), Cache.open(tmp_path / "c").spec.features
    assert {data for data, _ in rows} == {edited[0], *(data for data, _ in [*some[2:], *more])}
    for (data, _), row in rows.items():
        np.testing.assert_allclose(row.feature(feature)[0], by_hand(teacher, data), atol=2e-4)


def test_embeddings_of_length_one_that_are_cut_and_of_several_views(tmp_path, some):
    teacher = image_teacher(tmp_path / "t")
    settings = {"views": 2, "augment": "flip", "normalize": True, "truncate_dim": 6}
    path = write_parquet(tmp_path / "c.parquet", some)
    run(
        path,
        teacher,
        tmp_path / "c",
        features=("mean:-1",),
        feature_dtype="float32",
        task_settings=settings,
        **TASK,
    )
    rows, (feature,) = rows_of(tmp_path / "c"), Cache.open(tmp_path / "c").spec.features
    assert len(rows) == 2 * len(some)
    for data, _ in some:
        truth = by_hand(teacher, data)[:6]
        np.testing.assert_allclose(
            rows[data, 0].feature(feature)[0], truth / np.linalg.norm(truth), atol=1e-4
        )
        assert np.linalg.norm(rows[data, 1].feature(feature)[0]) == pytest.approx(1, abs=1e-5)


WRONG = {
    "no features": ((), "--features"),
    "labels": (("--features", "mean:-1", "--label_field", "label"), "--label_field has no meaning"),
    "scores": (("--features", "mean:-1", "--keep", "all"), "--keep has no meaning"),
    "texts": (("--features", "mean:-1", "--text_field", "t"), "--text_field has no meaning"),
    "a map has no first token": (("--features", "cls:-1"), "and no cls token"),
    "wider than it is": (("--features", "mean:-1", "--truncate_dim", "99"), "expected at most 12, got 99"),
    "views alone": (("--features", "mean:-1", "--views", "2"), "--views and --augment go together"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_asked_is_refused(tmp_path, some, name):
    flags, words = WRONG[name]
    teacher = image_teacher(tmp_path / "t", "resnet")
    path = write_parquet(tmp_path / "c.parquet", some)
    told = (
        "--corpus",
        path,
        "--teacher",
        teacher,
        "--task",
        "image-feature-extraction",
        "--cache",
        tmp_path / "c",
    )
    status, said = teachonce_main("precompute", *told, *flags, "--no_progress")
    assert status in (1, 2)
    assert words in said
    assert "Traceback" not in said


def test_what_is_no_image_is_a_reject(tmp_path, some):
    path = write_parquet(
        tmp_path / "c.parquet", [*some, (b"", "round"), (b"no image", "round"), (some[0][0][:-60], "round")]
    )
    summary = run(
        path,
        image_teacher(tmp_path / "t"),
        tmp_path / "c",
        features=("mean:-1",),
        max_reject_fraction=1.0,
        **TASK,
    )
    assert summary.documents == len(some) + 3
    assert sum(summary.rejects.values()) == 3
    assert len(rows_of(tmp_path / "c")) == len(some)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, its cache, and configs of students."""
    place = tmp_path_factory.mktemp("embedded")
    image_teacher(place / "teacher")
    write_parquet(place / "c.parquet", images(60))
    told = ("--corpus", place / "c.parquet", "--teacher", place / "teacher", "--cache", place / "cache")
    told += ("--task", "image-feature-extraction", "--features", "mean:-1", "--normalize")
    assert teachonce_main("precompute", *told, "--no_progress")[0] == 0
    for kind, make in CONFIGS.items():
        (place / f"{kind}.json").write_text(json.dumps(make().to_diff_dict()))
    return place


def embedding(folder, data):
    """A saved student's embedding of an image: pooled, mapped where it has a map, of length 1."""
    found = by_hand(folder, data)
    if (folder / "2_Dense").exists():
        dense = load_file(folder / "2_Dense" / "model.safetensors")
        found = dense["linear.weight"].numpy() @ found + dense["linear.bias"].numpy()
    return found / np.linalg.norm(found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_student_is_measured_as_it_is_saved(place, tmp_path, kind):
    out, losses = tmp_path / "out", ("feature=1,distance=cosine", "similarity=1")
    told = (
        "--cache",
        place / "cache",
        "--student",
        place / f"{kind}.json",
        "--losses",
        *losses,
        "--output_dir",
        out,
    )
    status, said = teachonce_main("train", *told, *QUICK)
    assert status == 0, said
    assert (out / "2_Dense").exists() == (kind != "vit"), "the ViT is as wide as its teacher"
    status, said = teachonce_main(
        *("evaluate", "--cache", place / "cache", "--student", out, "--eval_fraction", "0.4"),
        *("--speed_seconds", "0", "--json"),
    )
    assert status == 0, said
    metrics = json.loads(said[said.index("{") :])["metrics"]
    held = [
        (row.array("image")[0], row.feature(row.spec.features[0])[0])
        for row in rows_of(place / "cache").values()
        if int.from_bytes(row.array("document_hash")[0].tobytes()[8:16], "little") < int(0.4 * 2**64)
    ]
    assert metrics["texts"] == len(held) > 10
    cosines = [embedding(out, data) @ (theirs / np.linalg.norm(theirs)) for data, theirs in held]
    assert metrics["cosine_to_teacher"] == pytest.approx(np.mean(cosines), abs=1e-3)
    assert -1 <= metrics["spearman"] <= 1


def test_a_trained_student_goes_on_and_the_teacher_is_near_itself(place, tmp_path):
    for student, steps in ((place / "resnet.json", "4"), (tmp_path / "4", "8")):
        told = (
            "--cache",
            place / "cache",
            "--student",
            student,
            "--losses",
            "feature=1",
            "--output_dir",
            tmp_path / steps,
        )
        status, said = teachonce_main("train", *told, *QUICK, "--max_steps", steps)
        assert status == 0, said
    status, said = teachonce_main(
        *("evaluate", "--cache", place / "cache", "--student", place / "teacher", "--eval_fraction", "0.4"),
        *("--speed_seconds", "0", "--json"),
    )
    assert status == 0, said
    metrics = json.loads(said[said.index("{") :])["metrics"]
    assert metrics["cosine_to_teacher"] == pytest.approx(1, abs=1e-3)
    assert metrics["spearman"] > 0.99


def test_verify_asks_the_teacher_again(place):
    assert pq.read_table(place / "c.parquet").num_rows == 60
    status, said = teachonce_main("verify", place / "cache", "--teacher", place / "teacher")
    assert status == 0, said
