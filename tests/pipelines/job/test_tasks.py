"""Classification: single-label, multi-label, regression, pairs, long texts; instruction data; keys and texts."""

import json

import numpy as np
import pytest
import transformers

from schemas import Cache
from schemas.errors import UsageError
from schemas.policies import KeepAll, TopK
from tests.pipelines import models
from tests.pipelines.helpers import documents, read, run, write_jsonl, write_parquet
from tests.pipelines.oracle import Oracle, check_features, check_labels, check_row

CLASSIFY = {"task": "sequence-classification", "label_field": "label", "max_length": 20}
AUTO = transformers.AutoModelForSequenceClassification


def oracle(teacher):
    return Oracle(teacher, auto=AUTO)


def labelled(count, labels):
    return [{**d, "label": labels[i % len(labels)]} for i, d in enumerate(documents(count))]


def one_position(truth):
    """A classifier has one position, whatever token it is said to stand on."""
    return truth._replace(logits=truth.logits.reshape(1, -1))


def test_a_classifiers_cache_says_what_its_forward_says(tmp_path, classifier):
    corpus = write_jsonl(tmp_path / "c.jsonl", labelled(9, ["label0", 2, 1]))
    features = ("mean:-1", "cls:-1", "last:-1", "mean:1")
    run(corpus, classifier, tmp_path / "c", features=features, temperatures=(1.0, 2.0), stride=2, **CLASSIFY)
    opened, judge = Cache.open(tmp_path / "c"), oracle(classifier)
    assert (opened.spec.score, opened.spec.keep) == ("softmax", KeepAll())
    assert opened.spec.label_names == ("label0", "label1", "label2")
    rows = read(opened)
    assert len({row["document_hash"].tobytes() for row in rows.values()}) == 9 < len(rows)
    for row in rows.values():
        truth = one_position(judge.truth(row))
        assert check_row(row, truth, opened.spec) == 0
        check_labels(row, truth, row["labels"])
        check_features(row, truth, opened.spec)
    assert sorted({int(row["labels"][0]) for row in rows.values()}) == [0, 1, 2]


def test_pairs_are_shown_as_pairs(tmp_path, classifier):
    pairs = [{"text": d["text"], "other": f"pair {i}", "label": i % 3} for i, d in enumerate(documents(8))]
    corpus = write_parquet(tmp_path / "c.parquet", pairs)
    fields = {"text_pair_field": "other", "id_field": "text", "keep_text": True}
    summary = run(corpus, classifier, tmp_path / "c", **fields, **CLASSIFY)
    opened, judge = Cache.open(tmp_path / "c"), oracle(classifier)
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    rows = list(read(opened).values())
    for row in rows:
        shown = tokenizer(row["text"], row["text_pair"], truncation="longest_first", max_length=20)
        assert row["input_ids"].tolist() == shown["input_ids"]
        assert row["token_type_ids"].tolist() == shown["token_type_ids"]
        assert row["document_id"] == row["text"]
        check_row(row, one_position(judge.truth(row)), opened.spec)
    whole = [len(tokenizer(row["text"], row["text_pair"])["input_ids"]) for row in rows]
    assert len(rows) == 8
    assert 0 < summary.truncated_pairs == sum(length > 20 for length in whole) < 8


def test_a_multi_label_teacher_keeps_all_its_logits(tmp_path):
    teacher = models.classifier(tmp_path / "t", problem_type="multi_label_classification")
    corpus = write_jsonl(tmp_path / "c.jsonl", labelled(6, [[], ["label0", 2], [1]]))
    run(corpus, teacher, tmp_path / "c", **CLASSIFY)
    opened, judge = Cache.open(tmp_path / "c"), oracle(teacher)
    assert opened.spec.score == "sigmoid"
    rows = read(opened).values()
    for row in rows:
        np.testing.assert_allclose(row["logits"], judge.truth(row).logits, atol=1e-5)
    assert {tuple(row["labels"]) for row in rows} == {(0, 0, 0), (1, 0, 1), (0, 1, 0)}


def test_a_regression_keeps_one_value(tmp_path):
    teacher = models.classifier(tmp_path / "t", num_labels=1)
    corpus = write_jsonl(tmp_path / "c.jsonl", labelled(6, [0.5, -3]))
    run(corpus, teacher, tmp_path / "c", **CLASSIFY)
    opened, judge = Cache.open(tmp_path / "c"), oracle(teacher)
    assert (opened.spec.score, opened.spec.vocab_size) == ("identity", 1)
    rows = read(opened).values()
    for row in rows:
        np.testing.assert_allclose(row["logits"], judge.truth(row).logits, atol=1e-5)
    assert {float(row["labels"][0]) for row in rows} == {0.5, -3.0}


def test_scores_without_a_normaliser_cannot_be_cut(tmp_path, classifier, corpus):
    with pytest.raises(UsageError, match="only softmax scores can be cut"):
        run(corpus, classifier, tmp_path / "c", score="sigmoid", keep=TopK(k=2), task=CLASSIFY["task"])


def test_without_labels_there_are_none(tmp_path, classifier):
    corpus = write_jsonl(tmp_path / "c.jsonl", documents(3))
    run(corpus, classifier, tmp_path / "c", task=CLASSIFY["task"])
    [rows] = Cache.open(tmp_path / "c").read_all()
    assert not rows.ragged("labels").validity.any()
    assert not rows.gold_logprob().validity.any()


@pytest.mark.parametrize("kind", ["messages", "prompt"])
def test_instruction_data_has_positions_only_where_it_is_supervised(tmp_path, teacher, kind):
    answers = [d["text"] for d in documents(5)]
    talks = [
        [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": answer}]
        for answer in answers
    ]
    records = [{"talk": t, "p": "Say it: ", "c": a} for t, a in zip(talks, answers, strict=True)]
    fields = {
        "messages": {"messages_field": "talk"},
        "prompt": {"prompt_field": "p", "completion_field": "c"},
    }
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    run(
        corpus, teacher, tmp_path / "c", supervise="assistant", max_length=300, keep_text=True, **fields[kind]
    )
    opened, judge = Cache.open(tmp_path / "c"), Oracle(teacher)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    found = set()
    for row in read(opened).values():
        assert 0 < len(row["positions"]) < len(row["input_ids"]) - 1
        targets = row["input_ids"][row["positions"] + 1]
        found.add(tokenizer.decode(targets, skip_special_tokens=False))
        check_row(row, judge.truth(row), opened.spec)
        check_labels(row, judge.truth(row), targets)
        assert kind == "prompt" or json.loads(row["text"])[0]["role"] == "user"
    assert found == {answer + "</s>" for answer in answers}


def test_with_ids_equal_texts_stay_apart_and_without_them_they_are_one(tmp_path, teacher):
    records = [{"text": "The same text.", "id": i} for i in (1, "1", "two", 3)]
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    one = run(corpus, teacher, tmp_path / "one")
    assert (one.totals.examples, one.duplicates, one.new_documents) == (1, 3, 1)
    apart = run(corpus, teacher, tmp_path / "apart", id_field="id", keep_text=True)
    assert (apart.totals.examples, apart.duplicates) == (3, 1)
    rows = read(tmp_path / "apart").values()
    assert sorted(row["document_id"] for row in rows) == ["1", "3", "two"]
    assert {row["text"] for row in rows} == {"The same text."}
    assert "text" not in next(iter(read(tmp_path / "one").values()))
