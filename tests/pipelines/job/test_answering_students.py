"""Question answering end to end by the commands: nights, a student, and answers judged as plain forwards give them."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
import transformers

from schemas import Cache
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import read, write_jsonl
from tests.pipelines.job.test_question_answering import AUTO, RECORDS, first_answer, truth, windows
from trainer.batches.collate import Collation
from trainer.metrics.answer_texts import exact_match_and_f1
from trainer.metrics.answers import answer_metrics
from trainer.tasks.tasks import STUDENT_TASKS

FIELDS = ("--text_field", "question", "--text_pair_field", "context", "--label_field", "answers")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return models.answerer(tmp_path_factory.mktemp("teacher") / "t", "electra")


@pytest.fixture(scope="module")
def told(tmp_path_factory, teacher):
    """The command without its corpus."""
    cache = tmp_path_factory.mktemp("cache") / "cache"
    flags = ("--cache", cache, "--no_progress", "--max_length", "40", "--stride", "8", "--id_field", "id")
    return ("precompute", "--teacher", teacher, "--task", "question-answering", *FIELDS, *flags)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, told):
    """After three nights: the first, one with nothing new, and one with an answer edited and a question gone."""
    path, cache = tmp_path_factory.mktemp("corpus") / "c.jsonl", told[told.index("--cache") + 1]
    lines = [one | {"id": f"{n}-{at}"} for n in range(2) for at, one in enumerate(RECORDS)]
    write_jsonl(path, lines)
    assert teachonce_main(*told, "--corpus", path)[0] == 0
    before = len(read(Cache.open(cache)))
    assert teachonce_main(*told, "--corpus", path)[0] == 0
    assert (Cache.open(cache).version, len(read(Cache.open(cache)))) == (0, before)
    lines[0] = lines[0] | {
        "answers": {"text": ["Ada Lovelace"], "answer_start": [lines[0]["context"].index("Ada")]}
    }
    lines[2] = lines[2] | {"answers": {"text": ["Nobody"], "answer_start": [0]}}
    write_jsonl(path, lines[:-1])
    status, said = teachonce_main(*told, "--corpus", path, "--replace", "--prune")
    assert status == 0, said
    rows = read(Cache.open(cache)).values()
    assert len(rows) == before - 1
    edited = [row for row in rows if row["document_id"] == "0-2"]
    assert [row["labels"].tolist() for row in edited] != [[0, 0]]
    assert len([row for row in rows if row["document_id"] == "0-0"]) > 1
    return cache


def answer(tokenizer, model, one):
    """As SQuAD's reference has it: the best span of any window by its two logits, or none; tried one by one."""
    best, none = (-np.inf, None), np.inf
    for ids, inside, types in windows(tokenizer, one, 40, 8):
        starts, ends = truth(model, ids, types)
        none = min(none, starts[0] + ends[0])
        for first, last in itertools.product(np.flatnonzero(inside), repeat=2):
            if first <= last < first + 30 and starts[first] + ends[last] > best[0]:
                best = starts[first] + ends[last], ids[first : last + 1]
    return "" if none > best[0] else tokenizer.decode(best[1], clean_up_tokenization_spaces=False)


def right(tokenizer, one):
    found = first_answer(one)
    if found is None:
        return ""
    spans, encoded = (
        range(found[0], found[0] + len(found[1].rstrip())),
        tokenizer(one["question"], one["context"]),
    )
    own = [
        token
        for at, token in enumerate(encoded["input_ids"])
        if encoded.sequence_ids(0)[at] == 1
        and (chars := encoded.token_to_chars(0, at)) is not None
        and any(chars.start <= char < chars.end for char in spans)
    ]
    return tokenizer.decode(own, clean_up_tokenization_spaces=False)


def test_answers_are_judged_as_plain_forwards_give_them(tmp_path, teacher):
    """The teacher as its own student; what the cache keeps of it answers the same."""
    path = write_jsonl(tmp_path / "c.jsonl", RECORDS)
    flags = ("--cache", tmp_path / "c", "--no_progress", "--max_length", "40", "--stride", "8")
    status, said = teachonce_main(
        "precompute", "--corpus", path, "--teacher", teacher, "--task", "question-answering", *FIELDS, *flags
    )
    assert status == 0, said
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    model = AUTO.from_pretrained(teacher).eval()
    opened = Cache.open(tmp_path / "c")
    parts = list(opened.read_all())
    collation = Collation(student_vocab=40, pad_id=0)
    found = answer_metrics(
        model,
        STUDENT_TASKS["question-answering"].run,
        [collation.batch(part) for part in parts],
        rows=parts,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
    )
    judged = [
        exact_match_and_f1(
            answer(tokenizer, model, one), right(tokenizer, one), chinese="\uff1f" in one["question"]
        )
        for one in RECORDS
    ]
    assert found["questions"] == len(RECORDS)
    assert (found["exact_match"], found["f1"]) == pytest.approx(tuple(np.mean(judged, 0)))
    assert 0 < found["f1"] < 1
    assert (found["teacher_exact_match"], found["teacher_f1"]) == (found["exact_match"], found["f1"])
    assert found["agreement"] == 1
    assert 0 <= found["kl_nats"] < 1e-3


def test_labels_are_needed_for_losses_of_labels(tmp_path, teacher):
    path = write_jsonl(tmp_path / "c.jsonl", RECORDS)
    flags = ("--cache", tmp_path / "c", "--no_progress", "--max_length", "40")
    asked = ("precompute", "--corpus", path, "--teacher", teacher, "--task", "question-answering")
    assert teachonce_main(*asked, *FIELDS[:-2], *flags)[0] == 0
    run = (
        "train",
        "--cache",
        tmp_path / "c",
        "--student",
        "shrink:layers=1",
        "--teacher",
        teacher,
        "--use_cpu",
    )
    run += ("--max_steps", "1", "--eval_fraction", "0.3", "--output_dir", tmp_path / "out")
    status, said = teachonce_main(*run, "--losses", "kl=1", "ce=1")
    assert (status, "needs labels, and the cache's first rows have none" in said) == (2, True)


def test_a_student_learns_from_the_commands_and_opens_as_transformers_own(tmp_path, teacher, cache):
    status, said = teachonce_main("verify", cache, "--teacher", teacher)
    assert status == 0, said
    status, said = teachonce_main("inspect", cache, "--rows", "1", "--json")
    (shown,) = json.loads(said)["rows"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    row = read(Cache.open(cache))[bytes.fromhex(shown["example_id"])]
    best = shown["positions"][0]["entries"][0]
    told = tokenizer.decode(row["input_ids"][best["id"]]) if best["id"] else "[CLS]"
    assert best["text"] == told or "\ufffd" in told  # bytes of a letter
    config = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    (tmp_path / "student.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    run = ("train", "--cache", cache, "--losses", "kl=1", "ce=0.1", "--use_cpu", "--eval_fraction", "0.3")
    run += ("--per_device_train_batch_size", "8", "--output_dir", tmp_path / "out")
    status, said = teachonce_main(*run, "--student", tmp_path / "student.json", "--batching", "pack")
    assert status == 2
    assert "give one answer a row" in said
    status, said = teachonce_main(
        *run,
        *("--student", tmp_path / "student.json", "--max_steps", "40", "--learning_rate", "0.005"),
        *("--logging_steps", "10"),
    )
    assert status == 0, said
    logged = [float(value) for value in re.findall(r" kl ([\d.]+)", said)]
    assert len(logged) == 4
    assert logged[-1] < 0.8 * logged[0]
    student = AUTO.from_pretrained(tmp_path / "out")
    assert student.config.num_labels == 2
    status, said = teachonce_main(
        "evaluate", "--cache", cache, "--student", tmp_path / "out", "--speed_seconds", "0", "--json"
    )
    assert status == 0, said
    metrics = json.loads(said)["metrics"]
    names = {"kl_nats", "agreement", "accuracy", "questions", "exact_match", "f1", "teacher_f1"}
    assert names <= metrics.keys()
    assert metrics["questions"] > 3
    status, said = teachonce_main(
        *(*run[:-1], tmp_path / "shrunk", "--student", "shrink:layers=1", "--teacher", teacher),
        *("--max_steps", "1"),
    )
    assert status == 0, said
