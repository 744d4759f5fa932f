"""What is tried before the first step, so that a wrong setting is one line and not a traceback an hour later."""

from __future__ import annotations

import logging
import math
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from schemas.errors import StudentError, TeachonceError, TrainingError, UsageError, one_line
from schemas.spec import Spec
from trainer.checkpoints.records import Manifest
from trainer.losses.objective import Objective
from trainer.stream.order import Order
from trainer.training.arguments import StudentArguments, check_arguments, settle_direction
from trainer.training.config import TrainConfig
from trainer.training.settings import FOLLOWS_METRICS, word
from trainer.training.tasks_order import TasksOrder

_log = logging.getLogger(__name__)
_ROUTER_LOSS = re.compile(r"(router|aux|balanc\w*|z)_loss|seq_aux|aux_loss_alpha")
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_COMPILERS = ("torch._dynamo", "torch._inductor")

T = TypeVar("T")


def on_main(arguments: StudentArguments, function: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank; or the error that it meets."""
    if arguments.world_size == 1:
        return function()
    box: list[Any] = [None, None]
    if arguments.process_index == 0:
        try:
            box[0] = function()
        except TeachonceError as error:
            box[1] = error
    torch.distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    found: T = box[0]
    return found


def check_settings(config: TrainConfig, arguments: StudentArguments) -> None:
    """What can be known before anything is opened.

    Raises:
        UsageError: settings that do not go together.
    """
    check_arguments(arguments)
    if config.batching == "pack" and arguments.per_device_train_batch_size == 1:
        raise UsageError(
            "--batching pack has no effect where a batch is one text",
            do="Raise --per_device_train_batch_size",
        )
    if arguments.fsdp and (config.adapters is not None or arguments.compiling is not None):
        raise UsageError(
            "--fsdp goes neither with --lora nor with --torch_compile", do="Leave one of them out"
        )
    if arguments.fsdp and any(stage.freeze for stage in config.objective.stages):
        raise UsageError(
            "--fsdp does not go with stages that freeze: torch would not go on from their checkpoints",
            do="Leave --fsdp out (torchrun alone is DDP), or freeze",
        )
    names = [f"eval_{name}" for name in ("loss", *config.objective.weights)]
    settle_direction(arguments, names, others=config.own.compute_metrics is not None)
    if config.own.compute_metrics is not None and arguments.eval_strategy == "no":
        raise UsageError(
            "compute_metrics has no effect without evaluations", do='Say eval_strategy="steps" or "epoch"'
        )


def total_steps(arguments: StudentArguments, order: Order | TasksOrder) -> int:
    """Optimizer steps in all, as transformers counts them."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    return math.ceil(float(arguments.num_train_epochs) * order.num_steps)


def check_total(manifest: Manifest, total: int, objective: Objective) -> None:
    """Whether steps are left; a run may be made longer, and is told what that means.

    Raises:
        UsageError: the checkpoint lies beyond; or stages would be other ones.
    """
    if manifest.step > total:
        raise UsageError(
            "the checkpoint lies beyond the last step",
            expected=f"at most {total}",
            got=manifest.step,
            do="Raise --max_steps, or resume from an earlier checkpoint",
        )
    if manifest.total != total and objective.stages:
        raise UsageError(
            "stages are shares of the run's steps, and a run of another length has others",
            expected=f"{manifest.total} steps",
            got=total,
            do="Resume with as many steps; train on from the student that was saved for more",
        )
    if manifest.total != total:
        _log.warning(
            "the run was to take %d steps and is now to take %d: from step %d on the learning rate, and all else that "
            "is scheduled, is that of the new number, so the weights are not those of a run that had it from the start",
            *(manifest.total, total, manifest.step),
        )


def check_loop(loop: Any, total: int) -> None:
    """Makes the optimizer and its schedule once, as training will, and throws them away.

    Raises:
        UsageError: a package is missing, or a value cannot be.
    """
    arguments: StudentArguments = loop.args
    if arguments.activation_checkpointing and not loop.student.model.supports_gradient_checkpointing:
        raise StudentError(
            f"{type(loop.student.model).__name__} cannot be trained with --activation_checkpointing"
        )
    kwargs = arguments.lr_scheduler_kwargs or {}
    if word(arguments.lr_scheduler_type) in FOLLOWS_METRICS and kwargs.get("mode", "min") != "min":
        raise UsageError(
            "--lr_scheduler_kwargs: every metric here is a loss, of which lower is better", got=kwargs
        )
    try:
        loop.create_optimizer()
        scheduler = loop.create_scheduler(num_training_steps=total)
        for rate in getattr(scheduler, "lr_lambdas", ()):
            for step in (0, total // 2, total):
                if not math.isfinite(rate(step)):
                    raise ValueError(f"the learning rate at step {step} is {rate(step)}")
    except Exception as error:
        raise UsageError(
            f"--optim {word(arguments.optim)} with --lr_scheduler_type {word(arguments.lr_scheduler_type)} cannot be "
            "made as it is asked for",
            got=one_line(error).rstrip("."),
        ) from error
    loop.optimizer = loop.lr_scheduler = None


def router_lines(config: Any) -> list[str]:
    """What a student's config asks for that is no part of the loss here.

    Raises:
        StudentError: it asks for its router's own loss outright.
    """
    values = {**config.to_dict(), **config.get_text_config().to_dict()}
    if values.get("output_router_logits"):
        raise StudentError(
            "the student's config asks for its router's loss (output_router_logits), which has no part in training",
            do="Set output_router_logits to false",
        )
    named = [
        f"{name}={value}"
        for name, value in sorted(values.items())
        if _ROUTER_LOSS.search(name) and isinstance(value, int | float) and value
    ]
    return [f"{', '.join(named)}: the student's own router losses have no part in training"] if named else []


def type_lines(spec: Spec, *, takes_types: bool) -> list[str]:
    """What a student that knows no pairs does without."""
    if takes_types or not spec.has_token_type_ids:
        return []
    return ["the student knows no token types: the cache's are left out, and its tokenizer will give none"]


@contextmanager
def told_errors(*, compiles: bool) -> Iterator[None]:
    """Memory that does not suffice is one line, and so is a compiler that is missing or fails, where one is used."""
    try:
        yield
    except (ImportError, OSError) as error:
        if not (compiles and _is_in_compiler(error)):
            raise
        raise _uncompiled(error) from error
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error).__module__.startswith(_COMPILERS):  # imported, they would take seconds of every start
            raise _uncompiled(error) from error
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise TrainingError(
            "memory does not suffice for a step",
            got=one_line(error),
            do="Lower --per_device_train_batch_size and raise --gradient_accumulation_steps",
        ) from error


def _is_in_compiler(error: BaseException) -> bool:
    """Whether it came out of torch's compiler: its own kernels are loaded there, and may be another's half of one."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.startswith(_COMPILERS) for name in names)


def _uncompiled(error: BaseException) -> TrainingError:
    return TrainingError(
        "the student's blocks cannot be compiled",
        got=one_line(error),
        do="Leave --torch_compile out, or name another --torch_compile_backend; inductor needs a C++ compiler. What a "
        "killed process left half compiled goes when TORCHINDUCTOR_CACHE_DIR names an empty folder",
    )
