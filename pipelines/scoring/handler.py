"""The teacher's life inside Beam: `RunInference` loads it once a process and hands it whole units.

Batching is ours, inside a unit, so `RunInference` does none. Resource hints sit on this step alone, and it returns one
line a unit: no kept entry ever crosses a stage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from apache_beam.ml.inference.base import ModelHandler

from pipelines.config import TeacherConfig
from pipelines.corpus.examples import Example
from pipelines.fingerprint.fingerprint import make_fingerprint, resolve
from pipelines.progress import PROGRESS
from pipelines.scoring.overlap import threads_of
from pipelines.scoring.rescore import check_drift
from pipelines.scoring.units import ShardLine, UnitScorer, no_shard
from pipelines.teacher.budget import Budget
from pipelines.teacher.devices import own_device, pick_device
from pipelines.teacher.opening import open_teacher
from pipelines.teacher.provenance import teacher_provenance
from pipelines.versions import check_versions, shared_versions
from schemas import Cache
from schemas.errors import MismatchError
from schemas.fingerprint import Fingerprint
from schemas.identity import unit_name
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.commits import NO_VERSION
from schemas.versions.history import renew_lease


@dataclass(frozen=True, kw_only=True)
class TeacherJob:
    """What a worker needs to score units. Plain values: it is pickled."""

    config: TeacherConfig
    header: Header
    root: str
    run: str
    base: int
    """The version that the run began with."""
    batch_tokens: int | None
    row_group_tokens: int
    deadline: float | None = None
    """Seconds since the epoch after which no unit is begun."""
    max_drift_kl: float = 0.005
    versions: Mapping[str, str] = field(default_factory=shared_versions)
    """Those of the process that started the run."""
    fingerprint: Fingerprint | None = None
    """What the driver found the teacher to be; None: what the header says."""
    share: bool = False
    """Whether the processes of one machine share one teacher, which then owns all its accelerators."""
    overlaps: bool = False
    """Whether the engine's one thread is not to wait for a unit before it begins the next."""


class LazyScorer:
    """Opens the teacher at its first unit, so that a run with nothing new never loads it.

    Engines hand units to several threads of one worker at once: one of them opens the teacher, the others wait.
    """

    def __init__(self, job: TeacherJob) -> None:
        self._job = job
        self._scorer: UnitScorer | None = None
        self._provenance: dict[str, str] = {}
        self._opening = threading.Lock()

    def score(self, examples: Sequence[Example]) -> ShardLine:
        """Scores one unit; or leaves it for another run, when the time is over."""
        name = unit_name((example.id for example in examples), self._job.header.spec.hash)
        if self._job.deadline is not None and time.time() >= self._job.deadline:
            return no_shard(name, postponed_examples=len(examples))
        scorer = self._opened()
        scorer.goes_on()
        PROGRESS.start_teacher()
        line = scorer.score(name, examples)
        renew_lease(Storage.at(self._job.root), self._job.run)
        return line._replace(work={**line.work, "provenance": self._provenance})

    def _opened(self) -> UnitScorer:
        """The one teacher of this process: units may come by several threads."""
        with self._opening:
            if self._scorer is None:
                scorer, self._provenance = open_scorer(self._job)
                if self._job.overlaps:
                    scorer = replace(scorer, goes_on=threads_of(self._job.run).refuse_more)
                self._scorer = scorer
            return self._scorer


class TeacherHandler(ModelHandler[Example, ShardLine | int, LazyScorer]):  # type: ignore[misc]
    """Beam's view of the teacher: load once, run on a unit."""

    def __init__(self, job: TeacherJob) -> None:
        super().__init__()
        self._job = job

    def load_model(self) -> LazyScorer:
        check_versions(self._job.versions)
        return LazyScorer(self._job)

    def run_inference(
        self,
        batch: Sequence[Example],
        model: Any,  # a LazyScorer, or Beam's proxy of one
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[ShardLine | int]:
        if self._job.overlaps:  # a number, by which the next step waits for the line
            return [threads_of(self._job.run).begin(model.score, batch)]
        return [model.score(batch)]

    def share_model_across_processes(self) -> bool:
        """Beam then keeps the teacher in a process of its own; examples go there, and one line a unit comes back."""
        return self._job.share

    def get_num_bytes(self, batch: Sequence[Example]) -> int:
        return sum(len(example.input_ids) for example in batch)

    def get_metrics_namespace(self) -> str:
        return "teachonce"


def open_scorer(job: TeacherJob) -> tuple[UnitScorer, dict[str, str]]:
    """Opens the teacher and checks that it is the one the run was started for; with it, how it is run here.

    Raises:
        MismatchError: this worker found another teacher under the same name.
        DriftError: here the teacher does not say what the cache holds.
    """
    found = resolve(job.config)
    fingerprint = make_fingerprint(job.config, found.folder, found.tokenizer)
    expected = job.fingerprint or job.header.fingerprint
    if fingerprint != expected:
        raise MismatchError(
            "a worker found another teacher than the run was started with",
            where=job.config.path,
            expected=expected.hash,
            got=fingerprint.hash,
        )
    device = own_device(pick_device(job.config.device), job.run)
    if device.index is not None:
        torch.cuda.set_device(device)
    teacher = open_teacher(job.config, job.header.spec, found.folder, device)
    here = {**teacher_provenance(job.config, teacher.device), "batching": teacher.batching}
    if job.base != NO_VERSION:
        cache = Cache.open(job.root, job.base)
        check_drift(cache, teacher, here, job.max_drift_kl)
    scorer = UnitScorer(
        teacher=teacher,
        root=job.root,
        header=job.header,
        budget=Budget.of(job.batch_tokens, teacher.device.type),
        row_group_tokens=job.row_group_tokens,
        deadline=job.deadline,
    )
    return scorer, here
