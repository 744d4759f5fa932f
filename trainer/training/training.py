"""`train`: a student from a cache, with no teacher in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from schemas.cache import Cache
from schemas.errors import UsageError
from schemas.spec import Spec
from trainer.checkpoints.output_folder import check_place, check_replaceable, check_space, locked, remove_held
from trainer.checkpoints.resuming import Beginning, check_finished, choose
from trainer.checkpoints.signals import Signals, watched
from trainer.checkpoints.whole_folders import clear_up
from trainer.losses.loss import Bank
from trainer.losses.measures import MEASURES
from trainer.losses.objective import Objective
from trainer.losses.unbiasedness import bias_lines
from trainer.losses.worth import knows_entropy
from trainer.students.on_features import check_objective
from trainer.students.student import Student
from trainer.students.students import open_student
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.adapter_flags import adapter_lines, saved_parameters
from trainer.training.arguments import StudentArguments
from trainer.training.bank import read_bank
from trainer.training.company import Company
from trainer.training.config import TrainConfig
from trainer.training.distiller import Distiller
from trainer.training.loop import DistillationTrainer
from trainer.training.model_card import save_card
from trainer.training.own_parts import ComputeMetrics, OwnParts, Preprocess
from trainer.training.preflight import (
    check_loop,
    check_settings,
    check_total,
    on_main,
    router_lines,
    told_errors,
    total_steps,
    type_lines,
)
from trainer.training.run_identity import make_record, new_run
from trainer.training.staged import check_stages
from trainer.training.streams import Opened, make_replays, needed_features, open_caches, stream_seed

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A finished run."""

    output_dir: str
    steps: int
    metrics: dict[str, float]
    was_finished: bool = False
    """Nothing was left to do."""


def train(
    config: TrainConfig,
    arguments: StudentArguments,
    *,
    processing_class: Any = None,
    callbacks: Sequence[Any] = (),
    compute_metrics: ComputeMetrics | None = None,
    preprocess_logits_for_metrics: Preprocess | None = None,
    losses: Sequence[Any] = (),
) -> Trained:
    """Distils a student into `arguments.output_dir`, where `AutoModel...from_pretrained` opens it.

    Callbacks and the functions for metrics are as transformers' `Trainer` takes them; callbacks are given the student
    as their `model`. `losses` of one's own, `[(Loss(...), 0.5)]`, stand beside those that the config names. Where
    `config.student` is a model it is trained in place, and `processing_class` is its tokenizer (else the cache's).

    `arguments.resume_from_checkpoint` (`"auto"`, `"last"` or a folder) goes on where a checkpoint was taken, on the
    cache's version that it had, to the weights that the undisturbed run would have come to.

    Raises:
        UsageError: a path, model, flag or checkpoint that cannot be used.
        StudentError: the student or the losses do not fit the cache.
        CacheError: the cache cannot be read.
        TrainingError: a step was not finite, or what was trained cannot be saved.
        Stopped: SIGTERM or SIGINT came; what was trained is saved. (A `KeyboardInterrupt`.)
    """
    config = config.bringing(
        OwnParts(
            student=config.own.student,
            processing_class=processing_class,
            callbacks=tuple(callbacks),
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            losses=tuple(losses),
        )
    )
    check_settings(config, arguments)
    with ExitStack() as stack:
        signals = stack.enter_context(watched())
        beginning = begin(config, arguments, stack)
        opened = open_caches(config, arguments.world_size, beginning.record)
        return distil(config, arguments, beginning, opened, signals)


def begin(config: TrainConfig, arguments: StudentArguments, stack: ExitStack) -> Beginning:
    """What a run goes on from, in its output folder, which is its own until the stack is closed.

    Raises:
        UsageError: the folder is another's, or there is nothing whole to go on from.
    """
    if "://" in str(arguments.output_dir):
        check_place(str(arguments.output_dir), config.sources, ())
    folder = on_main(arguments, lambda: _claim(config, arguments, stack))
    arguments.output_dir = str(folder)
    return on_main(
        arguments,
        lambda: choose(arguments.resume_from_checkpoint, folder, overwrite=arguments.overwrite_output_dir),
    )


def _claim(config: TrainConfig, arguments: StudentArguments, stack: ExitStack) -> Path:
    """The output folder, this run's alone from now on."""
    folder = check_place(str(arguments.output_dir), config.sources, config.beginnings)
    stack.enter_context(locked(folder))
    clear_up(folder)
    return folder


def distil(
    config: TrainConfig,
    arguments: StudentArguments,
    beginning: Beginning,
    opened: Opened,
    signals: Signals,
    *,
    company: Company | None = None,
) -> Trained:
    """The run itself, once its folder is claimed and its caches are open.

    Raises:
        TeachonceError, Stopped: as `train`.
    """
    before, cache = beginning.record, opened.first
    config.objective.check(cache.spec, opened.written)
    folder = Path(str(arguments.output_dir))
    if arguments.overwrite_output_dir:
        check_replaceable(folder, cache.header.teacher.get("weight_bytes"))
    student = open_one(config, arguments, cache)
    check_student(config, opened, student)
    sides = None if company is None else company.sides
    training, evaluation = make_replays(config, arguments, opened, student, sides)
    total = total_steps(arguments, training.order)
    check_stages(config.objective.stages, student.model, arguments, total)
    run = on_main(arguments, lambda: new_run() if before is None else before.run)
    record = make_record(config, arguments, opened, student, run)
    if beginning.manifest is not None:
        where = str(beginning.checkpoint or folder)
        record.check_resumable(beginning.manifest.record, where, allow_new_data=config.allow_new_data)
        if finished := _is_finished(beginning, folder, total):
            return finished
        check_total(beginning.manifest, total, config.objective)
    if arguments.process_index == 0:
        _log.info("\n".join(notices(config, opened, student)))
    features, number = needed_features(cache, config.objective), config.objective.bank
    bank = read_bank(training.sides, features, number, stream_seed(arguments)) if number else None
    distiller = make_distiller(student, cache, config.objective, bank)  # it runs the student, as it is
    if arguments.compiling is not None:
        arguments.compiling.apply(student.model)
    loop = DistillationTrainer(
        distiller=distiller,
        student=student,
        arguments=arguments,
        training=training,
        evaluation=evaluation,
        record=record,
        signals=signals,
        turn=None if company is None else company.turn,
        own=config.own,
    )
    if company is not None:
        company.join(loop)
    try:
        trained = _run(loop, arguments, beginning, signals, total)
        if arguments.process_index == 0:
            save_card(config, arguments, cache, record, loop.state.log_history)
        return trained
    finally:
        training.close()


def check_student(config: TrainConfig, opened: Opened, student: Student) -> None:
    """Refuses a student that these caches, or this objective, cannot teach."""
    if student.aligns and opened.joined is not None:
        raise UsageError(
            "joined caches teach students of their own tokenizer alone",
            where=config.student,
            do="Leave out --join, or name a student with the caches' tokenizer",
        )
    check_objective(student.model, config.objective, is_joined=opened.joined is not None)


def notices(config: TrainConfig, opened: Opened, student: Student) -> list[str]:
    """What people should know of losses and student before the first step."""
    spec, takes_types = opened.first.spec, student.takes_token_types or bool(student.features)
    lines = bias_lines(config.objective, spec, student.vocab_size)
    lines += [*type_lines(spec, takes_types=takes_types), *adapter_lines(student)]
    lines += [] if opened.joined is None else opened.joined.lines()
    return [*lines, *router_lines(student.model.config)]


def open_one(config: TrainConfig, arguments: StudentArguments, cache: Cache) -> Student:
    """The student that a run begins with.

    Raises:
        UsageError, StudentError: as `open_student`.
    """
    return open_student(
        config.student,
        cache,
        teacher=config.teacher,
        seed=arguments.seed,
        alone=_is_alone(arguments),
        packs=config.batching == "pack",
        lora=config.adapters,
        objective=config.objective,
        given=config.own.student,
        own_tokenizer=config.own.processing_class,
    )


def _run(
    loop: DistillationTrainer, arguments: StudentArguments, beginning: Beginning, signals: Signals, total: int
) -> Trained:
    folder = Path(str(arguments.output_dir))
    check_loop(loop, total)
    parameters = saved_parameters(loop.model, loop.student)
    check_space(folder, parameters, saves_optimizer=arguments.save_strategy != "no")
    if arguments.overwrite_output_dir:
        on_main(arguments, lambda: remove_held(folder))
    with signals.waiting(), told_errors(compiles=arguments.compiling is not None):
        result = loop.run(beginning.checkpoint, beginning.manifest)
    return Trained(str(folder), result.global_step, result.metrics)


def _is_finished(beginning: Beginning, folder: Path, total: int) -> Trained | None:
    finished = beginning.finished
    is_through = finished is not None and total in (
        finished.step,
        finished.total,
    )  # a callback may stop it before
    if finished is None or not is_through or not check_finished(folder, finished):
        return None
    return Trained(str(folder), finished.step, {}, was_finished=True)


def make_distiller(
    student: Student, cache: Cache, objective: Objective, bank: Bank | None = None
) -> Distiller:
    """The module that is trained, its projections freshly initialised.

    Raises:
        UsageError: embeddings of words are to be moved, and there are none.
    """
    if objective.adversarial and student.pictures is not None:
        raise UsageError(
            "--adversarial moves the embeddings of words, and images have none", do="Leave it out"
        )
    return Distiller(
        student.model,
        objective,
        score=cache.spec.score,
        features=needed_features(cache, objective),
        teacher_layers=teacher_layers(cache),
        task=STUDENT_TASKS[cache.spec.task],
        measures=[] if student.aligns else measures_of(cache.spec, objective, student.vocab_size),
        bank=bank,
        embedder=student.embedder,
        image_shape=None if student.pictures is None else student.pictures.shape,
        vocab_size=cache.spec.vocab_size,
    )


def measures_of(spec: Spec, objective: Objective, student_vocab: int) -> list[str]:
    """What is logged beside the losses: the teacher's entropy where the cache tells it."""
    has_all = student_vocab >= spec.vocab_size
    known = knows_entropy(spec, objective.temperature, student_has_all=has_all)
    return [name for name in MEASURES if known or name != "teacher_entropy"]


def teacher_layers(cache: Cache) -> int:
    """How many layers the teacher has, as its header says; else as many as the deepest feature shows."""
    deepest = max((feature.layer for feature in cache.spec.features), default=1)
    return max(deepest, int(cache.header.teacher.get("layers", deepest)))


def _is_alone(arguments: StudentArguments) -> bool:
    """Whether no text is ever padded beside another."""
    return bool(arguments.per_device_train_batch_size == arguments.per_device_eval_batch_size == 1)
