"""The flags of `train` as fields: names, types, defaults and help, and nothing that checks them.

They stand apart from `TrainConfig` and `StudentArguments`, which inherit them, so that a help text and the refusal of a
wrong flag need neither torch nor transformers: seconds and a gigabyte otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.cli.arguments import Repeatable
from schemas.identity import DEFAULT_EVAL_FRACTION
from trainer.training.local_cache import GB_DEFAULT, GB_HELP, HELP
from trainer.training.presets import PRESETS

MEMORY_GB_DEFAULT = 0.25
"""Of `--memory_cache_gb`."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What to distil, from what, by which losses."""

    cache: list[str] | str = field(
        metadata={
            "help": "The cache: a folder, s3://, gs:// or az://. Several give one stream: each PATH=WEIGHT, its share "
            "of the rows; or each PATH, and every row comes once an epoch.",
            "action": Repeatable,
        }
    )
    join: str | None = field(
        default=None,
        metadata={
            "help": "example: the caches are of several teachers over one corpus, and each example that all have is "
            "taught by the mean of them, with PATH=WEIGHT as weights (docs/several.md)."
        },
    )
    join_pick: str | None = field(
        default=None,
        metadata={
            "help": "In place of the mean one teacher at each position: the one of the lower loss, or entropy."
        },
    )
    student: str = field(
        metadata={
            "help": "A model folder or hub name; a config .json to start from scratch; shrink:layers=N, the "
            "teacher's own weights, N of its layers; linear, mlp:256, on the cache's features; static:256."
        }
    )
    teacher: str | None = field(
        default=None, metadata={"help": "The teacher's folder; only for --student shrink:layers=N."}
    )
    losses: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME=WEIGHT[,PARAMETER=VALUE...] ... of docs/losses.md: kl (from the teacher), ce (the corpus's "
            "own labels), jsd=1,beta=0.3, feature (pooled states). [kl=1.0]"
        },
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "Of kl and its kin, times its square. The cache must have declared it. [1]"},
    )
    temperature_schedule: str | None = field(
        default=None,
        metadata={
            "help": "SHAPE, by which the temperature goes between 1 (factor 0) and --temperature (factor 1). Needs a "
            "cache with --keep all."
        },
    )
    feature_loss: str | None = field(default=None, metadata={"help": "mse or cosine. [mse]"})
    loss_schedule: list[str] = field(
        default_factory=list,
        metadata={
            "help": "NAME=SHAPE ...: a loss's weight times a factor by step. linear:1:0 and cosine:1:0 go from one to "
            "another; hold:0.1:0.8 rises over a tenth of the steps and falls from eight tenths on.",
        },
    )
    stages: list[str] | None = field(
        default=None,
        metadata={
            "help": "In place of --losses, a text a stage: 'share=0.3 pkd=1 freeze=lm_head.*' 'kl=1 "
            "learning_rate=1e-4'.",
            "action": Repeatable,
        },
    )
    adversarial: str | None = field(
        default=None,
        metadata={
            "help": "fgm=EPSILON: the losses once more on embeddings that are moved so far where they grow most."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": f"A recipe's losses and temperature, in place of these flags: {', '.join(PRESETS)}."
        },
    )
    eval_fraction: float = field(
        default=DEFAULT_EVAL_FRACTION,
        metadata={"help": "Share of documents held out, by their hash: the same for every student."},
    )
    shuffle_row_groups: int = field(
        default=8, metadata={"help": "Row groups that are shuffled together; memory grows with it."}
    )
    where: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Only rows that meet all of these, as length<=512: of length and positions (numbers), label (a "
            "class), entropy and kept_mass (means over a row's positions), document_id; < <= = != > >=.",
            "action": Repeatable,
        },
    )
    lanes: int | None = field(
        default=None,
        metadata={
            "help": "Parts of the stream, each read by one rank: any number of ranks that divides it gives the same "
            "steps. [8; with other numbers of ranks the next multiple; a resume takes its checkpoint's]"
        },
    )
    batching: str = field(
        default="bucket", metadata={"help": "bucket: one text a row, padded; pack: several, kept apart."}
    )
    cache_version: int | None = field(
        default=None, metadata={"help": "Version of the cache. [newest; a resume takes its checkpoint's]"}
    )
    allow_new_data: bool = field(
        default=False,
        metadata={
            "help": "Resume on another version of the cache than the checkpoint's: its newest, or --cache_version."
        },
    )
    local_cache: str | None = field(default=None, metadata={"help": HELP})
    local_cache_gb: float = field(default=GB_DEFAULT, metadata={"help": GB_HELP})
    memory_cache_gb: float = field(
        default=MEMORY_GB_DEFAULT,
        metadata={"help": "Most of decoded rows that later epochs find in memory, in 10^9 bytes a rank."},
    )
    lora: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME=VALUE ...: train LoRA adapters and leave the student's own weights as they are. r (16), "
            "alpha (2 r), dropout (0), targets (all-linear; or names of layers, as q_proj,v_proj). Saved as PEFT saves "
            "it. Needs teachonce[lora]."
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "Hold the frozen weights in 4 bits (QLoRA); needs bitsandbytes, CUDA and --lora."},
    )


@dataclass
class LoopFlags:
    """What of transformers' `TrainingArguments` has another default here, or another help."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the finished student, and for checkpoints on the way."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Replace model and checkpoints in --output_dir; never a cache, nor what this run begins with."
        },
    )
    report_to: str | None = field(
        default="none",
        metadata={"help": "Where to report, for instance tensorboard or wandb."},
    )
    logging_steps: float = field(default=20, metadata={"help": "Log every so many steps."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs in all."})
    eval_steps: float | None = field(
        default=None,
        metadata={"help": "Evaluate every so many steps, or below 1 their share. [--logging_steps]"},
    )
    save_steps: float = field(
        default=500, metadata={"help": "Save every so many steps, or below 1 their share."}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches of each rank a step."})
    bf16: bool = field(default=False, metadata={"help": "Mixed precision in bfloat16."})
    weight_decay: float = field(
        default=0.0, metadata={"help": "The optimizer's, but of biases and normalisations."}
    )
    save_total_limit: int | None = field(default=3, metadata={"help": "Checkpoints that are kept."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: float = field(default=0.02, metadata={"help": "Steps of warm-up, or below 1 their share."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How the learning rate falls."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Refused: training stops at a loss that is not finite."},
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "What --load_best_model_at_end goes by: loss, or one of --losses, as eval_kl. [loss]"
        },
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Known of each metric: lower is better for every loss."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "auto: go on with what --output_dir holds, or start, so that one command serves a job that is "
            "restarted; last: its newest whole checkpoint; or a checkpoint's folder."
        },
    )
    max_steps: int = field(
        default=-1, metadata={"help": "Steps in all; above 0 it overrules --num_train_epochs."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Without meaning here: batches are the project's own."}
    )
