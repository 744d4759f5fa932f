"""Images: a cache says what plain transformers say of each, one at a time, wherever the images come from."""

import gzip
import io
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image

from pipelines.scoring import rescore
from schemas import Cache
from schemas.errors import (
    MismatchError,
    TeacherError,
)
from tests.images import (
    CONFIGS,
    IMAGES,
    LABELLED,
    NAMES,
    by_hand,
    encoded,
    image_teacher,
    images,
    logits_of,
    picture,
    rows_of,
    write_files,
    write_parquet,
    write_tar,
)
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return image_teacher(tmp_path_factory.mktemp("teacher") / "vit")


@pytest.fixture(scope="module")
def some():
    return images(12)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_cache_says_what_a_plain_forward_of_each_image_says(tmp_path, some, kind):
    teacher = image_teacher(tmp_path / "t", kind)
    path = write_parquet(tmp_path / "c.parquet", some)
    features = ("mean:-1", "mean:0", "mean:1")
    run(path, teacher, tmp_path / "c", features=features, feature_dtype="float32", **LABELLED)
    rows, opened = rows_of(tmp_path / "c"), Cache.open(tmp_path / "c")
    assert len(rows) == len(some)
    for data, label in some:
        row = rows[data, 0]
        truth, states = by_hand(teacher, data)
        # half a code step, of the top and of each entry
        assert np.abs(logits_of(row) - truth).max() <= 1 / 32 + 1 / 128 + 1e-4
        assert row.logsumexp()[0] == pytest.approx(np.log(np.exp(truth).sum()), abs=1e-4)
        assert NAMES[row.gold_ids().values[0]] == label
        for feature, layer in zip(opened.spec.features, (-1, 0, 1), strict=True):
            np.testing.assert_allclose(row.feature(feature)[0], states[layer], atol=2e-4)
    assert opened.header.to_json()["required_features"] == [
        "keep:all",
        "score:softmax",
        "task:image-classification",
    ]
    assert opened.totals.tokens == opened.totals.positions == opened.totals.examples == len(some)


def test_scores_of_several_labels_and_of_numbers(tmp_path, some):
    for kind, problem, score in (
        ("resnet", "multi_label_classification", "sigmoid"),
        ("vit", "regression", "identity"),
    ):
        teacher = image_teacher(tmp_path / kind, kind, problem_type=problem)
        run(write_parquet(tmp_path / "c.parquet", some), teacher, tmp_path / f"c-{kind}", **IMAGES)
        assert Cache.open(tmp_path / f"c-{kind}").spec.score == score
        for (data, _), row in rows_of(tmp_path / f"c-{kind}").items():
            np.testing.assert_allclose(row.ragged("logits").values, by_hand(teacher, data)[0], atol=1e-4)


def test_files_tars_and_columns_of_the_same_images_are_the_same_examples(tmp_path, some, made):
    pngs = [(encoded(Image.open(io.BytesIO(data)).convert("RGB")), label) for data, label in some]
    plain = write_tar(tmp_path / "c.tar", pngs)
    (tmp_path / "d.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    write_files(tmp_path / "photos", pngs)
    corpora = {
        "structs": write_parquet(tmp_path / "a.parquet", pngs),
        "bytes": write_parquet(tmp_path / "b.parquet", pngs, structs=False),
        "tar": plain,
        "tar.gz": tmp_path / "d.tar.gz",
        "files": tmp_path / "photos" / "*" / "*.png",
    }
    ids = {}
    for name, corpus in corpora.items():
        summary = run(corpus, made, tmp_path / name, **LABELLED)
        assert (summary.documents, summary.rejects) == (len(pngs), {}), name
        ids[name] = {row.example_ids[0] for row in rows_of(tmp_path / name).values()}
        assert len(ids[name]) == len(pngs)
    assert len({frozenset(found) for found in ids.values()}) == 1
    assert run([*corpora.values()], made, tmp_path / "tar", **LABELLED).known_documents == len(pngs)


def test_a_tars_samples_have_their_own_fields(tmp_path, some, made):
    path = tmp_path / "c.tar"
    with tarfile.open(path, "w") as tar:
        for number, (data, label) in enumerate(some):
            parts = {
                "jpg": data,
                "cls": b"%d" % NAMES.index(label),
                "txt": "h\u00e9".encode(),
                "bin": b"\xff",
            }
            for extension, content in parts.items():
                info = tarfile.TarInfo(f"{number:03}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            folder = tarfile.TarInfo(f"folder{number}")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
    run(path, made, tmp_path / "c", **IMAGES, label_field="cls", id_field="__key__")
    rows = rows_of(tmp_path / "c")
    for number, (data, label) in enumerate(some):
        row = rows[data, 0]
        assert (row.array("document_id")[0], row.gold_ids().values[0]) == (f"{number:03}", NAMES.index(label))


def test_nightly_nothing_new_more_edited_and_gone(tmp_path, some, made, monkeypatch):
    ids = [f"n{number}" for number in range(len(some))]
    path, cache = tmp_path / "c.parquet", tmp_path / "c"
    nightly = LABELLED | {"id_field": "id", "prune": True, "replace": True, "max_prune_fraction": 0.9}
    write_parquet(path, some, ids=ids)
    run(path, made, cache, **nightly)
    before = {row.array("document_id")[0]: key for key, row in rows_of(cache).items()}
    monkeypatch.setattr(
        "pipelines.scoring.handler.open_teacher", lambda *_: pytest.fail("the teacher was opened")
    )
    assert not run(path, made, cache, **nightly).committed
    monkeypatch.undo()
    more, edited = images(3, start=80), (some[0][0], "other" if some[0][1] != "other" else "round")
    write_parquet(path, [edited, *some[2:], *more], ids=[ids[0], *ids[2:], "m0", "m1", "m2"])
    summary = run(path, made, cache, **nightly)
    assert (summary.totals.examples, summary.replaced_examples, summary.pruned_examples) == (4, 1, 1)
    after = {row.array("document_id")[0]: row for row in rows_of(cache).values()}
    assert set(after) == {*ids, "m0", "m1", "m2"} - {ids[1]}
    assert NAMES[after[ids[0]].gold_ids().values[0]] == edited[1]
    assert {key for key in ids[2:] if after[key].array("image")[0] == before[key][0]} == set(ids[2:])


def test_views_are_examples_of_their_own_and_what_each_is_asked_is_its_view(tmp_path, some, made):
    views = {"task_settings": {"views": 3, "augment": "crop,flip,colour"}}
    path = write_parquet(tmp_path / "c.parquet", some)
    run(path, made, tmp_path / "c", **LABELLED, **views)
    rows, plain = rows_of(tmp_path / "c"), tmp_path / "plain"
    assert len(rows) == 3 * len(some)
    assert len({row.example_ids[0] for row in rows.values()}) == len(rows)
    run(path, made, plain, **LABELLED)
    base = rows_of(plain)
    for data, _ in some:
        assert np.array_equal(logits_of(rows[data, 0]), logits_of(base[data, 0])), (
            "view 0 is the image itself"
        )
    apart = [np.abs(logits_of(rows[d, 1]) - logits_of(rows[d, 0])).max() for d, _ in some]
    assert np.median(apart) > 0.05
    assert not run(path, made, tmp_path / "c", **LABELLED, **views).committed
    with pytest.raises(MismatchError, match="augment"):
        run(path, made, tmp_path / "c", **LABELLED, task_settings={"views": 3, "augment": "crop"})
    other = tmp_path / "seed"
    run(path, made, other, **LABELLED, **views, sample_seed=1)
    assert not {r.example_ids[0] for r in rows.values()} & {r.example_ids[0] for r in rows_of(other).values()}


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_a_map_has_no_first_token_and_a_list_has(tmp_path, some, kind):
    teacher, path = image_teacher(tmp_path / "t", kind), write_parquet(tmp_path / "c.parquet", some)
    if kind == "convnext":
        with pytest.raises(TeacherError, match="no cls token"):
            run(path, teacher, tmp_path / "c", features=("cls:-1",), **LABELLED)
        return
    run(path, teacher, tmp_path / "c", features=("cls:-1",), feature_dtype="float32", **LABELLED)
    processor = transformers.AutoImageProcessor.from_pretrained(teacher)
    model = transformers.AutoModelForImageClassification.from_pretrained(teacher).eval()
    for (data, _), row in rows_of(tmp_path / "c").items():
        inputs = processor(images=Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        found = row.feature(row.spec.features[0])[0]
        np.testing.assert_allclose(found, states[0, 0].numpy(), atol=1e-4)


def test_units_and_row_groups_are_as_large_as_their_images(tmp_path, made):
    rows = [(encoded(picture(seed, (90, 90))), "round") for seed in range(10)]
    path, size = write_parquet(tmp_path / "c.parquet", rows), len(rows[0][0]) // 128
    summary = run(path, made, tmp_path / "c", unit_tokens=4 * size, row_group_tokens=2 * size, **LABELLED)
    opened = Cache.open(tmp_path / "c")
    assert summary.shards >= 2
    assert max(ref.group.examples for ref in opened.row_groups) <= 3
    assert sum(shard.examples for shard in opened.shards) == 10
    status, said = teachonce_main("compact", tmp_path / "c", "--unit_tokens", 999 * size, "--no_progress")
    assert status == 0, said
    assert len(Cache.open(tmp_path / "c").shards) == 1


def test_all_verbs_take_such_a_cache(tmp_path, some, made):
    path, cache = write_parquet(tmp_path / "c.parquet", some, ids=map(str, range(len(some)))), tmp_path / "c"
    asked = ("--corpus", path, "--teacher", made, "--task", "image-classification", "--label_field", "label")
    asked += ("--id_field", "id")
    first = some[0][0]
    for verb in (
        ("plan", *asked, "--cache", cache, "--json"),
        ("inspect", *asked, "--rows", "2"),
        ("precompute", *asked, "--cache", cache, "--no_progress"),
        ("inspect", cache, "--rows", "1"),
        ("verify", cache, "--teacher", made),
        ("thin", cache, "--out", tmp_path / "thin", "--keep", "top_k:2", "--no_progress"),
        ("verify", tmp_path / "thin"),
        ("export", cache, "--out", tmp_path / "plain"),
    ):
        status, said = teachonce_main(*verb)
        assert status == 0, (verb, said)
        assert first.hex()[:40] not in said
        assert "24 x 40" in said or verb[0] != "inspect" or verb[1] == cache
    (file,) = (tmp_path / "plain").glob("*.parquet")
    exported = pq.read_table(file)
    assert sorted(exported["image"].to_pylist()) == sorted(data for data, _ in some)
    (tmp_path / "ids").write_text("0\n")
    status, said = teachonce_main("forget", cache, "--ids", tmp_path / "ids", "--force", "--no_progress")
    assert status == 0, said
    assert (first, 0) not in rows_of(cache)
    assert len(rows_of(cache)) == len(some) - 1
    assert not run(path, made, cache, id_field="id", **LABELLED).committed, "what was forgotten stays out"


def test_what_a_cache_says_is_compared_with_a_fresh_teacher(tmp_path, some, made):
    run(write_parquet(tmp_path / "c.parquet", some), made, tmp_path / "c", **LABELLED)
    opened = Cache.open(tmp_path / "c")
    found = rescore.rescore(opened, rescore.RescoreConfig(teacher=str(made), sample=99))
    assert (found.examples, found.mean_kl_nats < 1e-3) == (len(some), True)
    other = image_teacher(tmp_path / "other", seed=5)
    with pytest.raises(MismatchError):
        rescore.rescore(opened, rescore.RescoreConfig(teacher=str(other)))
