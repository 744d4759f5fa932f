"""`compare`: several students on the same held-out rows, and what they are together.

The rows are those that no student was trained on: of several held-out fractions the least, which lies inside the
others. With fitted weights the half that they are fitted on is measured for nobody, so that the columns compare.
All students are opened before the first is measured, and stand in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from schemas.errors import StudentError, UsageError
from trainer.batches.collate import Collation
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.ensembles import Ensemble, Member, Part, check_ensemble, fit_weights
from trainer.evaluation.evaluation import Evaluated, Ground, measured, metrics_of, open_ground, teacher_size
from trainer.evaluation.held_out import HeldOut
from trainer.evaluation.speed import ModelSize, model_size
from trainer.losses.aligned_targets import AlignedTargets
from trainer.metrics.tokens import Metrics
from trainer.stream.where import Where
from trainer.students.opening import open_config
from trainer.students.student import Student
from trainer.students.students import open_trained

_OF_DISTRIBUTIONS = ("kl_nats", "cross_entropy_with_teacher_nats", "cross_entropy_nats", "roc_auc")
"""Metrics that votes have no meaning for."""
FITTED, MEASURED = 0, 1
"""The halves of the held-out documents, where weights are fitted."""


@dataclass(frozen=True, kw_only=True)
class Ensembled:
    """What the students are together."""

    how: str
    weights: dict[str, float] | None
    """Of each student, where they have some."""
    fitted_rows: int
    """Held-out rows that weights were fitted on, and nothing was measured on."""
    metrics: Metrics
    model: ModelSize


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Several students on the same rows."""

    students: tuple[Evaluated, ...]
    """In the order in which they were named; the first one's `models` has the teacher, where one was named."""
    ensemble: Ensembled | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def compare(config: EvaluateConfig) -> Compared:
    """Measures `config.students` on the same held-out rows; and, where that is asked for, their ensemble.

    Raises:
        UsageError, StudentError, CacheError: as `evaluate`; or no ensemble can be made of these students.
    """
    if not config.students:
        raise ValueError("one student is measured by evaluate(config)")
    is_fitted = config.ensemble == "fitted"
    ground = open_ground(config, config.students, MEASURED if is_fitted else None)
    if config.ensemble is not None:
        check_ensemble(config.ensemble, ground.cache.spec)
    if config.teacher is not None:
        open_config(config.teacher)
    names, alone = short_names(config.students), config.batch_size == 1
    students = [open_trained(named, ground.cache, alone=alone) for named in config.students]
    teacher, found = teacher_size(ground), list[Evaluated]()
    for named, name, student in zip(config.students, names, students, strict=True):
        found.append(measured(ground, named, student, name, None if found else teacher))
    ensemble = None if config.ensemble is None else _ensembled(ground, names, students)
    return Compared(students=tuple(found), ensemble=ensemble)


def short_names(students: Sequence[str]) -> list[str]:
    """Each folder's own name, where those differ; else as they were named."""
    names = [Path(student).name for student in students]
    return names if len(set(names)) == len(names) else list(students)


def _ensembled(ground: Ground, names: Sequence[str], students: Sequence[Student]) -> Ensembled:
    how = str(ground.config.ensemble)
    for name, student in zip(names, students, strict=True):
        if student.reader is not None:
            raise StudentError(
                "students of an ensemble read the same tokens",
                where=name,
                got="a tokenizer of its own",
                do="Compare them without --ensemble",
            )
    members = [Member(student.model, student.pad_id, _takes(student)) for student in students]
    ensemble = Ensemble(members, ground.cache.spec.score, how).eval().to(ground.device)
    collation = _together([student.collation() for student in students])
    fitted = _fit(ground, ensemble, collation) if how == "fitted" else 0
    metrics = metrics_of(ground, ensemble, students[0].tokenizer, collation)
    if how == "vote":
        metrics = {name: value for name, value in metrics.items() if name not in _OF_DISTRIBUTIONS}
    weights, seconds = dict(zip(names, ensemble.weights.tolist(), strict=True)), ground.config.speed_seconds
    return Ensembled(
        how=how,
        weights=None if how == "vote" else weights,
        fitted_rows=fitted,
        metrics=metrics,
        model=model_size("ensemble", ensemble, collation, ground.held_out, seconds=seconds),
    )


def _takes(student: Student) -> frozenset[str]:
    named = {"token_type_ids": student.takes_token_types, "features": bool(student.features)}
    return frozenset(name for name, takes in named.items() if takes)


def _together(collations: Sequence[Collation]) -> Collation:
    """What all members can be fed from: token types where one takes them, no id that one lacks."""
    reading = next((one for one in collations if one.reads_features), None)
    first = collations[0]
    return replace(
        first,
        features=first.features if reading is None else reading.features,
        reads_features=reading is not None,
        pass_token_types=any(one.pass_token_types for one in collations),
        embeddings=_least([one.embeddings for one in collations]),
        token_types=_least([one.token_types for one in collations if one.pass_token_types]),
    )


def _least(numbers: Sequence[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


@torch.no_grad()
def _fit(ground: Ground, ensemble: Ensemble, collation: Collation) -> int:
    """Gives the ensemble the weights that suit the other half; returns how many rows that has."""
    fraction, size = ground.fraction, ground.config.batch_size
    where = Where.parse(ground.config.where)
    half = HeldOut(cache=ground.cache, eval_fraction=fraction, batch_size=size, where=where, half=FITTED)
    parts, rows = list[Part](), 0
    for batch in half.batches(collation):
        on_device = batch.to(ground.device)
        logits = ensemble.each(**on_device.model_inputs)
        own = torch.stack([on_device.at_positions(one) for one in logits])
        assert not isinstance(batch.targets, AlignedTargets)
        parts.append((own.cpu(), batch.targets))
        rows += batch.num_rows
    if not parts or next(ground.held_out.rows(), None) is None:
        raise UsageError(
            "too few documents are held out to fit weights on half of them",
            where=ground.cache.storage.root,
            do="Name a larger --eval_fraction, also to train the students, or use --ensemble mean",
        )
    with torch.enable_grad():
        ensemble.weights.copy_(fit_weights(parts, ground.cache.spec.score))
    return rows
