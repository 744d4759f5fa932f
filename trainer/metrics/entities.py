"""A token classifier's words against labels and teacher: by class, and by whole entities where classes are named so.

An entity is what seqeval's default mode makes of it (conlleval's rule): it ends where the type changes or a `B-`, `O`,
`S-` or an outside tag begins another; an `I-` that nothing goes before begins one. It is right if its type, first and
last word are. A text's windows are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from schemas.spec import Spec
from trainer.batches.batch import Batch
from trainer.losses.targets import NO_LABEL, SparseTargets, first_ids
from trainer.metrics.classes import scored, single_label
from trainer.metrics.tokens import Metrics

Entity = tuple[str, int, int]
"""Type, first and last word."""


def entity_metrics(model: Any, batches: Iterable[Batch], spec: Spec, device: torch.device) -> Metrics:
    """What `class_metrics` says of words, and precision, recall and F1 of entities, the student's and the teacher's; of
    texts that have labels. Without them where no class is named as a part of an entity."""
    seen, scores = list[tuple[Tensor, ...]](), list[tuple[Tensor, SparseTargets]]()
    for batch, logits in scored(model, batches, device):
        assert isinstance(batch.targets, SparseTargets)
        scores.append((logits, batch.targets))
        seen.append((_texts(batch), batch.targets.gold, logits.argmax(-1), first_ids(batch.targets)))
    found, names = single_label(scores), spec.label_names or ()
    if not has_entities(spec):
        return found
    counts = torch.zeros(2, 3, dtype=torch.int64)
    for texts, gold, *guesses in seen:
        for text in set(texts.tolist()):
            own = texts == text
            if (gold[own] == NO_LABEL).any():
                continue
            right = set(entities([names[i] for i in gold[own].tolist()]))
            for row, guess in enumerate(guesses):
                told = set(entities([names[i] for i in guess[own].tolist()]))
                counts[row] += torch.tensor([len(right & told), len(told), len(right)])
    for prefix, row in zip(("", "teacher_"), counts.tolist(), strict=True):
        found |= {f"{prefix}entity_{name}": value for name, value in _scores(*row).items()}
    return found


def has_entities(spec: Spec) -> bool:
    """Whether a class is named as a part of an entity."""
    return any(name[:2] in ("B-", "I-") for name in spec.label_names or ())


def _texts(batch: Batch) -> Tensor:
    """Which of the batch's examples each position is of."""
    return batch.row if batch.packed is None else batch.packed.example[batch.row, batch.token]


def _scores(right: int, told: int, known: int) -> dict[str, float]:
    return {
        "precision": right / told if told else 0.0,
        "recall": right / known if known else 0.0,
        "f1": 2 * right / (told + known) if told + known else 0.0,
    }


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities in a text's tags (`B-PER`, `I-PER`, `E-PER`, `S-PER`, `O`), in order."""
    found, begin = list[Entity](), 0
    before, kind_before = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, kind = tag[:1], tag[2:] or "_"
        if _ends(before, prefix, kind_before, kind):
            found.append((kind_before, begin, place - 1))
        if _begins(before, prefix, kind_before, kind):
            begin = place
        before, kind_before = prefix, kind
    return found


def _ends(before: str, prefix: str, kind_before: str, kind: str) -> bool:
    if before in "ES":
        return True
    if before in "BI" and prefix in "BSO":
        return True
    return before not in "O." and kind_before != kind


def _begins(before: str, prefix: str, kind_before: str, kind: str) -> bool:
    if prefix in "BS":
        return True
    if before in "ESO" and prefix in "EI":
        return True
    return prefix not in "O." and kind_before != kind
