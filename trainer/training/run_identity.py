"""Whose a checkpoint is: a number drawn when a run begins, and all that decides its weights."""

from __future__ import annotations

import hashlib
import uuid

from schemas.cache import Cache
from trainer.checkpoints.records import Record
from trainer.models.weights import weights_hash
from trainer.stream.side import Side
from trainer.stream.where import Where
from trainer.students.student import Student
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.settings import decide_weights
from trainer.training.streams import Opened, global_batch, stream_seed


def new_run() -> str:
    """The number of a run that begins."""
    return uuid.uuid4().hex


def make_record(
    config: TrainConfig, arguments: StudentArguments, opened: Opened, student: Student, run: str
) -> Record:
    """What a run is told, to stand beside all that it saves."""
    from_scratch = config.student.endswith(".json")
    return Record(
        caches=[
            {
                "path": path,
                "weight": weight,
                "header_hash": cache.header.to_json()["hash"],
                "version": cache.version,
                "live_hash": cache.record.live_hash,
                "row_counts": _counts_hash(config, cache),
            }
            for (path, weight), cache in zip(config.sources.items(), opened.caches, strict=True)
        ],
        seed=stream_seed(arguments),
        global_batch=global_batch(arguments),
        lanes=opened.lanes,
        eval_fraction=config.eval_fraction,
        shuffle_row_groups=config.shuffle_row_groups,
        where=list(config.where),
        student=config.student,
        lora={} if config.adapters is None else config.adapters.to_json(),
        label_names=list(opened.first.spec.label_names or ()),
        student_weights="" if from_scratch else weights_hash(student.model),
        losses={str(name): weight for name, weight in config.objective.weights.items()},
        temperature=config.objective.temperature,
        feature_loss=config.objective.feature_loss,
        batching=config.batching,
        settings={**decide_weights(arguments), **config.objective.told, **_joined(config)},
        run=run,
    )


def _joined(config: TrainConfig) -> dict[str, str]:
    """Nothing of a run whose caches are not joined."""
    told = {"join": config.join, "join pick": config.join_pick}
    return {name: value for name, value in told.items() if value is not None}


def _counts_hash(config: TrainConfig, cache: Cache) -> str:
    where = Where.parse(config.where)
    side = Side(cache=cache, eval_fraction=config.eval_fraction, is_eval=False, where=where)
    return hashlib.blake2b(side.counts().astype("<i8").tobytes(), digest_size=16).hexdigest()
