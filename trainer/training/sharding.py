"""`--fsdp`: the student and its projections in shards over the ranks, by FSDP2 as `Trainer` starts it.

Every rank holds a part of each weight and of the optimizer's state; a block is gathered when it runs. What is saved is
gathered on rank 0 and is the plain student, as of any run. On CPUs accelerate passes over the flag without a word
(1.15 knows FSDP for accelerators alone), so there it is started here: slow, but the same code, for tests over gloo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin


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
