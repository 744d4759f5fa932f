"""From a teacher that embeds to students that do: what is saved is what was trained and what is measured, opened by
transformers alone, by hand, and by sentence-transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from schemas import Cache
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents, read, write_jsonl
from tests.pipelines.oracle import by_hand

CONFIG = {"model_type": "bert", "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LOSSES = ("feature=1,distance=cosine", "similarity=1,cuts=8+16", "info_nce=0.1,negatives=4,cuts=8")
STEPS = (
    "--use_cpu",
    "--eval_fraction",
    "0.3",
    "--per_device_train_batch_size",
    "8",
    "--learning_rate",
    "3e-3",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, its cache, and configs of students."""
    place = tmp_path_factory.mktemp("embedding")
    made = models.embedder(place / "teacher", prompt="query: ")
    path = write_jsonl(place / "c.jsonl", documents(80))
    told = ("--corpus", path, "--teacher", made, "--task", "feature-extraction", "--cache", place / "cache")
    assert teachonce_main("precompute", *told, "--keep_text", "--no_progress")[0] == 0
    for width in (16, 32):
        (place / f"{width}.json").write_text(json.dumps({**CONFIG, "hidden_size": width}))
    return place


def train(place, student, out, *more, losses=LOSSES, steps=20):
    named = ("--student", student, "--output_dir", out, "--losses", *losses, "--max_steps", str(steps))
    return teachonce_main("train", "--cache", place / "cache", *named, *STEPS, *more)


def evaluated(place, student, capsys):
    capsys.readouterr()
    told = ("--cache", place / "cache", "--student", student, "--speed_seconds", "0", "--json")
    told += ("--eval_fraction", "0.3")
    status, said = teachonce_main("evaluate", *told)
    assert status == 0, said
    return json.loads(said)["metrics"]


def held_out(place):
    """Texts that are held out, and the teacher's embeddings of them."""
    rows = [
        row
        for row in read(Cache.open(place / "cache")).values()
        if int.from_bytes(row["document_hash"][8:16].tobytes(), "little") < int(0.3 * 2**64)
    ]
    return [row["text"] for row in rows], np.stack([row["mean:2"] for row in rows])


def test_a_student_as_wide_as_its_teacher_is_its_own_embedding(place, tmp_path, capsys):
    out = tmp_path / "out"
    status, said = train(place, place / "32.json", out)
    assert status == 0, said
    texts, theirs = held_out(place)
    ours = by_hand(out, texts, "mean", prompt="query: ", longest=24, normalize=True)
    found = evaluated(place, out, capsys)
    assert found["texts"] == len(texts) > 10
    cosines = (ours * theirs).sum(1) / np.linalg.norm(theirs, axis=1)
    assert found["cosine_to_teacher"] == pytest.approx(cosines.mean(), abs=1e-4)
    assert found["cosine_to_teacher"] > 0.5
    assert not (out / "2_Dense").exists()
    assert load_file(out / "projections.safetensors") == {}
    student = transformers.AutoModel.from_pretrained(out)
    fresh = transformers.AutoModel.from_config(student.config)
    assert type(student) is type(fresh)


def test_a_narrower_student_gives_the_teachers_space_by_a_map_of_its_own(place, tmp_path, capsys):
    out = tmp_path / "out"
    status, said = train(place, place / "16.json", out)
    assert status == 0, said
    texts, theirs = held_out(place)
    own, weights = (
        by_hand(out, texts, "mean", prompt="query: ", longest=24),
        load_file(out / "2_Dense/model.safetensors"),
    )
    ours = own @ weights["linear.weight"].numpy().T + weights["linear.bias"].numpy()
    cosines = (ours * theirs).sum(1) / np.linalg.norm(theirs, axis=1) / np.linalg.norm(ours, axis=1)
    found = evaluated(place, out, capsys)
    assert found["cosine_to_teacher"] == pytest.approx(cosines.mean(), abs=1e-4)
    assert found["cosine_to_teacher"] > 0.5
    # trained on from its folder, it begins where it was: no step, the same student
    again = tmp_path / "again"
    status, said = train(place, out, again, "--learning_rate", "1e-12", steps=1, losses=("feature=1",))
    assert status == 0, said
    resumed = load_file(again / "2_Dense/model.safetensors")["linear.weight"]
    torch.testing.assert_close(resumed, weights["linear.weight"], rtol=0, atol=1e-9)
    (out / "2_Dense/model.safetensors").write_bytes(b"x")
    status, said = teachonce_main("evaluate", "--cache", place / "cache", "--student", out)
    assert (status, "linear map cannot be opened" in said) == (2, True)


@pytest.mark.parametrize("width", ["16", "32"])
def test_sentence_transformers_opens_a_student(place, tmp_path, width):
    library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    status, said = train(place, place / f"{width}.json", tmp_path / "out", steps=2)
    assert status == 0, said
    texts, _ = held_out(place)
    ours = by_hand(tmp_path / "out", texts, "mean", prompt="query: ", longest=24)
    if width == "16":
        weights = load_file(tmp_path / "out/2_Dense/model.safetensors")
        ours = ours @ weights["linear.weight"].numpy().T + weights["linear.bias"].numpy()
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_resumed_run_is_the_whole_one(place, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    saving = ("--save_steps", "3", "--seed", "5")
    assert train(place, place / "16.json", whole, *saving, steps=6)[0] == 0
    more = (*saving, "--resume_from_checkpoint", whole / "checkpoint-3")
    status, said = train(place, place / "16.json", part, *more, steps=6)
    assert status == 0, said
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        ours, theirs = load_file(whole / name), load_file(part / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() | theirs.keys())


@pytest.mark.parametrize("kind", ["shrink", "lora"])
def test_other_students_embed_too(place, tmp_path, capsys, kind):
    student, more = place / "teacher", ("--lora", "r=2")
    if kind == "shrink":
        student, more = "shrink:layers=1", ("--teacher", place / "teacher")
    status, said = train(place, student, tmp_path / "out", *more, steps=2)
    assert status == 0, said
    assert evaluated(place, tmp_path / "out", capsys)["cosine_to_teacher"] > (0.99 if kind == "lora" else 0)


REFUSED = {
    "kl=1": "kl has no meaning where a cache holds embeddings alone",
    "ce=1": "ce has no meaning",
    "mse_logits=1": "mse_logits has no meaning",
    "flow=1": "relation between 2 layers",
    "feature=1,cuts=32": "cuts the embedding where it has ended",
    "feature=1,cuts=16+8": "ascending",
}


def test_losses_that_make_no_sense_are_refused(place, tmp_path):
    for loss, told in REFUSED.items():
        status, said = train(place, place / "16.json", tmp_path / "out", losses=(loss,))
        assert status != 0
        assert told in said, said
    status, said = train(place, place / "16.json", tmp_path / "out", "--batching", "pack")
    assert status != 0, said


def test_the_teacher_finds_its_own_neighbours(place, capsys):
    found = evaluated(place, place / "teacher", capsys)
    assert found["spearman"] > 0.999
    assert found["cosine_to_teacher"] > 0.9999
    assert found["recall_at_10"] > 0.95
