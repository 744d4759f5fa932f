"""Images that are none, and runs that cannot be: counted rejects and one clear error each."""

import importlib.util
import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from PIL import Image

from schemas.cache import Cache
from schemas.errors import (
    CorpusError,
    MismatchError,
    TeacherError,
    TooManyRejectsError,
    TruncatedFileError,
    UsageError,
)
from schemas.images import refuse_no_packages
from tests.images import (
    IMAGES,
    LABELLED,
    encoded,
    image_teacher,
    images,
    picture,
    write_parquet,
    write_tar,
)
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents, run, write_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return image_teacher(tmp_path_factory.mktemp("teacher") / "vit")


@pytest.fixture(scope="module")
def some():
    return images(12)


@pytest.mark.parametrize("where", ["between members", "inside one", "inside a header"])
def test_a_tar_that_was_cut_fails_the_run(tmp_path, some, made, where):
    whole = write_tar(tmp_path / "w.tar", some).read_bytes()
    with tarfile.open(tmp_path / "w.tar") as tar:
        member = tar.getmembers()[6]
    end = {
        "between members": member.offset,
        "inside one": member.offset_data + 3,
        "inside a header": member.offset + 9,
    }
    (tmp_path / "c.tar").write_bytes(whole[: end[where]])
    with pytest.raises(TruncatedFileError, match="ends inside a tar"):
        run(tmp_path / "c.tar", made, tmp_path / "c", **LABELLED)
    (tmp_path / "c.tar").write_bytes(whole[: member.offset] + b"x" * 512 + whole[member.offset + 512 :])
    with pytest.raises(CorpusError, match="no tar"):
        run(tmp_path / "c.tar", made, tmp_path / "c", **LABELLED)
    (tmp_path / "c.tar").write_bytes(b"no tar at all" * 99)
    with pytest.raises(CorpusError, match="no tar"):
        run(tmp_path / "c.tar", made, tmp_path / "c", **LABELLED)
    assert not (tmp_path / "c" / "_delta_log").exists()


def bad_images():
    whole = encoded(picture(50, (60, 60)))
    frames = encoded(picture(51), "GIF", save_all=True, append_images=[picture(52)])
    return {
        "unreadable_image": b"no image",
        "truncated_image": whole[: len(whole) // 2],
        "too_many_pixels": encoded(picture(53, (101, 100))),
        "too_narrow_image": encoded(picture(54, (700, 2))),
        "several_frames": frames,
        "unsupported_pixels": encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        "empty": b"",
    }


def test_what_is_no_image_is_a_counted_reject_with_its_reason(tmp_path, some, made):
    bad = bad_images()
    rows = [*some, *((data, "round") for data in bad.values()), (encoded(picture(60)), "no such class")]
    path, settings = write_parquet(tmp_path / "c.parquet", rows, structs=False), {"max_image_pixels": 10_000}
    with pytest.raises(TooManyRejectsError):
        run(path, made, tmp_path / "c", task_settings=settings, **LABELLED)
    summary = run(path, made, tmp_path / "c", task_settings=settings, max_reject_fraction=0.9, **LABELLED)
    assert summary.rejects == dict.fromkeys(sorted([*bad, "unknown_label"]), 1)
    assert summary.totals.examples == len(some)
    (told,) = (tmp_path / "c" / "_teachonce" / "rejects").glob(f"{summary.run}*")
    lines = {one["reason"]: one for one in map(json.loads, told.read_text().splitlines())}
    assert lines["too_many_pixels"]["got"] == "101 x 100"
    assert lines["too_many_pixels"]["offset"] == len(some) + list(bad).index("too_many_pixels")
    again = run(path, made, tmp_path / "c", task_settings=settings, max_reject_fraction=0.9, **LABELLED)
    assert (again.committed, again.rejects) == (False, summary.rejects)


def test_a_field_that_holds_no_bytes_is_a_reject(tmp_path, made):
    table = {"image": [{"bytes": None, "path": "a.png"}], "label": ["round"]}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.string()}
    )
    pq.write_table(pa.table(table, schema=schema), tmp_path / "c.parquet")
    write_jsonl(tmp_path / "c.jsonl", [{"image": "a.png", "label": "round"}])
    for name in ("c.parquet", "c.jsonl"):
        with pytest.raises(TooManyRejectsError, match="not_an_image"):
            run(tmp_path / name, made, tmp_path / "c", **LABELLED)


def test_the_processor_is_part_of_who_the_teacher_is(tmp_path, some, made):
    path, other = write_parquet(tmp_path / "c.parquet", some), shutil.copytree(made, tmp_path / "t")
    run(path, made, tmp_path / "c", **LABELLED)
    told = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(told | {"image_mean": [0.4, 0.5, 0.5]}))
    with pytest.raises(MismatchError, match="another image processor"):
        run(path, other, tmp_path / "c", **LABELLED)
    (other / "preprocessor_config.json").write_text(json.dumps(told, indent=9, sort_keys=True))
    assert not run(path, other, tmp_path / "c", **LABELLED).committed
    (other / "preprocessor_config.json").write_text(json.dumps(told | {"size": {"shortest_edge": 24}}))
    with pytest.raises(UsageError, match=r"one shape|cannot be opened"):
        run(path, other, tmp_path / "d", **LABELLED)
    (other / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match="cannot be opened"):
        run(path, other, tmp_path / "d", **LABELLED)


MEANINGLESS = {
    "text_field": "t",
    "max_length": 9,
    "stride": 1,
    "keep_text": True,
    "supervise": "assistant",
}


def test_what_is_for_texts_alone_is_refused(tmp_path, some, made):
    path = write_parquet(tmp_path / "c.parquet", some)
    for name, value in MEANINGLESS.items():
        with pytest.raises(UsageError, match=f"--{name} has no meaning"):
            run(path, made, tmp_path / "c", **{**LABELLED, name: value})
    fields = ("text_pair_field", "messages_field", "words_field", "passages_field", "target_field")
    for name in fields:
        with pytest.raises(ValueError, match=name):
            run(path, made, tmp_path / "c", **LABELLED, **{name: "label"})
    texts = write_jsonl(tmp_path / "c.jsonl", documents(3))
    with pytest.raises(UsageError, match="needs images"):
        run(texts, made, tmp_path / "c", **IMAGES | {"image_field": None})
    with pytest.raises(UsageError, match="--messages_field has no meaning"):
        run(texts, made, tmp_path / "c", **IMAGES | {"image_field": None, "messages_field": "text"})
    for settings in ({"views": 2}, {"augment": "crop"}, {"views": 2, "augment": "mixup"}):
        with pytest.raises(UsageError, match="--augment"):
            run(path, made, tmp_path / "c", **LABELLED, task_settings=settings)
    status, said = teachonce_main(
        *("precompute", "--corpus", path, "--teacher", made, "--task", "image-classification"),
        *("--cache", tmp_path / "c", "--generate", "greedy"),
    )
    assert (status, said.count("\n")) == (2, 1), said


def test_a_task_of_texts_takes_no_image_field(tmp_path, classifier):
    path = write_jsonl(tmp_path / "c.jsonl", documents(3))
    with pytest.raises(UsageError, match="--image_field has no meaning"):
        run(path, classifier, tmp_path / "c", task="sequence-classification", image_field="text")


def test_a_teacher_of_texts_or_without_a_head_is_refused(tmp_path, some, made, classifier):
    path = write_parquet(tmp_path / "c.parquet", some)
    with pytest.raises(UsageError, match="cannot be opened"):
        run(path, classifier, tmp_path / "c", **LABELLED)
    headless = shutil.copytree(made, tmp_path / "t")
    transformers.ViTModel.from_pretrained(made).save_pretrained(headless)
    with pytest.raises(TeacherError, match="classifier"):
        run(path, headless, tmp_path / "c", **LABELLED)


def test_a_missing_package_is_one_clear_error(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchvision" else found(name)
    )
    with pytest.raises(UsageError, match=r"no torchvision.*teachonce\[images\]"):
        refuse_no_packages()


def test_a_mask_beside_an_image_is_no_image_and_two_images_are_a_reject(tmp_path, made):
    """Members go before what a `json` says; it cannot say which record it is of, nor what its image is."""
    plain, mask, other = encoded(picture(1)), encoded(picture(2)), encoded(picture(3))
    label = {"label": images(1)[0][1]}
    told = json.dumps({**label, "image": "a.png", "__key__": "b"}).encode()
    members = [
        *(("d/a.json", told), ("d/a.png", plain), ("d/a.seg.png", mask)),
        *(("d/b.png", plain), ("d/b.jpg", other), ("d/b.json", json.dumps(label).encode())),
    ]
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    summary = run(tmp_path / "c.tar", made, tmp_path / "c", max_reject_fraction=0.9, **LABELLED)
    assert sum(summary.rejects.values()) == 1
    (rows,) = Cache.open(tmp_path / "c").read_all()
    assert rows.array("image").tolist() == [plain]
