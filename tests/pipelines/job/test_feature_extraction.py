"""Embeddings alone: a cache says what plain transformers, pooled by hand, and sentence-transformers say of a text."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.scoring import rescore
from pipelines.teacher.model import Answer
from schemas import Cache
from schemas.errors import UsageError
from schemas.policies import KeepAll
from schemas.rows.rows import Rows
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents, read, run, write_jsonl
from tests.pipelines.oracle import by_hand

TASK = {"task": "feature-extraction", "keep": None, "max_length": None, "keep_text": True}
KINDS = {"bert": "mean", "roberta": "cls", "mpnet": "mean", "llama": "last"}


def embeddings(cache):
    """Texts, and what the cache holds of each."""
    rows = list(read(cache).values())
    assert all(len(row["positions"]) == 0 and "logits" not in row and "labels" not in row for row in rows)
    name = Cache.open(cache).spec.features[0].name
    return [row["text"] for row in rows], np.stack([row[name] for row in rows])


def close(found, truth):
    """Within half of an int8 step, and rounding."""
    bound = np.abs(truth).max(1, keepdims=True) * (0.5 / 127 + 1e-5) + 5e-5
    assert (np.abs(found - truth) <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_says_what_a_plain_forward_pooled_by_hand_says(tmp_path, kind):
    made, pooling = models.encoder(tmp_path / "t", kind), KINDS[kind]
    path = write_jsonl(tmp_path / "c.jsonl", documents(12))
    run(path, made, tmp_path / "c", features=(f"{pooling}:-1", "mean:1"), **TASK | {"max_length": 24})
    texts, found = embeddings(tmp_path / "c")
    close(found, by_hand(made, texts, pooling, longest=24))
    opened = Cache.open(tmp_path / "c")
    assert (opened.spec.score, opened.spec.keep, opened.spec.vocab_size) == ("none", KeepAll(), 0)
    assert (len(texts), opened.totals.positions, opened.totals.entries) == (12, 0, 0)
    assert "task:feature-extraction" in opened.header.to_json()["required_features"]


SETTINGS = {
    "as the folder says": ({}, {"prompt": "query: ", "normalize": True}),
    "without a prompt": ({"prompt": ""}, {"normalize": True}),
    "another prompt": (
        {"prompt": "Instruct: find\nQuery: "},
        {"prompt": "Instruct: find\nQuery: ", "normalize": True},
    ),
    "not normalised": ({"normalize": False}, {"prompt": "query: "}),
    "cut": ({"truncate_dim": 8}, {"prompt": "query: ", "normalize": True, "cut": 8}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_folder_of_sentence_transformers_is_taken_as_itself(tmp_path, name):
    given, told = SETTINGS[name]
    made = models.embedder(tmp_path / "t", prompt="query: ")
    path = write_jsonl(tmp_path / "c.jsonl", documents(8))
    summary = run(path, made, tmp_path / "c", task_settings=given, feature_dtype="float32", **TASK)
    texts, found = embeddings(tmp_path / "c")
    truth = by_hand(made, texts, "mean", longest=24, **told)
    assert np.abs(found - truth).max() < 5e-5
    assert summary.truncated_pairs > 0


def test_sentence_transformers_says_the_same(tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    for kind, pooling in (("bert", "mean"), ("roberta", "cls"), ("llama", "last")):
        made = models.embedder(tmp_path / kind, kind, pooling=pooling, prompt="query: ")
        path, cache = write_jsonl(tmp_path / f"{kind}.jsonl", documents(8)), tmp_path / f"c-{kind}"
        run(path, made, cache, feature_dtype="float32", **TASK)
        texts, found = embeddings(cache)
        truth = library.SentenceTransformer(str(made), device="cpu").encode(texts)
        assert np.abs(found - truth).max() < 5e-5


def spoil(folder, name, **changes):
    """Another module, or setting, than is known."""
    path = folder / name
    told = json.loads(path.read_text()) if path.is_file() else {}
    if isinstance(told, list):
        told.append(
            {"idx": 9, "name": "9", "path": "9_X", "type": f"sentence_transformers.models.{changes['type']}"}
        )
    else:
        told |= changes
    path.write_text(json.dumps(told))


POOLING = "1_Pooling/config.json"
SPOILT = [
    ("modules.json", {"type": "CNN"}, "CNN"),
    ("modules.json", {"type": "Dense"}, "Normalize in 2_Normalize, Dense"),
    (POOLING, {"pooling_mode_max_tokens": True}, "max"),
    (POOLING, {"pooling_mode": "weightedmean"}, "weightedmean"),
    (POOLING, {"include_prompt": False}, "prompt"),
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
    ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name"),
]


@pytest.mark.parametrize(("name", "changes", "told"), SPOILT)
def test_what_a_folder_does_beyond_that_is_refused_by_name(tmp_path, name, changes, told):
    made = models.embedder(tmp_path / "t", prompt="query: ")
    spoil(made, name, **changes)
    with pytest.raises(UsageError, match=told):
        run(write_jsonl(tmp_path / "c.jsonl", documents(2)), made, tmp_path / "c", **TASK)
    for text in ("{", "3"):
        (made / name).write_text(text)
        with pytest.raises(UsageError, match=name):
            run(write_jsonl(tmp_path / "c.jsonl", documents(2)), made, tmp_path / "c", **TASK)


def test_so_is_a_linear_map_of_a_teacher(tmp_path):
    made = models.embedder(tmp_path / "t")
    modules = json.loads((made / "modules.json").read_text())
    modules.insert(
        2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    )
    (made / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="2_Dense"):
        run(write_jsonl(tmp_path / "c.jsonl", documents(2)), made, tmp_path / "c", **TASK)


REFUSED = [
    ({"keep": KeepAll()}, "--keep has no meaning for feature-extraction"),
    ({"scalars": ()}, None),
    ({"scalars": ("entropy",)}, "--scalars has no meaning"),
    ({"temperatures": (1.0, 2.0)}, "--temperatures has no meaning"),
    ({"own_logits": True}, "--own_logits has no meaning"),
    ({"score": "softmax"}, "--score has no meaning"),
    ({"stride": 4}, "--stride has no meaning"),
    ({"label_field": "text"}, "--label_field has no meaning"),
    ({"messages_field": "text"}, "--messages_field has no meaning"),
    ({"text_pair_field": "text"}, "--text_pair_field has no meaning"),
    ({"task_settings": {"truncate_dim": 33}}, "--truncate_dim"),
    ({"features": ("mean:1",)}, "as the first of --features"),
    ({"features": ("max:-1",)}, "--features names no feature"),
]


def test_flags_that_make_no_sense_are_refused(tmp_path):
    made, path = models.embedder(tmp_path / "t"), write_jsonl(tmp_path / "c.jsonl", documents(2))
    for changes, told in REFUSED:
        if told is None:
            continue
        with pytest.raises(UsageError, match=told):
            run(path, made, tmp_path / "c", **TASK | changes)
    for changes, told in (({}, "needs an embedding"), ({"features": ("mean:-1",)}, None)):
        plain = models.encoder(tmp_path / "p")
        if told is None:
            run(path, plain, tmp_path / "c", **TASK | changes)
            continue
        with pytest.raises(UsageError, match=told):
            run(path, plain, tmp_path / "c", **TASK | changes)


def test_a_prompt_leaves_room_for_a_text(tmp_path):
    made, path = models.encoder(tmp_path / "t"), write_jsonl(tmp_path / "c.jsonl", documents(2))
    changes = {"features": ("mean:-1",), "task_settings": {"prompt": "word " * 40}, "max_length": 32}
    with pytest.raises(UsageError, match=r"leaves no room for text.*those of the prompt"):
        run(path, made, tmp_path / "c", **TASK | changes)


def told(path, made, cache, *more):
    given = ("--corpus", path, "--teacher", made, "--task", "feature-extraction", "--cache", cache)
    return ("precompute", *given, "--no_progress", "--id_field", "id", *more)


def lines(count):
    return [{"id": str(i), **one} for i, one in enumerate(documents(count))]


def test_the_nightly_laws_and_every_verb(tmp_path):
    """Nothing new, an edited document, a deleted one; and what a cache is asked for."""
    made = models.embedder(tmp_path / "t", prompt="query: ")
    path, cache, corpus = tmp_path / "c.jsonl", tmp_path / "cache", lines(24)
    write_jsonl(path, corpus)
    for _ in range(2):
        status, said = teachonce_main(*told(path, made, cache))
        assert status == 0, said
        assert (Cache.open(cache).version, len(read(cache))) == (0, 24)
    before = read(cache)
    corpus[0]["text"] = "an edited text"
    write_jsonl(path, [*corpus[:-1], {"id": "a", "text": "  "}])
    fraction = ("--max_reject_fraction", "0.1")
    assert teachonce_main(*told(path, made, cache, "--replace", "--prune", *fraction))[0] == 0
    after = read(cache)
    assert (len(after), len(before.keys() - after.keys()), len(after.keys() - before.keys())) == (23, 2, 1)
    shown = ("--corpus", path, "--task", "feature-extraction", "--rows", "2")
    for verb in (
        ("inspect", cache, "--rows", "2"),
        ("verify", cache),
        ("verify", cache, "--teacher", made),
        ("compact", cache, "--no_progress"),
        ("export", cache, "--out", tmp_path / "plain"),
        ("plan", *told(path, made, tmp_path / "other", *fraction)[1:]),
        ("inspect", *shown, "--teacher", made),
        ("inspect", *shown, "--teacher", models.encoder(tmp_path / "plain-teacher")),
    ):
        status, said = teachonce_main(*verb)
        assert status == 0, (verb, said)
    assert read(cache).keys() == after.keys()
    exported = pq.read_table(tmp_path / "plain")
    assert "logits" not in exported.column_names
    assert len(exported["feature_mean_2"][0].as_py()) == 32
    status, said = teachonce_main(
        "thin", cache, "--out", tmp_path / "thin", "--keep", "top_k:2", "--no_progress"
    )
    assert status != 0, said
    status, said = teachonce_main(*told(path, made, cache, "--prompt", "other: "))
    assert status == 1, said
    assert "--prompt: cache " in said


def test_another_teacher_is_seen(tmp_path):
    """Each fault of a teacher that is run again is a distance above the bound."""
    made = models.embedder(tmp_path / "t")
    run(write_jsonl(tmp_path / "c.jsonl", documents(6)), made, tmp_path / "c", **TASK)
    rows = Rows.concatenate(list(Cache.open(tmp_path / "c").read_all()))
    own = torch.from_numpy(rows.feature(rows.spec.features[0]))
    for fresh, distance in ((own, 0), (-own, 2), (torch.zeros_like(own), 1)):
        answer = Answer(None, None, (fresh,), torch.ones(6, dtype=torch.bool))
        np.testing.assert_allclose(rescore._angles(rows, answer), distance, atol=1e-6)
