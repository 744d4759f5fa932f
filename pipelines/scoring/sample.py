"""A sample of a run's new examples, scored by the real teacher as units are, to learn what the run will cost.

The sample is the examples with the smallest ids: ids are hashes, so it is a random one; and units are ranges of ids,
so it is a run's first units. Its shards go to a temporary folder on the worker, are read back from there as a student
would, and are gone with it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler

from pipelines.corpus.examples import Example
from pipelines.scoring.handler import TeacherJob, open_scorer
from pipelines.scoring.units import ShardLine, UnitScorer
from pipelines.versions import check_versions
from schemas.identity import unit_name
from schemas.rows.entries import entries_of
from schemas.shards.reader import open_footer, read_group
from schemas.spec import Spec
from schemas.storage.storage import Storage

_WARM_UP = 4
"""Examples that are scored before the clock starts: a device's first batches are slow."""
_DECODES = 3
"""Times that a shard is decoded; the fastest counts."""

Unit = list[tuple[Any, ...]]


class Measured(NamedTuple):
    """What a sample cost. Plain types, for Beam."""

    examples: int
    tokens: int
    """Of the examples that the teacher could score."""
    positions: int
    padded_tokens: int
    entries: int
    kept_mass_sum: float
    rejects: int
    row_groups: int
    row_group_bytes: int
    footer_bytes: int
    open_seconds: float
    """Until the teacher was loaded, and its first answer had come."""
    teacher_seconds: float
    unit_seconds: float
    """All that a unit takes: collating, the teacher, encoding, sealing, storing."""
    decode_seconds: float


class SmallestIds(beam.CombineFn):  # type: ignore[misc]
    """The examples with the smallest ids that together have at least so many tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def create_accumulator(self) -> Unit:
        return []

    def add_input(self, accumulator: Unit, example: tuple[Any, ...]) -> Unit:
        return smallest([*accumulator, example], self._tokens)

    def merge_accumulators(self, accumulators: Iterable[Unit]) -> Unit:
        return smallest([example for part in accumulators for example in part], self._tokens)

    def extract_output(self, accumulator: Unit) -> Unit:
        return accumulator


def smallest(examples: Sequence[tuple[Any, ...]], tokens: int) -> Unit:
    """The shortest run of examples, by id and each id once, that has at least so many tokens; else all."""
    taken: dict[bytes, tuple[Any, ...]] = {}
    for example in sorted(examples, key=lambda item: item[0]):
        if tokens <= 0:
            break
        if example[0] not in taken:
            taken[example[0]] = example
            tokens -= Example(*example).weight
    return list(taken.values())


class SampleHandler(ModelHandler[list[Unit], Measured, TeacherJob]):  # type: ignore[misc]
    """Beam's view of the teacher while a run is planned; it is opened only where there is a sample."""

    def __init__(self, job: TeacherJob) -> None:
        super().__init__()
        self._job = job

    def load_model(self) -> TeacherJob:
        check_versions(self._job.versions)
        return self._job

    def run_inference(
        self,
        batch: Sequence[Unit],
        model: TeacherJob,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[tuple[Any, ...]]:
        return [tuple(measure(model, [[Example(*example) for example in unit] for unit in batch]))]

    def get_num_bytes(self, batch: Sequence[Unit]) -> int:
        return sum(len(example[4]) for unit in batch for example in unit)

    def get_metrics_namespace(self) -> str:
        return "teachonce"


def measure(job: TeacherJob, units: Sequence[Sequence[Example]]) -> Measured:
    """Opens the teacher, scores units as a run does, and reads their shards back.

    Raises:
        MismatchError: this worker found another teacher.
        DriftError: here the teacher does not say what the cache holds.
    """
    with tempfile.TemporaryDirectory(prefix="teachonce-sample-") as folder:
        started = time.monotonic()
        scorer = replace(open_scorer(job)[0], root=folder)
        _score(scorer, units[0][:_WARM_UP])
        opened = time.monotonic()
        lines = [_score(scorer, unit) for unit in units]
        scored = time.monotonic()
        names = [line.name for line in lines if line.name is not None]
        footers = [open_footer(Storage.at(folder), name) for name in names]
        decode_seconds = sum(_decode_seconds(folder, name, job.header.spec) for name in names)
    groups = [group for opened_footer in footers for group in opened_footer.footer.row_groups]
    return Measured(
        examples=sum(group.examples for group in groups),
        tokens=sum(group.tokens for group in groups),
        positions=sum(group.positions for group in groups),
        padded_tokens=sum(line.work["padded_tokens"] for line in lines),
        entries=sum(group.entries for group in groups),
        kept_mass_sum=sum(line.totals["kept_mass_sum"] for line in lines),
        rejects=sum(len(line.rejects) for line in lines),
        row_groups=len(groups),
        row_group_bytes=sum(group.end - group.start for group in groups),
        footer_bytes=sum(len(opened_footer.data) for opened_footer in footers),
        open_seconds=opened - started,
        teacher_seconds=sum(line.work["teacher_seconds"] for line in lines),
        unit_seconds=scored - opened,
        decode_seconds=decode_seconds,
    )


def _score(scorer: UnitScorer, unit: Sequence[Example]) -> ShardLine:
    return scorer.score(unit_name((example.id for example in unit), scorer.header.spec.hash), unit)


def _decode_seconds(folder: str, name: str, spec: Spec) -> float:
    """Seconds to fetch, check and decode a whole shard, as a student's stream does."""
    times = []
    for _ in range(_DECODES):
        started = time.perf_counter()
        _decode(folder, name, spec)
        times.append(time.perf_counter() - started)
    return min(times)


def _decode(folder: str, name: str, spec: Spec) -> None:
    storage = Storage.at(folder)
    opened = open_footer(storage, name)
    for place in range(len(opened.footer.row_groups)):
        rows = read_group(storage, name, opened, place, spec)
        if spec.score == "softmax":
            entries_of(rows)
