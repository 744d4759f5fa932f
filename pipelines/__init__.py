"""Writes: a corpus and a teacher become a cache, by way of Apache Beam.

A name is opened when it is asked for: a help text imports this package too, and needs neither torch nor Beam.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.config import CorpusConfig, PrecomputeConfig, TeacherConfig
    from pipelines.job.outcome import RunSummary
    from pipelines.job.run import precompute
    from pipelines.upkeep.compaction import CompactConfig, Compacted, compact
    from pipelines.upkeep.erasure import Erased
    from pipelines.upkeep.forgetting import ForgetConfig, forget
    from pipelines.upkeep.merge import MergeConfig, Merged, merge
    from pipelines.upkeep.thin import ThinConfig, Thinned, thin

__all__ = [
    "CompactConfig",
    "Compacted",
    "CorpusConfig",
    "Erased",
    "ForgetConfig",
    "MergeConfig",
    "Merged",
    "PrecomputeConfig",
    "RunSummary",
    "TeacherConfig",
    "ThinConfig",
    "Thinned",
    "compact",
    "forget",
    "merge",
    "precompute",
    "thin",
]

_HOMES = {
    "pipelines.config": ("CorpusConfig", "PrecomputeConfig", "TeacherConfig"),
    "pipelines.job.outcome": ("RunSummary",),
    "pipelines.job.run": ("precompute",),
    "pipelines.upkeep.compaction": ("CompactConfig", "Compacted", "compact"),
    "pipelines.upkeep.erasure": ("Erased",),
    "pipelines.upkeep.forgetting": ("ForgetConfig", "forget"),
    "pipelines.upkeep.merge": ("MergeConfig", "Merged", "merge"),
    "pipelines.upkeep.thin": ("ThinConfig", "Thinned", "thin"),
}
"""Where each name lives."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
