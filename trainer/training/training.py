"""`train`: a student from a cache, with no teacher in memory."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.features import Feature
from trainer.batches.collate import Collation
from trainer.checkpoints.output_folder import check_place, check_replaceable, check_space, locked, remove_held
from trainer.checkpoints.resuming import Beginning, check_finished, choose
from trainer.checkpoints.signals import Signals, watched
from trainer.checkpoints.whole_folders import clear_up
from trainer.losses.objective import Objective
from trainer.losses.unbiasedness import bias_lines
from trainer.models.shrink import parse_shrink
from trainer.stream.order import Order, Side
from trainer.stream.replay import Replay, Share
from trainer.students.students import Student, open_student
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.adapter_flags import AdapterFlags, adapter_lines, saved_parameters
from trainer.training.arguments import StudentArguments, check_arguments, settle_direction
from trainer.training.distiller import Distiller
from trainer.training.loop import DistillationTrainer
from trainer.training.preflight import (
    check_loop,
    check_total,
    on_main,
    router_lines,
    told_errors,
    total_steps,
    type_lines,
)
from trainer.training.run_identity import make_record, new_run, stream_seed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(AdapterFlags):
    """What to distil, from what, by which losses. Everything about the loop is in `TrainingArguments`."""

    cache: str = field(metadata={"help": "The cache: a folder, s3://, gs:// or az://."})
    student: str = field(
        metadata={
            "help": "A model folder or hub name; a config .json to start from scratch; or shrink:layers=N, the "
            "teacher's own weights with N of its layers. With --lora, a model folder or hub name."
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
    batching: str = field(
        default="bucket", metadata={"help": "bucket: one text a row, padded; pack: several, kept apart."}
    )
    cache_version: int | None = field(
        default=None, metadata={"help": "Version of the cache. [newest; a resume takes its checkpoint's]"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise UsageError("--eval_fraction must be at least 0 and below 1", got=self.eval_fraction)
        if self.shuffle_row_groups < 1:
            raise UsageError("--shuffle_row_groups must be at least 1", got=self.shuffle_row_groups)
        if self.batching not in ("bucket", "pack"):
            raise UsageError("--batching must be bucket or pack", got=self.batching)
        _ = self.objective
        self._check_effects()

    def _check_effects(self) -> None:
        self.check_adapters(self.student)
        names = set(self.objective.weights)
        layers = parse_shrink(self.student)
        if self.teacher is not None and layers is None:
            raise UsageError("--teacher has no effect without --student shrink:layers=N", got=self.teacher)
        if self.temperature != 1 and not names & {"kl", "kl_kept"}:
            raise UsageError("--temperature has no effect without the loss kl", got=self.temperature)
        if self.feature_loss != "mse" and "feature" not in names:
            raise UsageError("--feature_loss has no effect without the loss feature", got=self.feature_loss)

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
    was_finished: bool = False
    """Nothing was left to do."""


def train(config: TrainConfig, arguments: StudentArguments) -> Trained:
    """Distils a student into `arguments.output_dir`, where `AutoModel...from_pretrained` opens it.

    `arguments.resume_from_checkpoint` (`"auto"`, `"last"` or a folder) goes on where a checkpoint was taken, on the
    cache's version that it had, to the weights that the undisturbed run would have come to.

    Raises:
        UsageError: a path, model, flag or checkpoint that cannot be used.
        StudentError: the student or the losses do not fit the cache.
        CacheError: the cache cannot be read.
        TrainingError: a step was not finite, or what was trained cannot be saved.
        Stopped: SIGTERM or SIGINT came; what was trained is saved. (A `KeyboardInterrupt`.)
    """
    check_arguments(arguments)
    settle_direction(arguments, [f"eval_{name}" for name in ("loss", *config.objective.weights)])
    with ExitStack() as stack:
        signals = stack.enter_context(watched())
        if "://" in str(arguments.output_dir):
            check_place(str(arguments.output_dir), config.cache, ())
        folder = on_main(arguments, lambda: _claim(config, arguments, stack))
        arguments.output_dir = str(folder)
        beginning = on_main(
            arguments,
            lambda: choose(
                arguments.resume_from_checkpoint, folder, overwrite=arguments.overwrite_output_dir
            ),
        )
        return _train(config, arguments, beginning, signals)


def _claim(config: TrainConfig, arguments: StudentArguments, stack: ExitStack) -> Path:
    """The output folder, this run's alone from now on."""
    folder = check_place(str(arguments.output_dir), config.cache, (config.student, config.teacher))
    stack.enter_context(locked(folder))
    clear_up(folder)
    return folder


def _train(
    config: TrainConfig, arguments: StudentArguments, beginning: Beginning, signals: Signals
) -> Trained:
    before = beginning.record
    version = before.version if config.cache_version is None and before is not None else config.cache_version
    cache = Cache.open(config.cache, version)
    config.objective.check(cache.spec)
    folder = Path(str(arguments.output_dir))
    if arguments.overwrite_output_dir:
        check_replaceable(folder, cache.header.teacher.get("weight_bytes"))
    alone, packs = _is_alone(arguments), config.batching == "pack"
    student = open_student(
        config.student,
        cache,
        teacher=config.teacher,
        seed=arguments.seed,
        alone=alone,
        packs=packs,
        lora=config.adapters,
    )
    training, evaluation = _replays(config, arguments, cache, student)
    total = total_steps(arguments, training)
    run = on_main(arguments, lambda: new_run() if before is None else before.run)
    record = make_record(config, arguments, cache, student, run)
    if beginning.manifest is not None:
        record.check_resumable(beginning.manifest.record, str(beginning.checkpoint or folder))
        if finished := _is_finished(beginning, folder, total):
            return finished
        check_total(beginning.manifest, total)
    if arguments.process_index == 0:
        lines = bias_lines(config.objective, cache.spec, student.vocab_size)
        lines += type_lines(cache.spec, takes_token_types=student.takes_token_types)
        lines += adapter_lines(student)
        _log.info("\n".join([*lines, *router_lines(student.model.config)]))
    loop = DistillationTrainer(
        distiller=make_distiller(student, cache, config.objective),
        student=student,
        arguments=arguments,
        training=training,
        evaluation=evaluation,
        record=record,
        signals=signals,
    )
    try:
        return _run(loop, arguments, beginning, signals, total)
    finally:
        training.close()


def _run(
    loop: DistillationTrainer, arguments: StudentArguments, beginning: Beginning, signals: Signals, total: int
) -> Trained:
    folder = Path(str(arguments.output_dir))
    check_loop(loop, total)
    parameters = saved_parameters(loop.model, loop.student)
    check_space(folder, parameters, saves_optimizer=arguments.save_strategy != "no")
    if arguments.overwrite_output_dir:
        on_main(arguments, lambda: remove_held(folder))
    with signals.waiting(), told_errors():
        result = loop.run(beginning.checkpoint, beginning.manifest)
    return Trained(str(folder), result.global_step, result.metrics)


def _is_finished(beginning: Beginning, folder: Path, total: int) -> Trained | None:
    finished = beginning.finished
    if finished is None or finished.step != total or not check_finished(folder, finished):
        return None
    return Trained(str(folder), finished.step, {}, was_finished=True)


def make_distiller(student: Student, cache: Cache, objective: Objective) -> Distiller:
    """The module that is trained, its projections freshly initialised."""
    return Distiller(
        student.model,
        objective,
        score=cache.spec.score,
        features=needed_features(cache, objective),
        teacher_layers=teacher_layers(cache),
        task=STUDENT_TASKS[cache.spec.task],
    )


def needed_features(cache: Cache, objective: Objective) -> tuple[Feature, ...]:
    """The cache's features, if the losses use them."""
    return cache.spec.features if objective.uses_features else ()


def teacher_layers(cache: Cache) -> int:
    """How many layers the teacher has, as its header says; else as many as the deepest feature shows."""
    deepest = max((feature.layer for feature in cache.spec.features), default=1)
    return max(deepest, int(cache.header.teacher.get("layers", deepest)))


def _replays(
    config: TrainConfig, arguments: StudentArguments, cache: Cache, student: Student
) -> tuple[Replay, Replay | None]:
    collation = student.collation(
        temperature=config.temperature, features=needed_features(cache, config.objective)
    )
    training = _replay(config, arguments, cache, collation, is_eval=False)
    if training.order.num_rows == 0:
        raise UsageError(
            "no row is left to train on", where=cache.storage.root, got=f"{cache.totals.examples} rows"
        )
    _check_first(training, needs_labels="ce" in config.objective.weights)
    if arguments.eval_strategy == "no":
        return training, None
    evaluation = _replay(config, arguments, cache, collation, is_eval=True)
    if evaluation.order.num_rows == 0:
        raise UsageError("no document is held out to evaluate on", do="Raise --eval_fraction")
    return training, evaluation


def _replay(
    config: TrainConfig, arguments: StudentArguments, cache: Cache, collation: Collation, *, is_eval: bool
) -> Replay:
    side = Side(cache=cache, eval_fraction=config.eval_fraction, is_eval=is_eval)
    size = arguments.per_device_eval_batch_size if is_eval else arguments.per_device_train_batch_size
    order = Order.of(
        side.counts(),
        batch_size=size,
        row_groups=config.shuffle_row_groups,
        seed=stream_seed(arguments),
        shuffled=not is_eval,
    )
    share = Share(rank=arguments.process_index, world_size=arguments.world_size)
    pinned = arguments.device.type == "cuda" and arguments.dataloader_pin_memory
    return Replay(side, order, collation, share, pinned=pinned)


def _check_first(training: Replay, *, needs_labels: bool) -> None:
    """What the first row group tells: ids beyond the student, and that `ce` without labels would be silently zero."""
    rows = training.side.read(int(training.order.groups(0)[0]))
    training.collation.check(rows)
    if needs_labels and not rows.ragged("labels").validity.any() and rows.spec.kind.labels == "document":
        raise StudentError(
            "the ce loss needs labels, and the cache's first rows have none",
            do="Precompute with --label_field, or leave ce out",
        )


def _is_alone(arguments: StudentArguments) -> bool:
    """Whether no text is ever padded beside another."""
    return bool(arguments.per_device_train_batch_size == arguments.per_device_eval_batch_size == 1)
