"""Writes: a corpus and a teacher become a cache, by way of Apache Beam."""

from pipelines.config import CorpusConfig, PrecomputeConfig, TeacherConfig
from pipelines.job.outcome import RunSummary
from pipelines.job.run import precompute
from pipelines.upkeep.compaction import CompactConfig, Compacted, compact
from pipelines.upkeep.erasure import Erased
from pipelines.upkeep.forgetting import ForgetConfig, forget
from pipelines.upkeep.thin import ThinConfig, Thinned, thin

__all__ = [
    "CompactConfig",
    "Compacted",
    "CorpusConfig",
    "Erased",
    "ForgetConfig",
    "PrecomputeConfig",
    "RunSummary",
    "TeacherConfig",
    "ThinConfig",
    "Thinned",
    "compact",
    "forget",
    "precompute",
    "thin",
]
