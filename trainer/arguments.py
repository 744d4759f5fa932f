"""Hugging Face's `TrainingArguments` with other defaults, and without what has no meaning here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from schemas.errors import UsageError

_REFUSED: dict[str, tuple[Any, str]] = {
    "dataloader_num_workers": (0, "batches are read ahead by threads of this process"),
    "label_smoothing_factor": (0.0, "the teacher's distribution is smoother than any factor"),
    "auto_find_batch_size": (False, "the batch size decides the order of the stream"),
    "use_liger_kernel": (False, "the head and its losses are fused already"),
    "neftune_noise_alpha": (None, "the student must see what the teacher saw"),
    "deepspeed": (None, "use DDP (torchrun) or FSDP"),
    "push_to_hub": (False, "upload the finished folder with `hf upload`"),
    "dataloader_drop_last": (False, "every row is seen exactly once an epoch"),
    "torch_compile": (False, "batches change shape with every step"),
}


@dataclass
class StudentArguments(TrainingArguments):  # type: ignore[misc]
    """`TrainingArguments` whose defaults suit distillation from a cache.

    Other than transformers': nothing is reported to a service (`report_to="none"`), a log every 20 steps, three
    checkpoints kept, a learning rate for small students, warm-up, and a cosine schedule.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the finished student, and for checkpoints on the way."}
    )
    report_to: str | None = field(
        default="none",
        metadata={"help": "Where to report, for instance tensorboard or wandb."},
    )
    logging_steps: float = field(default=20, metadata={"help": "Log every so many steps."})
    save_total_limit: int | None = field(default=3, metadata={"help": "Checkpoints that are kept."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: float = field(default=0.02, metadata={"help": "Steps of warm-up, or below 1 their share."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How the learning rate falls."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Hide losses that are not finite, at the price of waiting for each step."},
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "A checkpoint's folder, or `last` for the newest in --output_dir."},
    )
    max_steps: int = field(
        default=-1, metadata={"help": "Steps in all; above 0 it overrules --num_train_epochs."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Without meaning here: batches are the project's own."}
    )

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise UsageError("where should the student go?", do="Add --output_dir FOLDER")
        super().__post_init__()


def check_arguments(arguments: TrainingArguments) -> None:
    """Refuses what would be ignored, or would do harm.

    Raises:
        UsageError: naming the flag, or the command that uses all GPUs.
    """
    for name, (allowed, reason) in _REFUSED.items():
        got = getattr(arguments, name)
        if got != allowed:
            raise UsageError(f"--{name} has no place here: {reason}", got=got)
    if arguments.world_size > 1 and not arguments.average_tokens_across_devices:
        raise UsageError(
            "--average_tokens_across_devices cannot be turned off: the loss is a mean over all ranks"
        )
    if arguments.n_gpu > 1:
        raise UsageError(
            f"{arguments.n_gpu} GPUs are visible to one process, which would train with nn.DataParallel",
            do=f"Run torchrun --nproc_per_node {arguments.n_gpu} -m teachonce train ..., "
            "or set CUDA_VISIBLE_DEVICES=0",
        )
