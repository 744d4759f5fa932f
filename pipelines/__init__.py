"""Writes: a corpus and a teacher become a cache, by way of Apache Beam."""

from pipelines.compaction import CompactConfig, Compacted, compact
from pipelines.config import CorpusConfig, PrecomputeConfig, TeacherConfig
from pipelines.erasure import Erased
from pipelines.forgetting import ForgetConfig, forget
from pipelines.outcome import RunSummary
from pipelines.run import precompute
from pipelines.thin_run import ThinConfig, Thinned, thin

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
