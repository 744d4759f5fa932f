"""Detectors, from teacher to student: what plain transformers say of each image alone, and what a student learns."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image

from schemas import Cache
from schemas.errors import TooManyRejectsError
from schemas.rows.entries import entries_of
from tests.detectors import (
    CONFIGS,
    NAMES,
    QUERIES,
    SOFTMAX,
    by_hand,
    config_of,
    detector,
    scenes,
    write_scenes,
)
from tests.images import encoded, picture, rows_of
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import run
from trainer import StudentArguments, TrainConfig, train

TASK = {"task": "object-detection", "keep": None, "max_length": None, "image_field": "image"}
LABELLED = TASK | {"label_field": "objects"}
QUICK = ("--use_cpu", "--eval_fraction", "0.4", "--max_steps", "6", "--learning_rate", "1e-3")
LOSSES = ("--losses", "kl=1", "boxes=1", "ce=0.5", "gold_boxes=0.5")
METRICS = {"images", "detections", "teacher_detections", "teachers_found", "found_by_teacher", "agreement"}


@pytest.fixture(scope="module")
def some():
    return scenes(12)


def said_by(row, kind):
    """Log-probabilities of softmax scores, or logits; and boxes, as far as the cache tells."""
    boxes = row.ragged("boxes").values.reshape(-1, 4)
    if kind not in SOFTMAX:
        return row.ragged("logits").values.reshape(len(boxes), -1), boxes
    found = entries_of(row)
    scores = np.empty((len(boxes), len(NAMES) + 1))
    scores[np.repeat(np.arange(len(boxes)), found.counts), found.ids] = found.logprobs
    return scores, boxes


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_cache_says_what_a_plain_forward_of_each_image_says(tmp_path, some, kind):
    teacher, path = detector(tmp_path / "t", kind), write_scenes(tmp_path / "c.parquet", some)
    summary = run(path, teacher, tmp_path / "c", **LABELLED)
    opened, rows = Cache.open(tmp_path / "c"), rows_of(tmp_path / "c")
    assert (summary.documents, summary.rejects, len(rows)) == (len(some), {}, len(some))
    softmax = kind in SOFTMAX
    for data, objects in some:
        scores, boxes = said_by(rows[data, 0], kind)
        logits, truth = by_hand(teacher, data)
        assert logits.shape == (QUERIES, len(NAMES) + softmax)
        if softmax:
            logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(scores, logits, atol=0.04 if softmax else 2e-4)
        np.testing.assert_allclose(boxes, truth, atol=2e-5)
        classes = rows[data, 0].ragged("object_classes").values
        assert [NAMES[place] for place in classes] == objects["category"]
        places = rows[data, 0].ragged("object_boxes").values.reshape(-1, 4)
        width, height = Image.open(io.BytesIO(data)).size
        for (x, y, w, h), (left, top, wide, high) in zip(places, objects["bbox"], strict=True):
            found = (x - w / 2) * width, (y - h / 2) * height, w * width, h * height
            np.testing.assert_allclose(found, (left, top, wide, high), atol=1e-3)
    assert opened.totals.positions == QUERIES * len(some)
    assert opened.spec.label_names == (*NAMES, "no-object")[: len(NAMES) + softmax]
    assert "task:object-detection" in opened.header.to_json()["required_features"]
    assert not run(path, teacher, tmp_path / "c", **LABELLED).committed, "nothing is new"


def test_without_objects_nothing_is_known_of_an_image(tmp_path, some):
    path = write_scenes(tmp_path / "c.parquet", some)
    run(path, detector(tmp_path / "t"), tmp_path / "c", **TASK)
    rows = [*Cache.open(tmp_path / "c").read_all()]
    assert not any(part.ragged("object_classes").validity.any() for part in rows)


def test_nightly_nothing_new_more_edited_and_gone(tmp_path, some):
    """Only what is new or edited is asked for; what is gone is pruned. Other objects are another document."""
    teacher, path = detector(tmp_path / "t"), tmp_path / "c.parquet"
    ids = [f"i{n}" for n in range(len(some))]
    nightly = {"id_field": "id", "prune": True, "replace": True, "max_prune_fraction": 0.9, **LABELLED}
    write_scenes(path, some, ids=ids)
    assert run(path, teacher, tmp_path / "c", **nightly).committed
    assert not run(path, teacher, tmp_path / "c", **nightly).committed
    edited = (some[0][0], {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["dog"]})
    more = scenes(3, start=80)
    write_scenes(path, [edited, *some[2:], *more], ids=[ids[0], *ids[2:], "m0", "m1", "m2"])
    summary = run(path, teacher, tmp_path / "c", **nightly)
    assert (summary.totals.examples, summary.replaced_examples, summary.pruned_examples) == (4, 1, 1)
    rows = rows_of(tmp_path / "c")
    assert {data for data, _ in rows} == {data for data, _ in [edited, *some[2:], *more]}
    assert rows[edited[0], 0].ragged("object_classes").values.tolist() == [1]
    for (data, _), row in rows.items():
        np.testing.assert_allclose(said_by(row, "yolos")[1], by_hand(teacher, data)[1], atol=2e-5)


def test_views_are_asked_for_each_and_have_no_objects(tmp_path, some):
    teacher, path = detector(tmp_path / "t"), write_scenes(tmp_path / "c.parquet", some)
    views = {"task_settings": {"views": 2, "augment": "flip"}}
    run(path, teacher, tmp_path / "c", **TASK, **views)
    rows = rows_of(tmp_path / "c")
    assert len(rows) == 2 * len(some)
    for data, _ in some:
        np.testing.assert_allclose(said_by(rows[data, 0], "yolos")[1], by_hand(teacher, data)[1], atol=2e-5)


BAD = {
    "box_outside_image": {"bbox": [[0.0, 0.0, 99.0, 5.0]], "category": ["cat"]},
    "empty_box": {"bbox": [[0.0, 0.0, 0.0, 5.0]], "category": ["cat"]},
    "unknown_label": {"bbox": [[0.0, 0.0, 5.0, 5.0]], "category": ["cow"]},
    "bad_objects": {"bbox": [[0.0, 0.0, 5.0, 5.0]], "category": ["cat", "dog"]},
    "unreadable_image": {"bbox": [], "category": []},
    "too_many_pixels": {"bbox": [], "category": []},
}


def test_bad_records_are_rejected_each_with_its_reason(tmp_path, some):
    """And counted: too many fail the run."""
    of_images = {
        "unreadable_image": b"no image",
        "too_many_pixels": encoded(picture(0, (200, 100))),
    }
    rows = [(of_images.get(why, encoded(picture(7, (40, 30)))), objects) for why, objects in BAD.items()]
    path = write_scenes(tmp_path / "c.parquet", [*some, *rows])
    told = LABELLED | {"task_settings": {"max_image_pixels": 10_000}}
    teacher = detector(tmp_path / "t")
    summary = run(path, teacher, tmp_path / "c", max_reject_fraction=0.5, **told)
    assert summary.rejects == dict.fromkeys(BAD, 1)
    assert summary.totals.examples == len(some)
    with pytest.raises(TooManyRejectsError):
        run(path, teacher, tmp_path / "d", **told)


WRONG = {
    "views with objects": (
        ("--label_field", "objects", "--views", "2", "--augment", "flip"),
        "has other objects than its image",
    ),
    "other queries": (("--queries", "9"), "--queries is what the detector has: expected 7, got 9"),
    "another head": (("--score", "sigmoid"), "gives other scores and boxes than its type has"),
    "regression": (("--score", "identity"), "identity"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_asked_is_refused(tmp_path, some, name):
    flags, words = WRONG[name]
    path = write_scenes(tmp_path / "c.parquet", some)
    teacher, told = detector(tmp_path / "t"), ("--task", "object-detection", "--cache", tmp_path / "c")
    status, said = teachonce_main("precompute", "--corpus", path, "--teacher", teacher, *told, *flags)
    assert status != 0
    assert words in " ".join(said.split()), said


def test_a_processor_that_pads_is_refused(tmp_path, some):
    teacher, path = detector(tmp_path / "t"), write_scenes(tmp_path / "c.parquet", some)
    size = {"shortest_edge": 40, "longest_edge": 64}
    processor = transformers.DetrImageProcessor(size=size, pad_size={"height": 64, "width": 64})
    processor.save_pretrained(teacher)
    told = ("--teacher", teacher, "--task", "object-detection", "--cache", tmp_path / "c")
    status, said = teachonce_main("precompute", "--corpus", path, *told)
    assert (status != 0, "pads images" in said) == (True, True), said


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Teachers of both kinds, a cache of each, and configs of students with fewer and more queries."""
    folder = tmp_path_factory.mktemp("detectors")
    path = write_scenes(folder / "c.parquet", scenes(40))
    for kind in ("yolos", "rt_detr"):
        detector(folder / kind, kind)
        run(path, folder / kind, folder / f"cache-{kind}", **LABELLED)
    for kind in CONFIGS:
        name = "num_detection_tokens" if kind == "yolos" else "num_queries"
        for queries in (4, QUERIES, 11):
            config = {**config_of(kind).to_dict(), name: queries}
            (folder / f"{kind}{queries}.json").write_text(json.dumps(config))
    return folder


def metrics_of(cache, student):
    told = ("--eval_fraction", "0.4", "--speed_seconds", "0", "--json")
    status, said = teachonce_main("evaluate", "--cache", cache, "--student", student, *told)
    assert status == 0, said
    return json.loads(said[said.index("{") :])["metrics"]


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("yolos", "yolos11"), ("yolos", "detr4"), ("rt_detr", "d_fine7"), ("rt_detr", "conditional_detr11")],
)
def test_a_student_of_another_architecture_learns_and_is_a_plain_model(place, tmp_path, teacher, student):
    cache, out = place / f"cache-{teacher}", tmp_path / "s"
    told = ("--cache", cache, "--student", place / f"{student}.json", "--output_dir", out)
    status, said = teachonce_main("train", *told, *LOSSES, *QUICK, "--logging_steps", "1")
    assert status == 0, said
    lines = [line for line in said.splitlines() if " gold_boxes " in line]
    assert len(lines) == 6
    assert all(f" {name} " in line for line in lines for name in ("kl", "boxes", "ce"))
    model = transformers.AutoModelForObjectDetection.from_pretrained(out)
    assert [model.config.id2label[place] for place in range(3)] == [*NAMES]
    transformers.AutoImageProcessor.from_pretrained(out)
    found = metrics_of(cache, out)
    assert found.keys() >= METRICS
    assert found["images"] == found["labelled"] > 10


@pytest.mark.parametrize("kind", ["yolos", "rt_detr"])
def test_a_teacher_finds_what_it_finds(place, kind):
    """And what is counted is what plain transformers say."""
    cache = place / f"cache-{kind}"
    found = metrics_of(cache, place / kind)
    assert found["agreement"] == 1
    held = [
        row.array("image")[0]
        for row in rows_of(cache).values()
        if int.from_bytes(row.array("document_hash")[0].tobytes()[8:16], "little") < int(0.4 * 2**64)
    ]
    logits = np.stack([by_hand(place / kind, data)[0] for data in held])
    probs = torch.from_numpy(logits)
    probs = probs.softmax(-1)[..., :-1] if kind in SOFTMAX else probs.sigmoid()
    assert found["images"] == len(held)
    assert found["detections"] == int((probs.amax(-1) > 0.5).sum()) > 0
    assert found["mean_iou"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("student", ["yolos4", "yolos11"])
def test_metrics_of_the_callers_are_given_the_students_queries_with_what_each_is_to_be(
    place, tmp_path, student
):
    seen = {}

    def compute(told):
        seen["shapes"] = told.predictions.shape, told.label_ids.shape, told.teacher_ids.shape
        seen["labels"] = set(told.label_ids.tolist())
        return {"right": float((told.predictions.argmax(-1) == told.teacher_ids).mean())}

    config = TrainConfig(
        cache=str(place / "cache-yolos"),
        student=str(place / f"{student}.json"),
        losses=["kl=1", "ce=1"],
        eval_fraction=0.4,
    )
    asked = {"eval_strategy": "steps", "eval_steps": 2.0, "max_steps": 2, "use_cpu": True}
    arguments = StudentArguments(output_dir=str(tmp_path / "s"), disable_tqdm=True, **asked)
    train(config, arguments, compute_metrics=compute)
    held, queries = metrics_of(place / "cache-yolos", place / "yolos")["images"], int(student[5:])
    assert seen["shapes"] == ((held * queries, 4), (held * queries,), (held * queries,))
    assert {3} < seen["labels"] <= {0, 1, 2, 3}


def test_a_head_of_the_other_kind_is_no_student(place, tmp_path):
    told = ("--cache", place / "cache-yolos", "--student", place / "rt_detr7.json")
    status, said = teachonce_main("train", *told, *LOSSES, *QUICK, "--output_dir", tmp_path / "s")
    assert (status != 0, "gives no scores of the cache's classes" in said) == (True, True), said


def test_objects_are_asked_for_where_there_are_none(tmp_path, some):
    path = write_scenes(tmp_path / "c.parquet", some)
    teacher = detector(tmp_path / "t")
    run(path, teacher, tmp_path / "c", **TASK)
    told = ("--cache", tmp_path / "c", "--student", teacher, "--output_dir", tmp_path / "s", *QUICK)
    status, said = teachonce_main("train", *told, "--losses", "boxes=1", "gold_boxes=1")
    assert status != 0
    assert "gold_boxes needs the corpus's objects" in said
    status, said = teachonce_main("train", *told, "--losses", "kl=1", "ce=1")
    assert status != 0
    assert "the ce loss needs labels" in said


def test_verify_asks_the_teacher_again_and_plain_parquet_has_boxes(place, tmp_path):
    for kind in ("yolos", "rt_detr"):
        status, said = teachonce_main("verify", place / f"cache-{kind}", "--teacher", place / kind)
        assert status == 0, said
    status, said = teachonce_main("export", place / "cache-yolos", "--out", tmp_path / "plain")
    assert status == 0, said
    table = pq.read_table(tmp_path / "plain")
    assert all(len(row) == QUERIES and len(row[0]) == 4 for row in table["boxes"].to_pylist())
    pairs = zip(table["object_boxes"].to_pylist(), table["object_classes"].to_pylist(), strict=True)
    assert all(len(boxes) == len(classes) for boxes, classes in pairs)


def test_average_precision_is_torchmetrics(place):
    pytest.importorskip("pycocotools")
    found = metrics_of(place / "cache-yolos", place / "yolos")
    assert found["map"] == pytest.approx(found["teacher_map"], abs=1e-6)
    assert 0 <= found["map"] <= found["map_50"] <= 1
