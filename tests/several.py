"""Caches of tiny teachers of several tasks, which share a tokenizer, and the file of a student that learns them all."""

import json
from pathlib import Path

import yaml

from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents, write_jsonl

NAMES = ("O", "B-PER", "I-PER")
WORDS = ["Ada", "Lovelace", "met", "Charles", "Babbage", "in", "London"]
TAGS = ["B-PER", "I-PER", "O", "B-PER", "I-PER", "O", "O"]
STUDENT = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
LOOP = {
    "max_steps": 12,
    "eval_fraction": 0.2,
    "per_device_train_batch_size": 8,
    "logging_steps": 2,
    "save_steps": 4,
    "save_total_limit": 10,
    "learning_rate": 3e-3,
    "disable_tqdm": True,
    "use_cpu": True,
}


def precompute(place: Path, name: str, rows: list, teacher: Path, *more: str) -> None:
    path = write_jsonl(place / f"{name}.jsonl", rows)
    told = (
        "--corpus",
        path,
        "--teacher",
        teacher,
        "--cache",
        place / name,
        "--max_length",
        "24",
        "--no_progress",
    )
    status, said = teachonce_main("precompute", *told, *more)
    assert status == 0, said


def make_caches(place: Path) -> Path:
    """`topic`, `words` and `meaning`, and a student's config."""
    topics = [row | {"label": number % 3} for number, row in enumerate(documents(72))]
    made = models.classifier(place / "classifier")
    labelled = ("--label_field", "label")
    precompute(place, "topic", topics, made, "--task", "sequence-classification", *labelled)
    tagged = [
        {"tokens": [*WORDS[: 3 + number % 5], str(number)], "tags": [*TAGS[: 3 + number % 5], "O"]}
        for number in range(40)
    ]
    made = models.token_classifier(place / "tagger", NAMES)
    fields = ("--words_field", "tokens", "--label_field", "tags")
    precompute(place, "words", tagged, made, "--task", "token-classification", *fields)
    precompute(
        place, "meaning", documents(50), models.embedder(place / "embedder"), "--task", "feature-extraction"
    )
    (place / "student.json").write_text(json.dumps({**STUDENT, "num_attention_heads": 2}))
    return place


def tasks_file(place: Path, path: Path, out: Path, tasks: dict, **common: object) -> Path:
    """The file of `--tasks`: each task's own keys, its cache of its name."""
    own = {name: {"cache": str(place / name), **keys} for name, keys in tasks.items()}
    told = {"student": str(place / "student.json"), "output_dir": str(out), **LOOP, **common, "tasks": own}
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    return path
