"""Writes: a corpus and a teacher become a cache, by way of Apache Beam."""

from pipelines.config import CorpusConfig, PrecomputeConfig, TeacherConfig
from pipelines.outcome import RunSummary
from pipelines.run import precompute

__all__ = ["CorpusConfig", "PrecomputeConfig", "RunSummary", "TeacherConfig", "precompute"]
