"""`evaluate`: a student on the held-out part of a cache, beside what the teacher said of it.

The teacher's own cross entropy comes from the cache; only its speed needs the teacher itself. Both speeds are taken
on the same batches, forward only, in float32, on the device that is named with them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from schemas.cache import Cache
from schemas.errors import UsageError, one_line
from schemas.identity import DEFAULT_EVAL_FRACTION
from trainer.batches.collate import Collation
from trainer.checkpoints.records import Record
from trainer.evaluation.closer import look_closer
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.held_out import HeldOut
from trainer.evaluation.onnx_export import Exported, check_export, export_onnx
from trainer.evaluation.saving import check_place, save_evaluation
from trainer.evaluation.speed import ModelSize, device_name, model_size
from trainer.losses.worth import knows_entropy
from trainer.metrics.tokens import Metrics
from trainer.models.embeddings import Embedder
from trainer.stream.where import Where
from trainer.students.opening import open_config
from trainer.students.student import Student
from trainer.students.students import open_trained
from trainer.tasks.student_task import Measured
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.local_cache import local_copies


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Everything that was measured."""

    task: str
    student: str
    """As it was named."""
    cache: str
    cache_version: int
    eval_fraction: float
    where: list[str]
    """Which of the held-out rows were measured on; all where nothing is said."""
    classes: tuple[str, ...]
    """Their names, in the order of a confusion matrix; none where the teacher names none."""
    metrics: Metrics
    models: tuple[ModelSize, ...]
    """The student, and the teacher where one was named."""
    device: str
    batch_size: int
    export: Exported | None = None
    """What was written of it for other runtimes, where that was asked for."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class Ground(NamedTuple):
    """What students are measured on, and where."""

    cache: Cache
    held_out: HeldOut
    fraction: float
    device: torch.device
    config: EvaluateConfig


def evaluate(config: EvaluateConfig) -> Evaluated:
    """Measures a student on the documents that a cache holds out.

    Raises:
        UsageError: a model or path that cannot be opened, a filter that means nothing here, or no row is left.
        StudentError: the student does not fit the cache.
        CacheError: the cache cannot be read.
    """
    if config.student is None:
        raise ValueError("several students are compared by compare(config)")
    seal = check_place(config.student) if config.save else ""
    check_export(config.student, config.export)
    ground = open_ground(config, [config.student])
    if config.teacher is not None:
        open_config(config.teacher)
    student = open_trained(config.student, ground.cache, alone=config.batch_size == 1)
    teacher = teacher_size(ground)
    found = measured(ground, config.student, student, "student", teacher)
    look = asked_of(ground, student.model, student.tokenizer, student.collation(), student.embedder)
    if config.save:
        closer = look_closer(look, STUDENT_TASKS[ground.cache.spec.task].run, config.batch_size)
        save_evaluation(config.student, seal, ground.cache, found.to_json(), closer)
    return found if config.export is None else replace(found, export=export_onnx(config.student, look))


def open_ground(config: EvaluateConfig, students: list[str], half: int | None = None) -> Ground:
    """The cache, and what of it no student was trained on; or one half of that.

    Raises:
        UsageError: a path or device that cannot be used, or no row is left.
    """
    copies = local_copies(config.local_cache, config.local_cache_gb)
    cache = Cache.open(config.cache, config.cache_version, copies=copies)
    fraction = min(_fraction(config, student) for student in students)
    device = usable_device(config.device)
    where = Where.parse(config.where)
    size = config.batch_size
    held_out = HeldOut(cache=cache, eval_fraction=fraction, batch_size=size, where=where, half=half)
    return Ground(cache, held_out, fraction, device, config)


def measured(
    ground: Ground, named: str, student: Student, name: str, teacher: ModelSize | None = None
) -> Evaluated:
    """A student's numbers; `name` is its own in the table of models."""
    cache, config = ground.cache, ground.config
    student.model.to(ground.device)
    collation, seconds = student.collation(), config.speed_seconds
    metrics = metrics_of(ground, student.model, student.tokenizer, collation, student.embedder)
    own = model_size(name, student.model, collation, ground.held_out, seconds=seconds)
    return Evaluated(
        task=cache.spec.task,
        student=named,
        cache=config.cache,
        cache_version=cache.version,
        eval_fraction=ground.fraction,
        where=config.where,
        classes=cache.spec.label_names,
        metrics=metrics,
        models=(own,) if teacher is None else (own, teacher),
        device=device_name(ground.device),
        batch_size=config.batch_size,
    )


def metrics_of(
    ground: Ground, model: Any, tokenizer: Any, collation: Collation, embedder: Embedder | None = None
) -> Metrics:
    """The task's metrics of a model that is fed so."""
    return metrics_on(asked_of(ground, model, tokenizer, collation, embedder))


def asked_of(
    ground: Ground, model: Any, tokenizer: Any, collation: Collation, embedder: Embedder | None = None
) -> Measured:
    """What is to be measured of a model that is fed so."""
    return Measured(
        model=model,
        tokenizer=tokenizer,
        spec=ground.cache.spec,
        held_out=ground.held_out,
        collation=collation,
        device=ground.device,
        embedder=embedder,
    )


def metrics_on(measured: Measured) -> Metrics:
    """The same of a model that is on the device, in evaluation mode."""
    spec, student_vocab = measured.spec, measured.collation.student_vocab
    metrics = STUDENT_TASKS[spec.task].measure(measured)
    has_all = student_vocab >= spec.vocab_size
    if "kl_nats" in metrics and not knows_entropy(spec, 1.0, student_has_all=has_all):
        metrics["cross_entropy_with_teacher_nats"] = metrics.pop("kl_nats")
    return metrics


def teacher_size(ground: Ground) -> ModelSize | None:
    """Measured before the student, so that a teacher that cannot be opened costs nothing; let go of at once."""
    config = ground.config
    if config.teacher is None:
        return None
    teacher = open_trained(config.teacher, ground.cache, alone=config.batch_size == 1)
    model = teacher.model.to(ground.device)
    seconds = config.speed_seconds
    return model_size("teacher", model, teacher.collation(), ground.held_out, seconds=seconds)


def usable_device(name: str | None) -> torch.device:
    """The device of that name, after a number was put there; without a name, CUDA where there is one.

    Raises:
        UsageError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1).to(device).item()
    except Exception as error:
        raise UsageError(
            "--device cannot be used on this machine",
            got=f"{name} ({one_line(error).rstrip('.')})",
            do="Name another, for instance cpu",
        ) from error
    return device


def _fraction(config: EvaluateConfig, student: str) -> float:
    """The fraction asked for, else the one that the student was trained with."""
    if config.eval_fraction is not None:
        return config.eval_fraction
    record = Record.load(student)
    fraction = DEFAULT_EVAL_FRACTION if record is None else record.eval_fraction
    if fraction == 0:
        raise UsageError(
            "the student was trained on every document: nothing is held out",
            where=student,
            do="Name an --eval_fraction to measure it on what it has seen",
        )
    return fraction
