"""Several students distilled into one: the merged caches of what they say are their ensemble, and teach a student."""

import json

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from schemas.cache import Cache
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents
from tests.several import LOOP, STUDENT, precompute

TASK = ("--task", "sequence-classification", "--label_field", "label")
MEMBERS = ("a", "b", "c")
FLAGS = [part for key, value in LOOP.items() for part in (f"--{key}", str(value).lower())]


def command(*words):
    status, said = teachonce_main(*words)
    assert status == 0, said
    return said


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher's cache, three students of it that began otherwise, and what each says of the same texts, merged."""
    place = tmp_path_factory.mktemp("ensemble")
    rows = [row | {"label": number % 3} for number, row in enumerate(documents(60))]
    precompute(place, "cache", rows, models.classifier(place / "teacher"), *TASK)
    (place / "student.json").write_text(json.dumps({**STUDENT, "num_attention_heads": 2}))
    for seed, name in enumerate(MEMBERS):
        told = ("--student", place / "student.json", "--losses", "kl=1", "--seed", str(seed))
        command("train", "--cache", place / "cache", *told, "--output_dir", place / name, *FLAGS)
        precompute(place, f"said-{name}", rows, place / name, *TASK)
    caches = [place / f"said-{name}" for name in MEMBERS]
    command("merge", *caches, "--out", place / "said", "--no_progress")
    return place


def distributions(folder, texts):
    """Of plain transformers, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    return np.stack(
        [
            model(**words(text, truncation=True, max_length=24, return_tensors="pt"))
            .logits[0]
            .softmax(-1)
            .detach()
            for text in texts
        ]
    )


def test_the_merged_cache_says_what_the_ensemble_says(place):
    said = Cache.open(place / "said")
    words = AutoTokenizer.from_pretrained(place / "a")
    seen = 0
    for rows in said.read_all():
        texts = [words.decode(rows.input_ids.row(r), skip_special_tokens=True) for r in range(len(rows))]
        mean = np.mean([distributions(place / name, texts) for name in MEMBERS], axis=0)
        found = np.zeros_like(mean)
        kept = rows.kept_ids.reshape(len(rows), -1)
        np.put_along_axis(found, kept, np.exp(rows.kept_logprobs()).reshape(len(rows), -1), 1)
        assert found == pytest.approx(mean, abs=0.04)
        seen += len(rows)
    assert seen == 60


def test_a_student_of_it_is_nearer_to_the_ensemble_than_it_was(place, capsys):
    told = ("--student", place / "student.json", "--losses", "kl=1", "--seed", "7")
    for name, steps in (("before", "0.0"), ("one", "3e-3")):
        flags = ("--output_dir", place / name, *FLAGS, "--learning_rate", steps, "--max_steps", "60")
        command("train", "--cache", place / "said", *told, *flags)
    capsys.readouterr()
    asked = ("--speed_seconds", "0", "--eval_fraction", "0.2", "--json")
    students = ("--students", place / "before", place / "one")
    found = json.loads(command("evaluate", "--cache", place / "said", *students, *asked))["students"]
    before, after = (one["metrics"]["kl_nats"] for one in found)
    assert after < before
    together = json.loads(
        command(
            *("evaluate", "--cache", place / "cache", "--ensemble", "mean", *asked),
            *("--students", *(place / name for name in MEMBERS)),
        )
    )
    assert together["ensemble"]["metrics"]["kl_nats"] >= 0
