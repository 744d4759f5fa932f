"""Whose a checkpoint is: a number drawn when a run begins, and all that decides its weights."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from schemas.cache import Cache
from trainer.checkpoints.records import Record
from trainer.models.weights import weights_hash
from trainer.students.students import Student
from trainer.training.arguments import StudentArguments
from trainer.training.settings import decide_weights

if TYPE_CHECKING:
    from trainer.training.training import TrainConfig


def new_run() -> str:
    """The number of a run that begins."""
    return uuid.uuid4().hex


def stream_seed(arguments: StudentArguments) -> int:
    """What decides the order of rows."""
    return int(arguments.seed if arguments.data_seed is None else arguments.data_seed)


def make_record(
    config: TrainConfig, arguments: StudentArguments, cache: Cache, student: Student, run: str
) -> Record:
    """What a run is told, to stand beside all that it saves."""
    from_scratch = config.student.endswith(".json")
    return Record(
        cache=config.cache,
        header_hash=cache.header.to_json()["hash"],
        version=cache.version,
        live_hash=cache.record.live_hash,
        seed=stream_seed(arguments),
        batch_size=arguments.per_device_train_batch_size,
        eval_fraction=config.eval_fraction,
        shuffle_row_groups=config.shuffle_row_groups,
        batches_a_step=arguments.world_size * arguments.gradient_accumulation_steps,
        ranks=arguments.world_size,
        student=config.student,
        lora={} if config.adapters is None else config.adapters.to_json(),
        label_names=list(cache.spec.label_names or ()),
        student_weights="" if from_scratch else weights_hash(student.model),
        losses={str(name): weight for name, weight in config.objective.weights.items()},
        temperature=config.temperature,
        feature_loss=config.feature_loss,
        batching=config.batching,
        settings=decide_weights(arguments),
        run=run,
    )
