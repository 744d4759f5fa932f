"""Rerankers: a cache says what a plain forward says of each pair alone, and holds a query's pairs in one row."""

import json

import numpy as np
import pytest
import torch
import transformers

from schemas import Cache
from schemas.errors import UsageError
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import read, run, write_jsonl

PASSAGES = [*models.TEXT, "Short.", "A row of a shard is read by whoever asks for it, once and again."]
TASK = {"task": "pair-score", "passages_field": "docs", "max_length": 40, "keep": None}
KINDS = ("bert", "roberta", "distilbert")


def reranker(folder, kind="bert"):
    words = models.byte_tokenizer(bert=kind != "roberta")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "distilbert":
        shape = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=len(words), max_position_embeddings=512, pad_token_id=0, initializer_range=0.4,
        num_labels=1, **shape,
    )  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    return models.save(model, words, folder)


def queries(count, **more):
    """Of one to four passages, with labels of as many."""
    found = []
    for i in range(count):
        docs = [f"{PASSAGES[(i + j) % 6]} {j}" for j in range(1 + i % 4)]
        found.append(
            {"text": f"Who is {i}?", "docs": docs, "label": [float(j % 3) for j in range(len(docs))]} | more
        )
    return found


def by_query(cache, tokenizer, told):
    """Rows by the query that their first pair begins with."""
    starts = {tuple(tokenizer(one["text"], one["docs"][0])["input_ids"]): one for one in told}
    found = []
    for row in read(cache).values():
        ends = [*row["position_index"].tolist(), len(row["input_ids"])]
        found.append((starts[tuple(row["input_ids"][: ends[1]].tolist())], row))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_says_what_a_plain_forward_says_of_each_pair(tmp_path, kind):
    made, told = reranker(tmp_path / "t", kind), queries(7)
    path = write_jsonl(tmp_path / "c.jsonl", told)
    summary = run(path, made, tmp_path / "c", label_field="label", **TASK | {"max_length": 200})
    assert (summary.totals.examples, dict(summary.rejects)) == (7, {})
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(made).eval()
    for one, row in by_query(tmp_path / "c", tokenizer, told):
        pairs = [tokenizer(one["text"], passage, return_tensors="pt") for passage in one["docs"]]
        with torch.inference_mode():
            scores = [model(**pair).logits.item() for pair in pairs]
        np.testing.assert_allclose(row["logits"], scores, rtol=1e-5, atol=1e-5)
        assert row["input_ids"].tolist() == [i for pair in pairs for i in pair["input_ids"][0].tolist()]
        sizes = [pair["input_ids"].shape[1] for pair in pairs]
        assert row["position_index"].tolist() == np.cumsum([0, *sizes[:-1]]).tolist()
        assert row["labels"].tolist() == one["label"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return reranker(tmp_path_factory.mktemp("teacher"))


def test_long_passages_are_cut_and_counted(tmp_path, teacher):
    told = [{"text": "Who?", "docs": ["short", "word " * 60]}, {"text": "What?", "docs": ["short"]}]
    summary = run(write_jsonl(tmp_path / "c.jsonl", told), teacher, tmp_path / "c", **TASK)
    assert summary.truncated_pairs == 1
    sizes = [
        np.diff([*r["position_index"], len(r["input_ids"])]).tolist() for r in read(tmp_path / "c").values()
    ]
    assert max(max(one) for one in sizes) == 40


def test_a_decoder_without_padding_is_asked_for_each_text_alone(tmp_path):
    """Its score is of the last token: in a padded batch that is padding."""
    made = models.causal_teacher(tmp_path / "c")
    config = transformers.AutoConfig.from_pretrained(made)
    config.update({"num_labels": 1, "pad_token_id": None, "eos_token_id": None})
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    models.save(model, models.byte_tokenizer(), tmp_path / "t")
    told = queries(6)
    run(write_jsonl(tmp_path / "c.jsonl", told), tmp_path / "t", tmp_path / "cache", **TASK)
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "t").eval()
    for row in read(tmp_path / "cache").values():
        texts = np.split(row["input_ids"].astype(np.int64), row["position_index"][1:])
        with torch.inference_mode():
            scores = [opened(torch.from_numpy(one)[None]).logits.item() for one in texts]
        np.testing.assert_allclose(row["logits"], scores, rtol=1e-4, atol=1e-4)


def test_batches_change_nothing(tmp_path, teacher):
    path = write_jsonl(tmp_path / "c.jsonl", queries(12))
    for name, tokens in (("one", 1), ("many", 100_000)):
        run(path, teacher, tmp_path / name, batch_tokens=tokens, **TASK)
    one, many = read(tmp_path / "one"), read(tmp_path / "many")
    assert one.keys() == many.keys()
    for key, row in one.items():
        np.testing.assert_allclose(row["logits"], many[key]["logits"], atol=2e-5)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"docs": []}, "empty"),
        ({"docs": ["a", " "]}, "empty"),
        ({"docs": ["a", 3]}, "bad_passages"),
        ({"docs": {"a": 1}}, "bad_passages"),
        ({"docs": ["a", "\ud800"]}, "invalid_utf8"),
        ({"docs": None}, "field_missing"),
        ({"text": " "}, "empty"),
        ({"label": [1.0, 2.0, 3.0]}, "bad_passages"),
        ({"label": ["1"]}, "bad_passages"),
        ({"label": [True]}, "bad_passages"),
        ({"label": [1e300]}, "bad_passages"),
        ({"label": [10**400]}, "bad_passages"),
        ({"label": None}, "field_missing"),
    ],
)
def test_what_is_no_list_of_pairs_is_rejected_and_counted(tmp_path, teacher, line, reason):
    told = [*queries(3), {"text": "Who?", "docs": ["a"], "label": [1.0]} | line]
    changes = {"label_field": "label", "max_reject_fraction": 0.5}
    path = write_jsonl(tmp_path / "c.jsonl", [json.dumps(one).encode() for one in told])
    summary = run(path, teacher, tmp_path / "c", **TASK, **changes)
    assert dict(summary.rejects) == {reason: 1}
    assert summary.totals.examples == 3


def test_flags_and_teachers_of_other_tasks_are_refused(tmp_path, teacher):
    path = write_jsonl(tmp_path / "c.jsonl", queries(2))
    for changes, named in (
        ({"passages_field": None}, "needs a query and its passages"),
        ({"features": ("mean:-1",)}, "--features has no meaning for pair-score"),
        ({"stride": 2}, "--stride has no meaning"),
        ({"passages_field": "dcos"}, "--passages_field dcos: none of the first"),
        ({"passages_field": None, "messages_field": "docs"}, "--messages_field has no meaning"),
    ):
        with pytest.raises(UsageError, match=named):
            run(path, teacher, tmp_path / "c", **TASK | changes)
    with pytest.raises(UsageError, match=r"gives 3 scores of a pair.*expected one score"):
        run(path, models.classifier(tmp_path / "t"), tmp_path / "c", **TASK)
    with pytest.raises(UsageError, match="--passages_field has no meaning for sequence-classification"):
        run(path, teacher, tmp_path / "c", **TASK | {"task": "sequence-classification"})


def test_the_nightly_laws_and_a_student_from_the_commands(tmp_path, teacher):
    told = queries(40)
    path = write_jsonl(tmp_path / "c.jsonl", told)
    changes = {"label_field": "label", **TASK, "row_group_tokens": 300}
    run(path, teacher, tmp_path / "c", **changes)
    before = read(tmp_path / "c")
    assert run(path, teacher, tmp_path / "c", **changes).totals.examples == 0
    told[0]["docs"][0] += " edited"
    write_jsonl(path, told[:-1])
    summary = run(path, teacher, tmp_path / "c", prune=True, max_prune_fraction=0.5, **changes)
    assert summary.totals.examples == 1
    after = read(tmp_path / "c")
    assert (len(after), len(after.keys() & before.keys())) == (39, 38)
    cache = tmp_path / "c"
    for verb in (("verify", cache, "--teacher", teacher), ("inspect", cache, "--rows", 1)):
        status, said = teachonce_main(*verb)
        assert status == 0, said
    words = (
        "--teacher",
        teacher,
        "--task",
        "pair-score",
        "--passages_field",
        "docs",
        "--label_field",
        "label",
    )
    status, said = teachonce_main("inspect", "--corpus", path, *words)
    assert status == 0, said
    student = ("--student", teacher, "--output_dir", tmp_path / "s", "--max_steps", "4", "--use_cpu")
    held = ("--eval_fraction", "0.4")
    losses = ("--losses", "margin_mse=1", "listwise_kl=1", "mse_logits=0.1", "ce=0.1")
    status, said = teachonce_main("train", "--cache", cache, *student, *losses, *held)
    assert status == 0, said
    status, said = teachonce_main("evaluate", "--cache", cache, "--student", tmp_path / "s", "--json", *held)
    assert status == 0, said
    found = json.loads(said[said.index("{") :])
    text = json.dumps(found)
    for name in (
        "ndcg",
        "teacher_ndcg",
        "order_agreement",
        "ndcg_with_teacher",
        "first_agreement",
        "mse_with_teacher",
    ):
        assert name in text
    assert Cache.open(cache).spec.required_features[-1] == "task:pair-score"
    for flags, named in (
        (("--losses", "kl=1"), "kl"),
        (("--losses", "mse_logits=1", "--batching", "pack"), "pack"),
    ):
        status, said = teachonce_main(
            "train", "--cache", cache, *student[:2], "--output_dir", tmp_path / "o", *flags
        )
        assert status in (1, 2), said
        assert named in said
