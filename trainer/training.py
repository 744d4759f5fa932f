"""`train`: a student from a cache, with no teacher in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.spec import Feature
from trainer.arguments import check_arguments
from trainer.batches import Collation
from trainer.bias import bias_lines
from trainer.distiller import Distiller
from trainer.loop import DistillationTrainer
from trainer.objective import Objective
from trainer.records import Record
from trainer.replay import Replay, Share
from trainer.stream import Order, Side
from trainer.students import Student, open_student

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to distil, from what, by which losses. Everything about the loop is in `TrainingArguments`."""

    cache: str = field(metadata={"help": "The cache: a folder, s3://, gs:// or az://."})
    student: str = field(
        metadata={
            "help": "A model folder or hub name; a config .json to start from scratch; or shrink:layers=N, the "
            "teacher's own weights with N of its layers."
        }
    )
    teacher: str | None = field(
        default=None, metadata={"help": "The teacher's folder; only for --student shrink:layers=N."}
    )
    losses: list[str] = field(
        default_factory=lambda: ["kl=1.0"],
        metadata={
            "help": "NAME=WEIGHT ...: kl (from the teacher), ce (the corpus's own labels), mse_logits, "
            "feature (pooled hidden states), kl_kept (without tail, to compare). Each is logged, also with weight 0."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Of kl, which is multiplied by its square. The cache must have declared it."},
    )
    feature_loss: str = field(default="mse", metadata={"help": "mse or cosine."})
    eval_fraction: float = field(
        default=0.05,
        metadata={"help": "Share of documents held out, by their hash: the same for every student."},
    )
    shuffle_row_groups: int = field(
        default=8, metadata={"help": "Row groups that are shuffled together; memory grows with it."}
    )
    cache_version: int | None = field(
        default=None, metadata={"help": "Version of the cache. [newest; a resume takes its checkpoint's]"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise UsageError("--eval_fraction must be at least 0 and below 1", got=self.eval_fraction)
        if self.shuffle_row_groups < 1:
            raise UsageError("--shuffle_row_groups must be at least 1", got=self.shuffle_row_groups)
        _ = self.objective

    @property
    def objective(self) -> Objective:
        """The losses as a value.

        Raises:
            UsageError: they are not what they should be.
        """
        return Objective.parse(self.losses, self.temperature, self.feature_loss)


class Trained(NamedTuple):
    """A finished run."""

    output_dir: str
    steps: int
    metrics: dict[str, float]


def train(config: TrainConfig, arguments: TrainingArguments) -> Trained:
    """Distils a student into `arguments.output_dir`, where `AutoModel...from_pretrained` opens it.

    With `arguments.resume_from_checkpoint` (a folder, or `"last"`) the run goes on where the checkpoint was taken,
    on the cache's version that it had.

    Raises:
        UsageError: a path, model, flag or checkpoint that cannot be used.
        StudentError: the student or the losses do not fit the cache.
        CacheError: the cache cannot be read.
    """
    check_arguments(arguments)
    checkpoint = _checkpoint(arguments)
    cache = _open_cache(config, checkpoint)
    config.objective.check(cache.spec)
    student = open_student(
        config.student, cache, teacher=config.teacher, seed=arguments.seed, alone=_is_alone(arguments)
    )
    if arguments.process_index == 0:
        _log.info("\n".join(bias_lines(config.objective, cache.spec, student.vocab_size)))
    record = _record(config, arguments, cache)
    if checkpoint is not None:
        record.check_resumable(_checkpoint_record(checkpoint), checkpoint)
    training, evaluation = _replays(config, arguments, cache, student)
    loop = DistillationTrainer(
        distiller=make_distiller(student, cache, config.objective),
        student=student,
        arguments=arguments,
        training=training,
        evaluation=evaluation,
        record=record,
    )
    try:
        result = loop.train(resume_from_checkpoint=checkpoint)
    finally:
        training.close()
    loop.save_model()
    loop.save_state()
    return Trained(str(arguments.output_dir), result.global_step, result.metrics)


def make_distiller(student: Student, cache: Cache, objective: Objective) -> Distiller:
    """The module that is trained, its projections freshly initialised."""
    return Distiller(
        student.model,
        objective,
        score=cache.spec.score,
        features=needed_features(cache, objective),
        teacher_layers=teacher_layers(cache),
        is_causal=student.is_causal,
    )


def needed_features(cache: Cache, objective: Objective) -> tuple[Feature, ...]:
    """The cache's features, if the losses use them."""
    return cache.spec.features if objective.uses_features else ()


def teacher_layers(cache: Cache) -> int:
    """How many layers the teacher has, as its header says; else as many as the deepest feature shows."""
    deepest = max((feature.layer for feature in cache.spec.features), default=1)
    return max(deepest, int(cache.header.teacher.get("layers", deepest)))


def _replays(
    config: TrainConfig, arguments: TrainingArguments, cache: Cache, student: Student
) -> tuple[Replay, Replay | None]:
    collation = Collation(
        student_vocab=student.vocab_size,
        pad_id=student.pad_id,
        temperature=config.temperature,
        features=needed_features(cache, config.objective),
        pass_token_types=student.takes_token_types,
    )
    training = _replay(config, arguments, cache, collation, is_eval=False)
    if training.order.num_rows == 0:
        raise UsageError(
            "no row is left to train on", where=cache.storage.root, got=f"{cache.totals.examples} rows"
        )
    if "ce" in config.objective.weights:
        _check_labels(training)
    if arguments.eval_strategy == "no":
        return training, None
    evaluation = _replay(config, arguments, cache, collation, is_eval=True)
    if evaluation.order.num_rows == 0:
        raise UsageError("no document is held out to evaluate on", do="Raise --eval_fraction")
    return training, evaluation


def _replay(
    config: TrainConfig, arguments: TrainingArguments, cache: Cache, collation: Collation, *, is_eval: bool
) -> Replay:
    side = Side(cache=cache, eval_fraction=config.eval_fraction, is_eval=is_eval)
    size = arguments.per_device_eval_batch_size if is_eval else arguments.per_device_train_batch_size
    order = Order.of(
        side.counts(),
        batch_size=size,
        row_groups=config.shuffle_row_groups,
        seed=_seed(arguments),
        shuffled=not is_eval,
    )
    share = Share(rank=arguments.process_index, world_size=arguments.world_size)
    pinned = arguments.device.type == "cuda" and arguments.dataloader_pin_memory
    return Replay(side, order, collation, share, pinned=pinned)


def _check_labels(training: Replay) -> None:
    """`ce` on a corpus without labels would be silently zero: the first row group tells."""
    spec = training.side.cache.spec
    if spec.task == "causal-lm":
        return
    first = int(training.order.groups(0)[0])
    if not training.side.read(first).ragged("labels").validity.any():
        raise StudentError(
            "the ce loss needs labels, and the cache's first rows have none",
            do="Precompute with --label_field, or leave ce out",
        )


def _is_alone(arguments: TrainingArguments) -> bool:
    """Whether no text is ever padded beside another."""
    return bool(arguments.per_device_train_batch_size == arguments.per_device_eval_batch_size == 1)


def _seed(arguments: TrainingArguments) -> int:
    return int(arguments.seed if arguments.data_seed is None else arguments.data_seed)


def _record(config: TrainConfig, arguments: TrainingArguments, cache: Cache) -> Record:
    return Record(
        cache=config.cache,
        header_hash=cache.header.to_json()["hash"],
        version=cache.version,
        seed=_seed(arguments),
        batch_size=arguments.per_device_train_batch_size,
        eval_fraction=config.eval_fraction,
        shuffle_row_groups=config.shuffle_row_groups,
        batches_a_step=arguments.world_size * arguments.gradient_accumulation_steps,
        student=config.student,
        losses={str(name): weight for name, weight in config.objective.weights.items()},
        temperature=config.temperature,
        feature_loss=config.feature_loss,
    )


def _checkpoint(arguments: TrainingArguments) -> str | None:
    """The checkpoint to resume from: a folder as it is, `last` or `true` for the newest in the output folder."""
    asked: Any = arguments.resume_from_checkpoint
    if asked in (None, False, "false", "False"):
        return None
    if asked not in (True, "true", "True", "last"):
        if not Path(asked).is_dir():
            raise UsageError("there is no such checkpoint", where=asked)
        return str(asked)
    found = get_last_checkpoint(arguments.output_dir) if Path(str(arguments.output_dir)).is_dir() else None
    if found is None:
        raise UsageError("there is no checkpoint to resume from", where=arguments.output_dir)
    return str(found)


def _checkpoint_record(checkpoint: str) -> Record:
    record = Record.load(checkpoint)
    if record is None:
        raise UsageError("this is no checkpoint of teachonce: it has no teachonce.json", where=checkpoint)
    return record


def _open_cache(config: TrainConfig, checkpoint: str | None) -> Cache:
    version = config.cache_version
    if version is None and checkpoint is not None:
        version = _checkpoint_record(checkpoint).version
    return Cache.open(config.cache, version)
