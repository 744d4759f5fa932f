"""Words and their classes before any teacher runs: what is told at once, and what `inspect --corpus` shows."""

import json

import pytest
import transformers

from pipelines.tasks.tasks import TEACHER_TASKS
from schemas.errors import UsageError
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import run, write_jsonl
from tests.pipelines.job.test_token_classification import NAMES, TASK, corpus


def test_what_flags_and_teacher_alone_show_is_told_before_the_corpus_is_read(tmp_path):
    made = models.token_classifier(tmp_path / "t", ("PER", "LOC"))
    spans = write_jsonl(tmp_path / "s.jsonl", [{"text": "Ada in London", "entities": []}])
    fields = {**TASK, "words_field": None, "label_field": "entities"}
    with pytest.raises(UsageError, match=r"has no class O.*got PER, LOC.*--words_field"):
        run(spans, made, tmp_path / "c", **fields)
    with pytest.raises(UsageError, match=r"--words_field tokns: none of the first.*tokens"):
        run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", **(TASK | {"words_field": "tokns"}))
    path = made / "tokenizer.json"
    told = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            told
            | {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "use_regex": False,
                    "trim_offsets": True,
                }
            }
        )
    )
    with pytest.raises(UsageError, match=r"does not split a text into words.*--words_field"):
        run(spans, made, tmp_path / "c", **(fields | {"label_field": None}))


def test_inspect_shows_the_class_of_each_word(tmp_path):
    made = models.token_classifier(tmp_path / "t", NAMES)
    told = (
        "--teacher",
        made,
        "--task",
        "token-classification",
        "--words_field",
        "tokens",
        "--label_field",
        "tags",
    )
    status, said = teachonce_main("inspect", "--corpus", corpus(tmp_path / "c.jsonl", 1), *told)
    assert status == 0
    assert "[[A]]/B-PER" in said
    assert [said.count(f"]]/{name}") for name in NAMES] == [5, 2, 2, 1, 1, 1]
    spans = write_jsonl(
        tmp_path / "s.jsonl", [{"text": "Ada met", "tags": [{"start": 0, "end": 3, "label": "PER"}]}]
    )
    status, said = teachonce_main("inspect", "--corpus", spans, *told[:4], *told[6:], "--json")
    assert [one["label"] for one in json.loads(said)[0]["examples"][0]["text"] if one["supervised"]] == [
        "B-PER",
        "O",
    ]


def test_a_tokenizer_that_tells_no_characters_is_refused(monkeypatch):
    slow = type("Slow", (transformers.PythonBackend,), {"vocab_size": 3, "get_vocab": lambda _: {}})
    monkeypatch.setattr(slow, "_tokenize", lambda _, text, **__: list(text))
    monkeypatch.setattr(slow, "_convert_token_to_id", lambda *_: 1)
    with pytest.raises(UsageError, match=r"does not tell where its tokens stand.*Save a fast tokenizer"):
        TEACHER_TASKS["token-classification"].check(None, slow(eos_token="</s>"), {})
