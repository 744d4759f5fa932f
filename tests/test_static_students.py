"""Static students by the real commands: a table of embeddings, whose mean of a text's own tokens is what `evaluate`
measures, what a few lines make of the saved files, and what sentence-transformers opens."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from schemas import Cache
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents, write_jsonl
from tests.test_embedding_students import evaluated, held_out, train
from trainer.students.students import open_student


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("static")
    made = models.embedder(place / "teacher", prompt="query: ")
    path = write_jsonl(place / "c.jsonl", documents(80))
    told = ("--corpus", path, "--teacher", made, "--task", "feature-extraction", "--cache", place / "cache")
    assert teachonce_main("precompute", *told, "--keep_text", "--no_progress")[0] == 0
    return place


def by_table(folder, texts):
    """Of the saved files alone: the mean of the rows of a text's tokens, without those around it."""
    table = load_file(folder / "model.safetensors")["embedding.weight"].double().numpy()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer("query: " + text, truncation=True, max_length=24)["input_ids"] for text in texts]
    special = set(tokenizer.all_special_ids)
    found = np.stack([table[[one for one in row if one not in special]].mean(0) for row in ids])
    if (folder / "2_Dense").exists():
        weights = load_file(folder / "2_Dense/model.safetensors")
        found = found @ weights["linear.weight"].double().numpy().T + weights["linear.bias"].double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("width", [32, 8])
def test_a_table_learns_and_is_measured_as_its_files_say(place, tmp_path, capsys, width):
    out = tmp_path / "out"
    losses = ("feature=1,distance=cosine", "similarity=1")
    told = {"losses": losses, "steps": 60}
    status, said = train(place, f"static:{width}", out, "--learning_rate", "3e-2", **told)
    assert status == 0, said
    texts, theirs = held_out(place)
    cosines = (by_table(out, texts) * theirs).sum(1) / np.linalg.norm(theirs, axis=1)
    found = evaluated(place, out, capsys)
    assert found["cosine_to_teacher"] == pytest.approx(cosines.mean(), abs=1e-4)
    status, said = train(
        place, f"static:{width}", tmp_path / "one", "--learning_rate", "1e-9", losses=losses, steps=1
    )
    assert status == 0, said
    assert found["cosine_to_teacher"] > evaluated(place, tmp_path / "one", capsys)["cosine_to_teacher"] + 0.1
    kinds = [one["type"].rsplit(".", 1)[-1] for one in json.loads((out / "modules.json").read_text())]
    assert kinds == ["StaticEmbedding", *["Dense"] * (width == 8), "Normalize"]
    # trained on from its folder it begins where it was
    status, said = train(place, out, tmp_path / "again", "--learning_rate", "1e-12", losses=losses, steps=1)
    assert status == 0, said
    ours, theirs = (
        load_file(one / "model.safetensors")["embedding.weight"] for one in (out, tmp_path / "again")
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_sentence_transformers_opens_a_table(place, tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    status, said = train(place, "static:8", tmp_path / "out", losses=("feature=1,distance=cosine",), steps=2)
    assert status == 0, said
    texts = [text for text in held_out(place)[0] if len(text.split()) < 5]
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, by_table(tmp_path / "out", texts), atol=1e-5)


def test_what_a_static_student_cannot_be_is_refused(place, tmp_path):
    for student, told in (("static:0", "takes the width"), ("static:many", "static:256, of at most")):
        status, said = train(place, student, tmp_path / "out", steps=1)
        assert (status, told in said) == (2, True), said
    status, said = train(place, "static:8", tmp_path / "out", "--lora", "r=2", steps=1)
    assert (status, "can be opened again" in said) == (2, True), said
    other = tmp_path / "other"
    made = models.classifier(tmp_path / "teacher")
    told = ("--corpus", write_jsonl(tmp_path / "c.jsonl", documents(9)), "--teacher", made, "--cache", other)
    assert teachonce_main("precompute", *told, "--task", "sequence-classification", "--no_progress")[0] == 0
    with pytest.raises(Exception, match=r"static student gives embeddings of texts.*feature-extraction"):
        open_student("static:8", Cache.open(other))
