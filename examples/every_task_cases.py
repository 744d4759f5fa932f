"""The cases of `every_task.py`: each task's corpus of real text, its teacher, and the students that are compared."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from examples import every_task_teachers as teachers
from examples.every_task_teachers import Rows

CHOICES = 8
"""Passages of a query."""
MARKS = (
    "application",
    "command",
    "filename",
    "function",
    "literal",
    "option",
    "productname",
    "type",
    "varname",
)
TAGS = ["O", *(f"{begins}-{mark}" for mark in MARKS for begins in "BI")]


class Student(NamedTuple):
    """How one is made: flags of `teachonce train`, and its steps beside the case's."""

    flags: tuple[str, ...]
    times: int = 1
    """0: one step that changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One task: where its rows come from, how its teacher is made, and which students are compared."""

    task: str
    rows: Callable[[Path], list[dict[str, Any]]]
    teacher: Callable[[Path, Path, Rows, int], None]
    precompute: tuple[str, ...] = ()
    students: dict[str, Student]
    metrics: tuple[str, ...]
    size: int = 1_000
    """Documents of the students' corpus."""
    steps: int = 100
    """Of each student."""
    teacher_steps: int = 250
    config: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def distinct(rows: Rows, key: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """The first of those that read alike."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(" ".join(key(row).lower().split()), row)
    return [*found.values()]


def entity_rows(data: Path) -> list[dict[str, Any]]:
    short = [row for row in read(data / "terms.jsonl") if len(row["tokens"]) <= 25]
    return distinct(short, lambda row: " ".join(row["tokens"]))


def answer_rows(data: Path) -> list[dict[str, Any]]:
    """Definition, sentence of use, and where in it one of the meaning's words stands, an ending included."""
    rows = []
    for sense in read(data / "senses.jsonl"):
        for sentence in sense["sentences"]:
            found = (
                re.search(rf"\b{re.escape(word)}\w{{0,3}}\b", sentence, re.IGNORECASE)
                for word in sense["words"]
            )
            place = next((one for one in found if one), None)
            if place and len(sentence.split()) > 4:
                right = {"text": [place[0]], "answer_start": [place.start()]}
                rows.append({"question": sense["definition"], "context": sentence, "answers": right})
    unlike = distinct(rows, lambda row: str(row["context"]))
    return distinct(unlike, lambda row: str(row["question"]))


def list_rows(data: Path) -> list[dict[str, Any]]:
    """Definition, a word that has it, and seven of other meanings of its class."""
    chance, senses = (
        random.Random(0),
        distinct(read(data / "senses.jsonl"), lambda row: str(row["definition"])),
    )
    of_class: dict[str, list[str]] = {}
    for sense in senses:
        of_class.setdefault(sense["label"], []).append(sense["words"][0])
    rows = []
    for sense in senses:
        wrong = chance.sample(of_class[sense["label"]], CHOICES - 1)
        docs = [sense["words"][0], *(word for word in wrong if word not in sense["words"])]
        order = chance.sample(range(CHOICES), CHOICES)
        if len(docs) == CHOICES:
            label = [int(place == 0) for place in order]
            rows.append(
                {"text": sense["definition"], "docs": [docs[place] for place in order], "label": label}
            )
    return rows


def definition_rows(data: Path) -> list[dict[str, Any]]:
    named = [{"text": row["definition"], "class": row["label"]} for row in read(data / "senses.jsonl")]
    return distinct(named, lambda row: str(row["text"]))


def sound_rows(data: Path) -> list[dict[str, Any]]:
    return distinct(read(data / "pronunciations.jsonl"), lambda row: str(row["text"]))


def untrained(data: Path, folder: Path, rows: Rows, steps: int) -> None:
    """The package's model itself."""
    folder.symlink_to((data / "minilm").resolve(), target_is_directory=True)


MANY = ("--per_device_train_batch_size", "32")
SHRUNK = ("--student", "shrink:layers=2", "--teacher", "teacher", "--learning_rate", "3e-4", "--losses")
THREE = (*MANY, "--student", "shrink:layers=3", "--teacher", "teacher", "--losses")
ALIKE = ("feature=1,distance=cosine", "similarity=100")
FEW = ("--per_device_train_batch_size", "3")
UNTAUGHT = ("--learning_rate", "1e-12")
SCRATCH = (*MANY, "--student", "student.json", "--learning_rate", "5e-3", "--losses")
STATIC = (*MANY, "--student", "static:256", "--losses", *ALIKE)
CASES = {
    "entities": Case(
        task="token-classification",
        rows=entity_rows,
        teacher=teachers.minilm(
            transformers.AutoModelForTokenClassification,
            teachers.entities,
            id2label=dict(enumerate(TAGS)),
            label2id={name: place for place, name in enumerate(TAGS)},
        ),
        precompute=("--words_field", "tokens", "--label_field", "tags", "--max_length", "64"),
        students={"with": Student((*SHRUNK, "kl=1", "ce=0.5")), "without": Student((*SHRUNK, "ce=1"))},
        metrics=("entity_f1", "accuracy"),
    ),
    "answers": Case(
        task="question-answering",
        rows=answer_rows,
        teacher=teachers.minilm(transformers.AutoModelForQuestionAnswering, teachers.answers),
        precompute=("--text_field", "question", "--text_pair_field", "context", "--label_field", "answers",
                    "--max_length", "96", "--stride", "16", "--always_answerable"),
        students={"with": Student((*SHRUNK, "kl=1", "ce=0.5")), "without": Student((*SHRUNK, "ce=1"))},
        metrics=("exact_match", "f1"),
    ),
    "sequences": Case(
        task="seq2seq-lm",
        rows=sound_rows,
        teacher=teachers.speller,
        precompute=("--target_field", "target", "--keep", "all"),
        students={
            "with": Student((*SCRATCH, "kl=1")),
            "without": Student((*SCRATCH, "ce=1")),
        },
        metrics=("cross_entropy_nats", "top1_accuracy", "bleu", "chrf"),
        size=6_000,
        steps=600,
        teacher_steps=800,
        config=teachers.SMALL_T5,
    ),
    "embeddings": Case(
        task="feature-extraction",
        rows=definition_rows,
        teacher=untrained,
        precompute=("--max_length", "64"),
        students={
            "3 layers, with": Student((*THREE, *ALIKE, "--learning_rate", "3e-4")),
            "3 layers, without": Student((*THREE, *ALIKE, *UNTAUGHT), times=0),
            "static, with": Student((*STATIC, "--learning_rate", "3e-2"), times=5),
            "static, without": Student((*STATIC, *UNTAUGHT), times=0),
        },
        metrics=("spearman", "recall_at_1", "recall_at_10", "ndcg_at_10"),
        size=3_000,
        steps=200,
    ),
    "reranking": Case(
        task="pair-score",
        rows=list_rows,
        teacher=teachers.minilm(transformers.AutoModelForSequenceClassification, teachers.lists, size=2, num_labels=1),
        precompute=("--passages_field", "docs", "--label_field", "label", "--max_length", "48"),
        students={
            "with": Student((*SHRUNK, "margin_mse=0.1", "listwise_kl=1", *FEW)),
            "without": Student((*SHRUNK, "ce=1", *FEW)),
        },
        metrics=("ndcg", "ndcg_with_teacher"),
        size=300,
    ),
    "masks": Case(
        task="masked-lm",
        rows=definition_rows,
        teacher=teachers.minilm(transformers.AutoModelForMaskedLM, teachers.hidden_words),
        precompute=("--max_length", "48", "--views", "2", "--temperatures", "1", "2", "--features", "mean:-1"),
        students={
            "with": Student((*SHRUNK, "kl=5", "ce=2", "feature=1,distance=cosine", "--temperature", "2")),
            "without": Student((*SHRUNK, "ce=1")),
        },
        metrics=("cross_entropy_nats", "top1_accuracy"),
    ),
}  # fmt: skip
