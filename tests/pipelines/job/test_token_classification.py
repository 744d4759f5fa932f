"""Token classification: a cache says what a plain forward says at the first token of each word; labels go by name."""

import itertools
import json

import pytest
import transformers

from schemas import Cache
from schemas.errors import TooManyRejectsError, UsageError
from schemas.policies import KeepAll
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import read, run, write_jsonl
from tests.pipelines.oracle import Oracle, check_labels, check_row

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
WORDS = [
    "Ada",
    "Lovelace",
    "met",
    "Charles",
    "Babbage",
    "in",
    "London",
    ",",
    "Marylebone's",
    "unforgettable",
    "corner",
]
TAGS = ["B-PER", "I-PER", "O", "B-PER", "I-PER", "O", "B-LOC", "O", "I-LOC", "MISC", "O"]
AUTO = transformers.AutoModelForTokenClassification
TASK = {"task": "token-classification", "words_field": "tokens", "label_field": "tags", "max_length": 24}
KINDS = ("bert", "roberta", "distilbert")


def corpus(path, count=6, **more):
    """Documents of a growing number of words."""
    sizes = itertools.cycle([11, 3, 7])
    return write_jsonl(
        path,
        [
            {"tokens": [*WORDS[:n], str(i)], "tags": [*TAGS[:n], "O"]} | more
            for i, n in zip(range(count), sizes, strict=False)
        ],
    )


def first_tokens(tokenizer, words):
    """The token that transformers finds at each word's first letter."""
    encoded, places = (
        tokenizer(" ".join(words)),
        itertools.accumulate((len(word) + 1 for word in words), initial=0),
    )
    return [encoded.char_to_token(place) for place, _ in zip(places, words, strict=False)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_says_what_a_plain_forward_says(tmp_path, kind):
    made = models.token_classifier(tmp_path / "t", NAMES, kind)
    features = ("mean:-1", "cls:1")
    whole = TASK | {"max_length": 200}
    run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", features=features, **whole)
    opened, judge = Cache.open(tmp_path / "c"), Oracle(made, auto=AUTO)
    assert (opened.spec.score, opened.spec.keep, opened.spec.label_names) == ("softmax", KeepAll(), NAMES)
    told = json.loads((tmp_path / "c/_teachonce/spec.json").read_text())
    assert "task:token-classification" in str(told)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    rows = read(opened)
    assert len(rows) == 6
    for row in rows.values():
        text = tokenizer.decode(row["input_ids"], skip_special_tokens=True).split()
        assert row["input_ids"].tolist() == tokenizer(" ".join(text))["input_ids"]
        truth = judge.truth(row)
        assert row["positions"].tolist() == first_tokens(tokenizer, text)
        assert check_row(row, truth, opened.spec) == 0
        names = [NAMES[number] for number in row["labels"]]
        assert names == [*TAGS[: len(text) - 1], "O"]
        check_labels(row, truth, row["labels"])


def test_windows_share_context_and_no_word_twice(tmp_path):
    made = models.token_classifier(tmp_path / "t", NAMES)
    run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", stride=6, **TASK)
    rows = sorted(read(Cache.open(tmp_path / "c")).values(), key=lambda row: row["window_index"])
    documents = {}
    for row in rows:
        documents.setdefault(row["document_hash"].tobytes(), []).extend(NAMES[n] for n in row["labels"])
    assert sorted(documents.values()) == sorted([*TAGS[:n], "O"] for n in (11, 3, 7, 11, 3, 7))
    assert len(rows) > 6


def spans(words, tags):
    """The entities of tagged words, as characters."""
    found, place = [], 0
    for word, tag in zip(words, tags, strict=True):
        if tag.startswith("I-") and found and found[-1]["end"] == place - 1 and found[-1]["label"] == tag[2:]:
            found[-1]["end"] = place + len(word)
        elif tag != "O":
            found.append(
                {"start": place, "end": place + len(word), "label": tag.removeprefix("B-").removeprefix("I-")}
            )
        place += len(word) + 1
    return found


def test_labelled_spans_say_what_labelled_words_say(tmp_path):
    made, words = models.token_classifier(tmp_path / "t", NAMES), [*WORDS[:7], "and", "Bath"]
    tags = [*TAGS[:7], "O", "B-LOC"]
    lines = [
        {"text": " ".join(words), "entities": spans(words, tags)},
        {"text": "nothing here", "entities": []},
    ]
    fields = {**TASK, "words_field": None, "label_field": "entities", "max_length": 200}
    run(write_jsonl(tmp_path / "s.jsonl", lines), made, tmp_path / "c", **fields)
    rows = sorted(read(Cache.open(tmp_path / "c")).values(), key=lambda row: -len(row["labels"]))
    assert [[NAMES[n] for n in row["labels"]] for row in rows] == [tags, ["O", "O"]]


def test_without_labels_nothing_is_gold(tmp_path):
    made = models.token_classifier(tmp_path / "t", NAMES)
    run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", **{**TASK, "label_field": None})
    rows = list(Cache.open(tmp_path / "c").read_all())
    assert not any(part.ragged("labels").validity.any() for part in rows)
    assert not any(part.gold_logprob().validity.any() for part in rows)
    assert len(read(Cache.open(tmp_path / "c"))) > 6


BAD = {
    "bad_words": [
        {"tokens": "one text", "tags": ["O"]},
        {"tokens": ["a", 3], "tags": ["O", "O"]},
        {"tokens": ["a"], "tags": ["O"] * 2},
    ],
    "empty": [{"tokens": [], "tags": []}, {"tokens": ["a", " "], "tags": ["O", "O"]}],
    "unknown_label": [
        {"tokens": ["a"], "tags": ["B-ORG"]},
        {"tokens": ["a"], "tags": [1]},
        {"tokens": ["a"], "tags": ["b-per"]},
    ],
    "field_missing": [{"tags": ["O"]}, {"tokens": ["a"]}],
}
BAD_SPANS = [
    [{"start": 0, "end": 99, "label": "PER"}],
    [{"start": -1, "end": 2, "label": "PER"}],
    [{"start": 2, "end": 2, "label": "PER"}],
    [{"start": 3, "end": 4, "label": "PER"}],
    [{"start": 0, "end": 3, "label": "PER"}, {"start": 2, "end": 7, "label": "LOC"}],
    [{"start": 0.0, "end": 3, "label": "PER"}],
    [["PER", 0, 3]],
    "PER",
]


@pytest.mark.parametrize(
    ("reason", "record"), [(reason, one) for reason, records in BAD.items() for one in records]
)
def test_what_is_wrong_is_rejected_with_its_reason(tmp_path, reason, record):
    made = models.token_classifier(tmp_path / "t", NAMES)
    good = {"tokens": WORDS, "tags": TAGS}
    path = write_jsonl(tmp_path / "c.jsonl", [good, record])
    summary = run(path, made, tmp_path / "c", max_reject_fraction=0.5, **TASK)
    assert dict(summary.rejects) == {reason: 1}
    with pytest.raises(TooManyRejectsError):
        run(path, made, tmp_path / "d", **TASK)


@pytest.mark.parametrize("entities", BAD_SPANS)
def test_so_are_spans_that_are_none(tmp_path, entities):
    made = models.token_classifier(tmp_path / "t", NAMES)
    lines = [{"text": "Ada in London", "entities": []}, {"text": "Ada in London", "entities": entities}]
    fields = {**TASK, "words_field": None, "label_field": "entities"}
    summary = run(
        write_jsonl(tmp_path / "c.jsonl", lines), made, tmp_path / "c", max_reject_fraction=0.5, **fields
    )
    assert dict(summary.rejects) == {"bad_spans": 1}


def test_flags_of_other_tasks_are_refused(tmp_path):
    made = models.token_classifier(tmp_path / "t", NAMES)
    path = corpus(tmp_path / "c.jsonl")
    with pytest.raises(UsageError, match="--messages_field has no meaning for token-classification"):
        run(path, made, tmp_path / "c", task="token-classification", messages_field="tokens")
    with pytest.raises(UsageError, match="--words_field has no meaning for causal-lm"):
        run(
            path,
            models.causal_teacher(tmp_path / "lm"),
            tmp_path / "c",
            task="causal-lm",
            words_field="tokens",
        )


def test_several_labels_a_word_are_refused(tmp_path):
    made = models.token_classifier(tmp_path / "t", NAMES)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    with pytest.raises(UsageError, match=r"gives each word several labels.*one label a word"):
        run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", **TASK)


def test_the_nightly_laws_and_a_student_from_the_commands(tmp_path):
    """Nothing new, a changed label, a deleted document; train, evaluate, and the student opens as transformers' own."""
    made = models.token_classifier(tmp_path / "t", NAMES)
    path, cache = tmp_path / "c.jsonl", tmp_path / "cache"
    lines = [{"id": i, "tokens": [*WORDS, str(i)], "tags": [*TAGS, "O"]} for i in range(24)]
    write_jsonl(path, lines)
    told = ("--corpus", path, "--teacher", made, "--task", "token-classification", "--words_field", "tokens")
    told += (
        "--label_field",
        "tags",
        "--id_field",
        "id",
        "--cache",
        cache,
        "--no_progress",
        "--max_length",
        "64",
    )
    assert teachonce_main("precompute", *told)[0] == 0
    before = len(read(Cache.open(cache)))
    assert teachonce_main("precompute", *told)[0] == 0
    assert (Cache.open(cache).version, len(read(Cache.open(cache)))) == (0, before)
    lines[0]["tags"] = ["O"] * 12
    write_jsonl(path, lines[:-1])
    assert teachonce_main("precompute", *told, "--replace", "--prune")[0] == 0
    assert len(read(Cache.open(cache))) == before * 23 // 24
    status, said = teachonce_main("verify", cache, "--teacher", made)
    assert status == 0, said
    config = {
        "model_type": "bert",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    (tmp_path / "student.json").write_text(json.dumps(config))
    out = ("--output_dir", tmp_path / "out")
    status, said = teachonce_main(
        *(
            "train",
            "--cache",
            cache,
            "--student",
            tmp_path / "student.json",
            *out,
            "--losses",
            "kl=1",
            "ce=0.5",
        ),
        *("--max_steps", "4", "--use_cpu", "--eval_fraction", "0.3", "--per_device_train_batch_size", "8"),
    )
    assert status == 0, said
    student = AUTO.from_pretrained(tmp_path / "out")
    assert tuple(student.config.id2label[i] for i in range(6)) == NAMES
    status, said = teachonce_main(
        "evaluate", "--cache", cache, "--student", tmp_path / "out", "--speed_seconds", "0"
    )
    assert status == 0, said
    for name in ("entity_f1", "teacher_entity_f1", "agreement", "accuracy"):
        assert name in said
