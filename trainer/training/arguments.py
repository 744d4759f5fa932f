"""Hugging Face's `TrainingArguments` with other defaults, and without what has no meaning here.

What every setting does is said in `settings.py`. All that can be known of the settings alone is checked when they are
made; `check_arguments` adds what the machine decides.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import integration_utils

from schemas.errors import UsageError
from trainer.students.compiling import Compiling
from trainer.training.flags import LoopFlags
from trainer.training.settings import FOLLOWS_METRICS, check_told, defaults, word

_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "azure_ml": ("azureml-core",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet-ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": ("kubeflow",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("'teachonce[tensorboard]'",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""What to install for each service that transformers can report to."""
_MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}

_WITHOUT_STATE = ("lomo", "adalomo")
_NO_OPTIM_ARGS = ("adamw_torch", "adamw_torch_fused", "adafactor")
_OPTIM_ARGS: Mapping[str, frozenset[str]] = {
    "sgd": frozenset({"momentum", "dampening", "weight_decay", "nesterov"}),
    "adagrad": frozenset({"lr_decay", "weight_decay", "eps"}),
    "rmsprop": frozenset({"momentum", "alpha", "eps", "weight_decay", "centered"}),
}
_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_NOT_ADAM = ("sgd", "adagrad", "rmsprop", "adafactor")
_CHECKPOINTING = {
    *("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop"),
    *("every_n_layers", "offload"),
}
"""What of activation checkpointing can be said in JSON."""
_SHARDING = {"reshard_after_forward", "cpu_offload", "transformer_layer_cls_to_wrap"}
"""What of FSDP may be chosen; the rest decides how weights are saved, or is FSDP1."""


@dataclass
class StudentArguments(LoopFlags, TrainingArguments):  # type: ignore[misc]
    """`TrainingArguments` whose defaults suit distillation from a cache.

    Other than transformers': nothing is reported to a service (`report_to="none"`), a log every 20 steps, three
    checkpoints kept, a learning rate for small students, warm-up, and a cosine schedule.
    """

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise UsageError("where should the student go?", do="Add --output_dir FOLDER")
        self.report_to = "none" if self.report_to is None else self.report_to
        usual = defaults(type(self))
        check_told({name: getattr(self, name) for name in usual}, usual)
        self._use_new_names()
        self._check_optimizer()
        self._check_choice()
        check_services(self.report_to)
        if self.overwrite_output_dir and self.resume_from_checkpoint not in (None, "false", "False"):
            raise UsageError(
                "--overwrite_output_dir would remove what --resume_from_checkpoint goes on from",
                do="Name one of them",
            )
        self._settle_compiling_and_shards()
        super().__post_init__()
        if self.fp16 and self.device.type == "cpu":
            raise UsageError("--fp16 needs a GPU", do="Use --bf16 with --use_cpu, or float32")

    def _settle_compiling_and_shards(self) -> None:
        """The student's blocks are compiled by `trainer/students/compiling.py`; transformers would compile the whole of
        what is trained, head, losses and all, for one shape."""
        own: Any = self
        backend, mode = own.torch_compile_backend, own.torch_compile_mode
        self.compiling = Compiling.parse(asked=bool(own.torch_compile), backend=backend, mode=mode)
        own.torch_compile, own.torch_compile_backend, own.torch_compile_mode = False, None, None
        # transformers takes a text for its older options
        own.fsdp = {"true": True, "false": None}.get(str(own.fsdp).lower(), own.fsdp)

    def _use_new_names(self) -> None:
        """`gradient_checkpointing` is transformers' older name of `activation_checkpointing`."""
        for new in ("activation_checkpointing", "activation_checkpointing_kwargs"):
            old = new.replace("activation", "gradient")
            ours, theirs = getattr(self, new), getattr(self, old)
            if ours is not None and theirs is not None and ours != theirs:
                raise UsageError(f"--{old} and --{new} are one setting", got=f"{theirs} and {ours}")
            setattr(self, new, theirs if ours is None else ours)
            setattr(self, old, None)
        self._check_mapping("activation_checkpointing_kwargs", _CHECKPOINTING)
        self._check_mapping("lr_scheduler_kwargs", None)
        self._check_mapping("fsdp_config", _SHARDING)

    def _check_mapping(self, name: str, known: set[str] | None) -> None:
        value = getattr(self, name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise UsageError(f"--{name} is no JSON", expected='{"name": value}', got=value) from error
        if value is None:
            return
        if not isinstance(value, dict):
            raise UsageError(f"--{name} is no mapping", expected='{"name": value}', got=value)
        if known is not None and (others := sorted(set(value) - known)):
            raise UsageError(f"--{name} has no such key", expected=", ".join(sorted(known)), got=others[0])

    def _check_optimizer(self) -> None:
        name, usual = str(word(self.optim)), defaults(type(self))
        if name in _WITHOUT_STATE or name.endswith("layerwise"):
            raise UsageError(
                "this optimizer's state is in no checkpoint, so no run could go on", got=f"--optim {name}"
            )
        if name.startswith("schedule_free"):
            raise UsageError(
                "this optimizer keeps the weights to be saved apart from those that are trained",
                got=f"--optim {name}",
            )
        if self.optim_target_modules is not None and not name.startswith(("galore", "apollo")):
            raise UsageError(f"--optim_target_modules has no effect with --optim {name}")
        if self.optim_args:
            self._check_optim_args(name, str(self.optim_args))
        if name in _NOT_ADAM:
            for told in _ADAM:
                if getattr(self, told) != usual[told]:
                    raise UsageError(f"--{told} has no effect with --optim {name}", got=getattr(self, told))

    def _check_optim_args(self, name: str, text: str) -> None:
        if name in _NO_OPTIM_ARGS:
            raise UsageError(f"--optim_args has no effect with --optim {name}", got=text)
        for part in text.replace(" ", "").split(","):
            key, equals, value = part.partition("=")
            known = _OPTIM_ARGS.get(name, {key})
            if not (equals and value and key in known):
                expected = f"NAME=VALUE,... of {', '.join(sorted(known))}"
                raise UsageError("--optim_args cannot be read", expected=expected, got=text)

    def _check_choice(self) -> None:
        """Whether something goes by the metric that is asked for, and something gives it."""
        chooses = self.load_best_model_at_end or word(self.save_strategy) == "best"
        follows = word(self.lr_scheduler_type) in FOLLOWS_METRICS
        if (chooses or follows) and word(self.eval_strategy) == "no":
            raise UsageError(
                "the best is known by evaluations, and there are none", do="Add --eval_strategy steps"
            )
        self.told_greater_is_better = self.greater_is_better
        for name in () if chooses or follows else ("metric_for_best_model", "greater_is_better"):
            if getattr(self, name) is not None:
                raise UsageError(
                    f"--{name} has no effect without --load_best_model_at_end or --save_strategy best",
                    got=getattr(self, name),
                )
        if chooses and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"


def check_services(report_to: Any) -> None:
    """Whether every service to report to is known and its package there.

    Raises:
        UsageError: naming the pip command.
    """
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name in ("none", "all"):
            continue
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            expected = ", ".join(sorted(integration_utils.INTEGRATION_TO_CALLBACK))
            raise UsageError(
                "--report_to names no service that transformers knows", expected=expected, got=name
            )
        modules = ("tensorboard", "tensorboardX") if name == "tensorboard" else (_MODULES.get(name, name),)
        if all(importlib.util.find_spec(module) is None for module in modules):
            packages = " ".join(_PACKAGES.get(name, (name,)))
            raise UsageError(
                f"--report_to {name} needs a package that is not installed", do=f"pip install {packages}"
            )


def check_arguments(arguments: StudentArguments) -> None:
    """Refuses settings that were changed since they were made to what has no effect, and several GPUs in one process.

    Raises:
        UsageError: naming the flag, or the command that uses all GPUs.
    """
    if not isinstance(arguments, StudentArguments):
        raise UsageError("the settings are no StudentArguments", got=type(arguments).__name__)
    if arguments.n_gpu > 1:
        raise UsageError(
            f"{arguments.n_gpu} GPUs are visible to one process, which would train with nn.DataParallel",
            do=f"Run torchrun --nproc_per_node {arguments.n_gpu} -m teachonce train ..., "
            "or set CUDA_VISIBLE_DEVICES=0",
        )


def settle_direction(arguments: StudentArguments, metrics: list[str], *, others: bool = False) -> None:
    """Names the metric in full, and its direction by our own table: every one that an evaluation gives is a loss, but
    for `others`, which a caller computes.

    Raises:
        UsageError: there is no such metric, or the other direction was asked for.
    """
    asked = arguments.metric_for_best_model
    if asked is None:
        return
    name = asked if asked.startswith("eval_") else f"eval_{asked}"
    if others and name not in metrics:
        if arguments.told_greater_is_better is None:
            raise UsageError(
                "whether more of a metric of one's own is better, its caller knows",
                got=asked,
                do="Say greater_is_better=True or False",
            )
        arguments.metric_for_best_model = name
        return
    if name not in metrics:
        raise UsageError("--metric_for_best_model names no metric", expected=", ".join(metrics), got=asked)
    if arguments.told_greater_is_better:
        raise UsageError(f"lower is better for {name}: it is a loss", got="--greater_is_better true")
    arguments.metric_for_best_model, arguments.greater_is_better = name, False
