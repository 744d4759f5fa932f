"""Every setting of transformers' `TrainingArguments`: it works here, or it is refused with the reason.

Nothing that is set may be without effect. A setting that this table does not know (a newer transformers brings it) is
refused too where it is not at its default; a test fails until it stands here. What decides weights is named as well:
a resumed run must have it as its checkpoint's run had.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from schemas.errors import UsageError
from trainer.checkpoints.signals import is_launched

_PREDICTS = "nothing is predicted while training; `teachonce evaluate` gives the task's metrics"
_READS = "batches are read ahead by threads of this process"
_HUB = "upload the finished folder with `hf upload`"
_NONFINITE = "training stops by itself at a loss or gradient that is not finite"
_STREAM = "the order of rows is the cache's own (batches of like lengths, each row once an epoch)"
_TRACKIO = "only --report_to trackio has a use for it"

REFUSED: Mapping[str, str] = {
    "label_smoothing_factor": "the teacher's distribution is smoother than any factor",
    "auto_find_batch_size": "the batch size decides the order of the stream",
    "use_liger_kernel": "the head and its losses are fused already",
    "liger_kernel_config": "the head and its losses are fused already",
    "neftune_noise_alpha": "the student must see what the teacher saw",
    "deepspeed": "use DDP (torchrun)",
    "parallelism_config": "use DDP (torchrun)",
    "accelerator_config": "accelerate does not touch the batches: each rank reads its own",
    "use_cache": "training has no use for keys and values of earlier tokens",
    "average_tokens_across_devices": "the loss is a mean over all ranks",
    "bf16_full_eval": "evaluation runs as training does; use --bf16",
    "fp16_full_eval": "evaluation runs as training does; use --fp16",
    "logging_nan_inf_filter": _NONFINITE,
    "debug": _NONFINITE,
    "prediction_loss_only": _PREDICTS,
    "eval_do_concat_batches": _PREDICTS,
    "eval_use_gather_object": _PREDICTS,
    "eval_accumulation_steps": _PREDICTS,
    "include_for_metrics": _PREDICTS,
    "batch_eval_metrics": _PREDICTS,
    "label_names": _PREDICTS,
    "dataloader_num_workers": _READS,
    "dataloader_persistent_workers": _READS,
    "dataloader_prefetch_factor": _READS,
    "dataloader_multiprocessing_context": _READS,
    "dataloader_in_order": _READS,
    "dataloader_drop_last": "every row is seen exactly once an epoch",
    "remove_unused_columns": "batches are the project's own",
    "train_sampling_strategy": _STREAM,
    "group_by_length": _STREAM,
    "length_column_name": _STREAM,
    "ignore_data_skip": "a resumed run goes on at its own row, without reading what went before",
    "restore_callback_states_from_checkpoint": "no part of the loop has a state beside the checkpoint's",
    "save_only_model": "a checkpoint without its optimizer cannot be gone on from; for less space, lower "
    "--save_total_limit",
    "save_on_each_node": "all ranks write into one folder",
    "enable_jit_checkpoint": "SIGTERM and SIGINT finish the step and save by themselves",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "do_train": "the verb says what is done: `train`",
    "do_eval": "say --eval_strategy, or use the verb `evaluate`",
    "do_predict": "use the verb `evaluate`",
    "local_rank": "torchrun numbers the ranks",
}
"""Settings without effect, or that would do harm, and why; each may stand at its default."""

WORKS: frozenset[str] = frozenset(
    (
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "data_seed"),
        *("full_determinism", "use_cpu", "per_device_train_batch_size"),
        *("per_device_eval_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
        *("max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("weight_decay", "max_grad_norm", "optim", "optim_args", "optim_target_modules"),
        *("adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "tf32"),
        *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "torch_empty_cache_steps", "dataloader_pin_memory"),
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node"),
        *("log_level", "log_level_replica", "disable_tqdm", "include_num_input_tokens_seen"),
        *("skip_memory_metrics", "report_to", "run_name", "project", "trackio_space_id"),
        *("trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps"),
        *("eval_delay", "eval_on_start", "save_strategy", "save_steps", "save_total_limit"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
        *("ddp_static_graph", "ddp_backend", "ddp_timeout"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode", "fsdp", "fsdp_config"),
    )
)

DECIDES_WEIGHTS = (
    *("seed", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "max_grad_norm", "optim", "optim_args", "optim_target_modules"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "tf32"),
    *("load_best_model_at_end", "save_strategy", "metric_for_best_model", "eval_strategy"),
    *("eval_steps", "eval_delay"),
)
_CHOOSING = ("save_strategy", "metric_for_best_model", "eval_strategy", "eval_steps", "eval_delay")
"""These decide weights only where an evaluation chooses among them, or lowers the learning rate."""
FOLLOWS_METRICS = ("reduce_lr_on_plateau", "greedy")

_Check = tuple[Callable[[Any], bool], str]
_FROM_1: _Check = (lambda value: value >= 1, "a whole number from 1")
_FROM_0: _Check = (lambda value: 0 <= value < math.inf, "a number from 0")
_ABOVE_0: _Check = (lambda value: 0 < value < math.inf, "a number above 0")
_SHARE: _Check = (lambda value: 0 <= value < 1, "at least 0 and below 1")

_RANGES: Mapping[str, _Check] = {
    "per_device_train_batch_size": _FROM_1,
    "per_device_eval_batch_size": _FROM_1,
    "gradient_accumulation_steps": _FROM_1,
    "num_train_epochs": _ABOVE_0,
    "max_steps": (
        lambda value: value == -1 or value >= 1,
        "a whole number from 1, or -1 for --num_train_epochs",
    ),
    "learning_rate": _ABOVE_0,
    "warmup_steps": _FROM_0,
    "weight_decay": _FROM_0,
    "max_grad_norm": _FROM_0,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _ABOVE_0,
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 2^32 - 1"),
    "data_seed": (lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1"),
    "logging_steps": _ABOVE_0,
    "eval_steps": _ABOVE_0,
    "eval_delay": _FROM_0,
    "save_steps": _ABOVE_0,
    "save_total_limit": _FROM_1,
    "torch_empty_cache_steps": _FROM_1,
    "ddp_bucket_cap_mb": _FROM_1,
    "ddp_timeout": _FROM_1,
    "include_num_input_tokens_seen": (
        lambda value: value in (True, False, "all", "non_padding", "no"),
        "all, non_padding or no",
    ),
}

_NEEDS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], bool]]] = {
    "fsdp": (
        "several ranks of one student, which torchrun starts",
        lambda told: int(os.environ.get("WORLD_SIZE", "1") or 1) > 1,
    ),
    "fsdp_config": ("--fsdp", lambda told: bool(told["fsdp"])),
    "ddp_backend": ("several ranks, which torchrun starts", lambda told: is_launched()),
    "eval_steps": ("--eval_strategy steps", lambda told: word(told["eval_strategy"]) == "steps"),
    "eval_delay": ("an --eval_strategy", lambda told: word(told["eval_strategy"]) != "no"),
    "eval_on_start": ("an --eval_strategy", lambda told: word(told["eval_strategy"]) != "no"),
    "save_steps": ("--save_strategy steps", lambda told: word(told["save_strategy"]) in ("steps", "no")),
    "logging_steps": (
        "--logging_strategy steps",
        lambda told: word(told["logging_strategy"]) in ("steps", "no"),
    ),
    "run_name": ("a service in --report_to", lambda told: bool(_services(told["report_to"]))),
    "project": ("--report_to trackio", lambda told: "trackio" in _services(told["report_to"])),
    "trackio_space_id": ("--report_to trackio", lambda told: "trackio" in _services(told["report_to"])),
    "trackio_bucket_id": ("--report_to trackio", lambda told: "trackio" in _services(told["report_to"])),
    "trackio_static_space_id": (
        "--report_to trackio",
        lambda told: "trackio" in _services(told["report_to"]),
    ),
    "activation_checkpointing_kwargs": (
        "--activation_checkpointing",
        lambda told: bool(told["activation_checkpointing"] or told.get("gradient_checkpointing")),
    ),
    "gradient_checkpointing_kwargs": (
        "--activation_checkpointing",
        lambda told: bool(told["activation_checkpointing"] or told.get("gradient_checkpointing")),
    ),
}
"""What a setting needs to have an effect."""


def defaults(kind: Any) -> dict[str, Any]:
    """The default of each setting that may be told."""
    found = {}
    for item in dataclasses.fields(kind):
        if item.init:
            factory = item.default_factory
            found[item.name] = item.default if factory is dataclasses.MISSING else factory()
    return found


def check_told(told: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Refuses settings without effect and values that cannot be, as they were told.

    Raises:
        UsageError: naming the flag and the reason.
    """
    for name, value in told.items():
        differs = word(value) != word(usual[name])
        if name in REFUSED:
            if differs:
                raise UsageError(f"--{name} has no place here: {REFUSED[name]}", got=word(value))
        elif name not in WORKS:
            if differs:
                raise UsageError(
                    f"this release of teachonce does not know what --{name} would do here", got=value
                )
        else:
            _check_range(name, value)
            if differs and name in _NEEDS and not _NEEDS[name][1](told):
                raise UsageError(f"--{name} has no effect without {_NEEDS[name][0]}", got=word(value))


def decide_weights(arguments: Any) -> dict[str, Any]:
    """What of the settings decides the weights, as JSON has it."""
    found = {name: word(getattr(arguments, name)) for name in DECIDES_WEIGHTS}
    chooses = found["load_best_model_at_end"] or found["lr_scheduler_type"] in FOLLOWS_METRICS
    for name in () if chooses else _CHOOSING:
        del found[name]
    return found


def _check_range(name: str, value: Any) -> None:
    if name not in _RANGES or value is None:
        return
    is_right, expected = _RANGES[name]
    try:
        fits = bool(is_right(value))
    except TypeError:
        fits = False
    if not fits:
        raise UsageError(f"--{name} cannot be this", expected=expected, got=value)


def word(value: Any) -> Any:
    """As it is written on the command line, whatever transformers made of it."""
    if isinstance(value, Enum):
        return value.value
    return value


def _services(report_to: Any) -> list[str]:
    named = [report_to] if isinstance(report_to, str) else list(report_to or ())
    return [name for name in named if name != "none"]
