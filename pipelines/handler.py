"""The teacher's life inside Beam: `RunInference` loads it once a process and hands it whole units.

Batching is ours, inside a unit, so `RunInference` does none. Resource hints sit on this step alone, and it returns one
line a unit: no kept entry ever crosses a stage.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apache_beam.ml.inference.base import ModelHandler

from pipelines.config import TeacherConfig
from pipelines.fingerprint import make_fingerprint, resolve
from pipelines.progress import PROGRESS
from pipelines.teacher import open_teacher
from pipelines.tokenise import Example
from pipelines.units import ShardLine, UnitScorer
from schemas.errors import MismatchError
from schemas.identity import unit_name
from schemas.spec import Header

DEFAULT_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}


@dataclass(frozen=True, kw_only=True)
class TeacherJob:
    """What a worker needs to score units. Plain values: it is pickled."""

    config: TeacherConfig
    header: Header
    root: str
    batch_tokens: int | None
    row_group_tokens: int


class LazyScorer:
    """Opens the teacher at its first unit, so that a run with nothing new never loads it.

    Engines hand units to several threads of one worker at once: one of them opens the teacher, the others wait.
    """

    def __init__(self, job: TeacherJob) -> None:
        self._job = job
        self._scorer: UnitScorer | None = None
        self._opening = threading.Lock()

    def score(self, examples: Sequence[Example]) -> ShardLine:
        """Scores one unit."""
        with self._opening:
            self._scorer = self._scorer or open_scorer(self._job)
        PROGRESS.start_teacher()
        name = unit_name((example.id for example in examples), self._job.header.spec.hash)
        return self._scorer.score(name, examples)


class TeacherHandler(ModelHandler[Example, ShardLine, LazyScorer]):  # type: ignore[misc]
    """Beam's view of the teacher: load once, run on a unit."""

    def __init__(self, job: TeacherJob) -> None:
        super().__init__()
        self._job = job

    def load_model(self) -> LazyScorer:
        return LazyScorer(self._job)

    def run_inference(
        self,
        batch: Sequence[Example],
        model: LazyScorer,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[ShardLine]:
        return [model.score(batch)]

    def get_num_bytes(self, batch: Sequence[Example]) -> int:
        return sum(len(example.input_ids) for example in batch)

    def get_metrics_namespace(self) -> str:
        return "teachonce"


def open_scorer(job: TeacherJob) -> UnitScorer:
    """Opens the teacher and checks that it is the one the run was started for.

    Raises:
        MismatchError: this worker found another teacher under the same name.
    """
    found = resolve(job.config)
    fingerprint = make_fingerprint(job.config, found.folder, job.header.tokenizer, found.tokenizer)
    if fingerprint != job.header.fingerprint:
        raise MismatchError(
            "a worker found another teacher than the run was started with",
            where=job.config.path,
            expected=job.header.fingerprint.hash,
            got=fingerprint.hash,
        )
    teacher = open_teacher(job.config, job.header.spec, found.folder)
    return UnitScorer(
        teacher=teacher,
        root=job.root,
        fingerprint_hash=fingerprint.hash,
        batch_tokens=job.batch_tokens or DEFAULT_BATCH_TOKENS[teacher.device.type],
        row_group_tokens=job.row_group_tokens,
        pad_id=found.tokenizer.pad_token_id or 0,
    )
