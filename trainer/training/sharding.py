"""`--fsdp`: the student and its projections in shards over the ranks, by FSDP2 as `Trainer` starts it.

Every rank holds a part of each weight and of the optimizer's state; a block is gathered when it runs. What is saved is
gathered on rank 0 and is the plain student, as of any run. On CPUs accelerate passes over the flag without a word
(1.15 knows FSDP for accelerators alone), so there it is started here: slow, but the same code, for tests over gloo.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers.trainer import SCHEDULER_NAME

from schemas.errors import UsageError

_SHARDED_OPTIMIZER = "optimizer.bin"
"""As FSDP names it."""


def shard_on_cpus(accelerator: Any, plugin_arguments: Mapping[str, Any]) -> bool:
    """Turns FSDP2 on where accelerate would train with DDP; whether it did."""
    state = accelerator.state
    if state.distributed_type != DistributedType.MULTI_CPU:
        return False
    plugin = FullyShardedDataParallelPlugin(**plugin_arguments)
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    return True


def check_kept_as(checkpoint: Path, *, in_shards: bool) -> None:
    """Whether a run that trains in shards, or does not, can go on from what a checkpoint has of the optimizer.

    Raises:
        UsageError: it was kept in shards, and this run's is not; or the other way round.
    """
    is_sharded = (checkpoint / _SHARDED_OPTIMIZER).exists()
    if (checkpoint / SCHEDULER_NAME).exists() and is_sharded != in_shards:
        raise UsageError(
            "a checkpoint's optimizer is in shards where a run has --fsdp, and only there",
            where=str(checkpoint),
            do="Resume with --fsdp" if is_sharded else "Resume without --fsdp",
        )
