"""Entities are seqeval's (1.2.2, its default; `seqeval.json` holds what it gave of random tags), counted by text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.synthetic import SPECS, random_rows
from trainer.batches.collate import Collation
from trainer.metrics.entities import _scores, entities, entity_metrics

SEQEVAL = json.loads(Path(__file__).with_name("seqeval.json").read_text())


@pytest.mark.parametrize(("tags", "expected"), SEQEVAL["entities"])
def test_the_entities_of_any_tags(tags: list[str], expected: list[list[Any]]) -> None:
    assert entities(tags) == [tuple(one) for one in expected]


def test_the_scores_of_a_corpus() -> None:
    true, guessed = ([set(map(repr, entities(tags))) for tags in SEQEVAL[name]] for name in ("true", "pred"))
    right = sum(len(a & b) for a, b in zip(true, guessed, strict=True))
    found = _scores(right, sum(map(len, guessed)), sum(map(len, true)))
    assert list(found.values()) == pytest.approx(SEQEVAL["scores"])
    assert _scores(0, 0, 0) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


class Guesser(torch.nn.Module):
    """Says of each token the class that its id has modulo the number of classes."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids % 5, 5).float())


def test_they_are_counted_text_by_text_where_there_are_labels() -> None:
    spec = SPECS["words"]
    rows = random_rows(spec, 60).rows
    collation = Collation(student_vocab=spec.vocab_size, pad_id=0)
    batches = [collation.batch(rows.take(part)) for part in np.array_split(np.arange(60), 7)]
    found = entity_metrics(Guesser(), batches, spec, torch.device("cpu"))
    names, counts = spec.label_names, np.zeros((2, 3), int)
    position, best = rows.position_offsets, rows.kept_ids[rows.kept_offsets[:-1]]
    labels = rows.ragged("labels")
    for row in range(60):
        if labels.validity[row]:
            own = slice(position[row], position[row + 1])
            guessed = rows.input_ids.row(row)[rows.position_index()[own]] % 5
            right = set(entities([names[i] for i in labels.row(row)]))
            for place, ids in enumerate((guessed, best[own])):
                told = set(entities([names[i] for i in ids]))
                counts[place] += [len(right & told), len(told), len(right)]
    for prefix, (right, told, known) in zip(("", "teacher_"), counts, strict=True):
        assert found[f"{prefix}entity_precision"] == pytest.approx(right / told)
        assert found[f"{prefix}entity_recall"] == pytest.approx(right / known)
        assert found[f"{prefix}entity_f1"] == pytest.approx(2 * right / (told + known))
    assert 0 < counts[0, 0] < counts[0, 1]
    plain = entity_metrics(Guesser(), batches, replace(spec, label_names=tuple("abcde")), torch.device("cpu"))
    assert not any("entity" in name for name in plain)
    assert plain["accuracy"] == found["accuracy"]
