"""`evaluate`: a student on the held-out part of a cache, beside what the teacher said of it.

The teacher's own cross entropy comes from the cache; only its speed needs the teacher itself. Both speeds are taken
on the same batches, forward only, in float32, on the device that is named with them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from schemas.cache import Cache
from schemas.cli.arguments import Repeatable
from schemas.errors import UsageError, one_line
from schemas.identity import DEFAULT_EVAL_FRACTION
from schemas.rows.rows import Rows
from trainer.batches.collate import Batch, Collation
from trainer.batches.pool import Pool
from trainer.checkpoints.records import Record
from trainer.losses.worth import knows_entropy
from trainer.metrics.tokens import Metrics
from trainer.stream.order import by_length
from trainer.stream.replay import BATCHES_AHEAD, Ahead
from trainer.stream.side import Side
from trainer.stream.where import Where
from trainer.students.opening import open_config
from trainer.students.students import Student, open_trained
from trainer.tasks.student_task import Measured
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.local_cache import GB_DEFAULT, GB_HELP, HELP, check_flags, local_copies


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which student to measure, and on what."""

    cache: str = field(metadata={"help": "The cache: a folder, s3://, gs:// or az://."})
    student: str = field(
        metadata={"help": "A trained student's folder (an adapter's is opened with its base), or a hub name."}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "The teacher's folder, to measure its size and speed beside."}
    )
    eval_fraction: float | None = field(
        default=None, metadata={"help": "Share of documents held out. [what the student was trained with]"}
    )
    where: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Only held-out rows that meet all of these, as length<=512; names and operators are those of "
            "train. [all, whatever the student was trained on]",
            "action": Repeatable,
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Rows of a batch."})
    cache_version: int | None = field(default=None, metadata={"help": "Version of the cache. [newest]"})
    speed_seconds: float = field(
        default=3.0, metadata={"help": "Least time to measure each model's speed for; 0 leaves it out."}
    )
    device: str | None = field(default=None, metadata={"help": "cuda, cpu, ... [cuda where there is one]"})
    local_cache: str | None = field(default=None, metadata={"help": HELP})
    local_cache_gb: float = field(default=GB_DEFAULT, metadata={"help": GB_HELP})

    def __post_init__(self) -> None:
        if self.eval_fraction is not None and not 0 < self.eval_fraction < 1:
            raise UsageError("--eval_fraction must be between 0 and 1", got=self.eval_fraction)
        if self.batch_size < 1:
            raise UsageError("--batch_size must be at least 1", got=self.batch_size)
        if self.speed_seconds < 0:
            raise UsageError("--speed_seconds cannot be negative", got=self.speed_seconds)
        Where.parse(self.where)
        check_flags(self.local_cache, self.local_cache_gb, [self.cache])


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """How large and how fast a model is."""

    name: str
    parameters: int
    megabytes: float
    """Of the weights in float32, 10^6 bytes."""
    tokens_per_second: float | None
    """Forward only, padding not counted."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Everything that was measured."""

    task: str
    cache_version: int
    eval_fraction: float
    where: list[str]
    """Which of the held-out rows were measured on; all where nothing is said."""
    metrics: Metrics
    models: tuple[ModelSize, ...]
    """The student, and the teacher where one was named."""
    device: str
    batch_size: int

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def evaluate(config: EvaluateConfig) -> Evaluated:
    """Measures a student on the documents that a cache holds out.

    Raises:
        UsageError: a model or path that cannot be opened, a filter that means nothing here, or no row is left.
        StudentError: the student does not fit the cache.
        CacheError: the cache cannot be read.
    """
    cache = Cache.open(
        config.cache, config.cache_version, copies=local_copies(config.local_cache, config.local_cache_gb)
    )
    fraction = _fraction(config)
    device = usable_device(config.device)
    where = Where.parse(config.where)
    held_out = HeldOut(cache=cache, eval_fraction=fraction, batch_size=config.batch_size, where=where)
    if config.teacher is not None:
        open_config(config.teacher)
    student = open_trained(config.student, cache, alone=config.batch_size == 1)
    others = (
        [] if config.teacher is None else [_teacher_size(config.teacher, cache, held_out, config, device)]
    )
    student.model.to(device)
    metrics = STUDENT_TASKS[cache.spec.task].measure(
        Measured(
            model=student.model,
            tokenizer=student.tokenizer,
            spec=cache.spec,
            held_out=held_out,
            collation=student.collation(),
            device=device,
            embedder=student.embedder,
        )
    )
    has_all = student.vocab_size >= cache.spec.vocab_size
    if "kl_nats" in metrics and not knows_entropy(cache.spec, 1.0, student_has_all=has_all):
        metrics["cross_entropy_with_teacher_nats"] = metrics.pop("kl_nats")
    models = [_size("student", student, held_out, config, device), *others]
    return Evaluated(
        task=cache.spec.task,
        cache_version=cache.version,
        eval_fraction=fraction,
        where=config.where,
        metrics=metrics,
        models=tuple(models),
        device=_device_name(device),
        batch_size=config.batch_size,
    )


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


def _fraction(config: EvaluateConfig) -> float:
    """The fraction asked for, else the one that the student was trained with."""
    if config.eval_fraction is not None:
        return config.eval_fraction
    record = Record.load(config.student)
    fraction = DEFAULT_EVAL_FRACTION if record is None else record.eval_fraction
    if fraction == 0:
        raise UsageError(
            "the student was trained on every document: nothing is held out",
            where=config.student,
            do="Name an --eval_fraction to measure it on what it has seen",
        )
    return fraction


class HeldOut:
    """The held-out rows of a cache, in the order of the cache, a row group at a time."""

    def __init__(
        self, *, cache: Cache, eval_fraction: float, batch_size: int, where: Where | None = None
    ) -> None:
        if where is not None:
            where.check(cache.spec)
        self._side = Side(cache=cache, eval_fraction=eval_fraction, is_eval=True, where=where)
        counts = self._side.counts()
        self._counts = {group: int(counts[group]) for group in np.flatnonzero(counts).tolist()}
        self._batch_size = batch_size
        if not self._counts:
            raise UsageError(
                "no document is held out" if where is None else f"no held-out row meets --where {where}",
                where=cache.storage.root,
                got=f"eval_fraction {eval_fraction:g} of {cache.totals.examples} rows",
                do="Name a larger --eval_fraction, also to train the student, which else has seen what is added; or "
                "precompute more documents",
            )

    def rows(self) -> Iterator[Rows]:
        """The held-out rows of each row group that has any."""
        for group, count in self._counts.items():
            rows, chosen = self._side.counted(group, count)
            yield rows.take(chosen)

    def batches(self, collation: Collation) -> Iterator[Batch]:
        """All batches, once, collated ahead in a thread; of similar lengths within a row group."""
        ahead = Ahead(lambda: self._collated(collation), BATCHES_AHEAD)
        try:
            yield from ahead
        finally:
            ahead.close()

    def _collated(self, collation: Collation) -> Iterator[Batch]:
        for rows in self.rows():
            pool = Pool([(rows, np.arange(len(rows)))])
            yield from collation.each(pool, by_length(pool.lengths, self._batch_size))


def _teacher_size(
    folder: str, cache: Cache, held_out: HeldOut, config: EvaluateConfig, device: torch.device
) -> ModelSize:
    """Measured before the student, so that a teacher that cannot be opened costs nothing; let go of at once."""
    teacher = open_trained(folder, cache, alone=config.batch_size == 1)
    return _size("teacher", teacher, held_out, config, device)


def _size(
    name: str, student: Student, held_out: HeldOut, config: EvaluateConfig, device: torch.device
) -> ModelSize:
    model = student.model.to(device)
    parameters = list(model.parameters())
    speed = None
    if config.speed_seconds:
        speed = tokens_per_second(model, held_out.batches(student.collation()), config.speed_seconds, device)
    return ModelSize(
        name=name,
        parameters=sum(p.numel() for p in parameters),
        megabytes=sum(p.numel() * p.element_size() for p in parameters) / 1e6,
        tokens_per_second=speed,
    )


@torch.no_grad()
def tokens_per_second(
    model: Any, batches: Iterator[Batch], seconds: float, device: torch.device, most: int = 16
) -> float:
    """Tokens (without padding) that the model's own forward takes in a second, over at most `most` batches, cycled.

    One round of all of them comes first, unmeasured.
    """
    chosen = [batch.to(device) for batch, _ in zip(batches, range(most), strict=False)]
    tokens = [batch.num_tokens for batch in chosen]
    for batch in chosen:
        model(**batch.model_inputs)
    _wait(device)
    seen, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch, count in zip(chosen, tokens, strict=True):
            model(**batch.model_inputs)
            seen += count
        _wait(device)
    return seen / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
