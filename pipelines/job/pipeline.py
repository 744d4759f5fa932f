"""The pipeline: Beam only wires; what each step does is a plain function elsewhere.

    read pieces -> parse -> (reject) -> drop repeats and what the cache holds -> tokenise -> gate
       -> units -> teacher on a unit, encode, seal, write -> commit one version

Inputs are shuffled, outputs never: a unit's codes become a shard inside the teacher's step. The cache is listed once,
before the run, and passed in by value: live shards, orphans of crashed runs, and what the teacher could not score.
Their ids are read here and joined with the corpus by document, in buckets of a few megabytes. Steps that a run cannot
need are left out: each costs some milliseconds to build and to run, which tells in a run with nothing new.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import AsDict, AsIter, AsList, AsSingleton

from pipelines.config import PrecomputeConfig
from pipelines.corpus.examples import Example
from pipelines.corpus.files import Piece
from pipelines.corpus.labels import LabelMap
from pipelines.engine.beam_options import DEFAULT_RUNNER
from pipelines.job.outcome import RunSummary, finish
from pipelines.job.preflight import template_variables
from pipelines.job.read_stored import ReadStored
from pipelines.job.reuse import adopt, lines_of, rewrite
from pipelines.job.steps import (
    ADOPTED,
    COUNTS,
    MISSING,
    REJECTS,
    SEEN,
    DropKnown,
    ReadBuckets,
    ReadDocuments,
    Tokenise,
    leaving,
    spared,
    tagged,
)
from pipelines.scoring.handler import TeacherHandler, TeacherJob
from pipelines.scoring.overlap import AwaitLines
from pipelines.scoring.units import ShardLine
from pipelines.tolerances import MAX_REJECT_LINES, Gate, Run, check_missing, check_rejects
from schemas.identity import unit_number
from schemas.shards.rewrite import ENTRIES_A_TOKEN, IMAGE_BYTES_A_TOKEN
from schemas.shards.seal import Shard
from schemas.storage.storage import StoredFile


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that the pipeline is built from."""

    config: PrecomputeConfig
    run: Run
    pieces: Sequence[Piece]
    labels: LabelMap | None
    live: Sequence[Shard] = ()
    orphans: Sequence[StoredFile] = ()
    unscored: Sequence[str] = ()
    """Files of the cache's memory."""
    buckets: int = 1
    """Ranges of document hashes in which corpus and cache meet."""


class Reading(NamedTuple):
    """What is known of a corpus and a cache before the teacher starts."""

    examples: beam.PCollection
    """To be scored, in lists."""
    adopted: beam.PCollection | None
    """(orphan, example id) of rows that come in; None where there is no orphan."""
    leaving: beam.PCollection | None
    """(document, (live shard, example id, whether it is pruned)) of rows that leave; None where none may."""
    counts: AsDict
    rejects: AsIter


def read(pipeline: beam.Pipeline, job: Job) -> Reading:
    """Wires all that is read and joined, for a run and for its plan."""
    config, run = job.config, job.run
    stored = ReadStored(run, job.live, job.orphans, job.unscored, buckets=job.buckets, spread=Spread(job))
    reader = ReadDocuments(config, run, job.labels, template_variables(config))
    parsed = (
        pipeline
        | "list pieces" >> beam.Create(list(job.pieces))
        | "spread pieces" >> Spread(job)
        | "read documents" >> tagged(ReadBuckets(reader, job.buckets), REJECTS, SEEN)
    )
    new = (
        {"found": parsed.main, "stored": pipeline | stored}
        | "meet by hash" >> beam.CoGroupByKey()
        | "drop repeats and known" >> tagged(DropKnown(), ADOPTED, MISSING, SEEN)
    )
    examples = (
        new.main
        | "spread documents" >> Spread(job)
        | "tokenise" >> tagged(Tokenise(config, run), REJECTS, SEEN)
    )
    counted, leaving_rows = [parsed[COUNTS], new[COUNTS], examples[COUNTS]], None
    if run.may_leave:
        seen = (parsed[SEEN], new[SEEN], examples[SEEN]) | "gather seen" >> beam.Flatten()
        leaving_rows = (
            {"missing": new[MISSING], "seen": seen}
            | "meet by id" >> beam.CoGroupByKey()
            | "find what leaves" >> beam.FlatMap(leaving, prune=config.prune, replace=config.replace)
        )
        counted.append(leaving_rows | "count what is pruned" >> beam.Map(count_pruned))
    counts = AsDict(counted | "gather counts" >> beam.Flatten() | "add counts" >> beam.CombinePerKey(sum))
    rejects = AsIter(
        (parsed[REJECTS], examples[REJECTS]) | "gather rejects" >> beam.Flatten() | FewPerReason()
    )
    return Reading(examples.main, new[ADOPTED] if job.orphans else None, leaving_rows, counts, rejects)


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Wires one run."""
    config, run = job.config, job.run
    examples, adopted, leaving_rows, counts, rejects = read(pipeline, job)
    once = pipeline | "once" >> beam.Create([None])
    gate = AsSingleton(once | "keep the tolerances" >> beam.Map(pass_gate, run, config, counts, rejects))
    scored = (
        examples
        | "assign units" >> beam.FlatMap(in_units, gate)
        | "group units" >> beam.GroupByKey()
        | "unpack units" >> hinted(beam.Map(unpacked), config)
        | "ask the teacher"
        >> hinted(RunInference(TeacherHandler(teacher_job(job)).with_no_batching()), config)
    )
    if is_default(job):
        scored = scored | "await lines" >> hinted(beam.ParDo(AwaitLines(job.run.id)), config)
    lines = [scored]
    if adopted is not None:
        lines.append(
            adopted
            | "group by orphan" >> beam.GroupByKey()
            | "adopt" >> beam.Map(adopt, run, config.row_group_tokens)
        )
    if leaving_rows is not None:
        not_there = scored | "name what was not scored" >> beam.FlatMap(not_scored)
        lines.append(
            {"leaving": leaving_rows, "rejected": not_there}
            | "meet what was not scored" >> beam.CoGroupByKey()
            | "spare old rows" >> beam.FlatMap(spared)
            | "group by shard" >> beam.GroupByKey()
            | "rewrite" >> beam.Map(rewrite_shard, run, config.row_group_tokens, gate)
        )
    finished = AsList(lines | "meet lines" >> beam.Flatten())
    _ = once | "commit" >> beam.Map(commit_run, run, finished, counts, rejects)


def is_default(job: Job) -> bool:
    """Whether the run is the in-process engine's, in this process or in workers of this machine."""
    return bool(job.run.provenance["runner"] == DEFAULT_RUNNER)


def teacher_job(job: Job) -> TeacherJob:
    """What a worker needs to score units."""
    config, run = job.config, job.run
    return TeacherJob(
        config=config.teacher,
        header=run.header,
        fingerprint=run.fingerprint,
        root=run.root,
        run=run.id,
        base=run.base,
        batch_tokens=config.batch_tokens,
        row_group_tokens=config.row_group_tokens,
        deadline=None if config.max_hours is None else run.started + config.max_hours * 3600,
        max_drift_kl=config.max_drift_kl,
        versions=run.versions,
        share=config.teacher.device_map is not None and not is_default(job),
        overlaps=is_default(job),
    )


def hinted(step: beam.PTransform, config: PrecomputeConfig) -> beam.PTransform:
    """A step with the resource hints of the teacher. Its units are unpacked under the same hints: steps of other hints
    run on different machines, and a whole unit would be shuffled once more between them."""
    asked = {"accelerator": config.accelerator, "min_ram": config.min_ram}
    return step.with_resource_hints(**{name: value for name, value in asked.items() if value})


class Spread(beam.PTransform):  # type: ignore[misc]
    """Hands elements out to all workers; where there is one, in this process, they stay where they are."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._is_alone = job.config.workers == 1 and is_default(job)

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        return elements if self._is_alone else elements | beam.Reshuffle()


class FewPerReason(beam.PTransform):  # type: ignore[misc]
    """Keeps enough rejects a reason, those that stand first in the corpus."""

    def expand(self, rejects: beam.PCollection) -> beam.PCollection:
        return (
            rejects
            | "by reason" >> beam.Map(lambda reject: (reject[0], reject))
            | "first of each" >> beam.combiners.Top.SmallestPerKey(MAX_REJECT_LINES, key=_place)
            | "rejects" >> beam.FlatMap(lambda item: item[1])
        )


def not_scored(line: Any) -> list[tuple[str, None]]:
    """Ids of documents that the teacher has just rejected: of these no old row may leave."""
    return [(reject[3], None) for reject in ShardLine(*line).rejects if reject[3] is not None]


def count_pruned(element: tuple[str, tuple[str, bytes, bool]]) -> tuple[str, int]:
    """The count of one row that leaves."""
    return "pruned_rows", int(element[1][2])


def pass_gate(
    _: None, run: Run, config: PrecomputeConfig, counts: dict[str, int], rejects: Iterable[tuple[Any, ...]]
) -> tuple[Any, ...]:
    """Fails the run, before the teacher starts, if too much was rejected or is missing; else says how it goes on."""
    check_rejects(run, counts, _reject_lines(rejects))
    check_missing(run, counts)
    return tuple(gate_of(run, config, counts))


def gate_of(run: Run, config: PrecomputeConfig, counts: Mapping[str, int]) -> Gate:
    """How a run goes on that has these counts."""
    spec = run.header.spec
    entries = counts.get("positions", 0) * spec.max_entries
    weight = max(counts.get("tokens", 0), entries // ENTRIES_A_TOKEN)
    weight = max(weight, counts.get("image_bytes", 0) // IMAGE_BYTES_A_TOKEN)
    count = num_units(weight, config.unit_tokens, config.workers)
    return Gate(num_units=count, prune_withheld=counts.get("unidentified", 0) > 0)


def num_units(weight: int, unit_tokens: int, workers: int) -> int:
    """Units of about `unit_tokens`; where there are several, as many for each worker."""
    count = max(1, -(-weight // unit_tokens))
    return count if count == 1 else -(-count // workers) * workers


def in_unit(example: tuple[Any, ...], gate: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
    """An example with the number of its unit."""
    return unit_number(example[0], Gate(*gate).num_units), example


def in_units(
    examples: list[tuple[Any, ...]], gate: tuple[Any, ...]
) -> Iterable[tuple[int, list[tuple[Any, ...]]]]:
    """A list of examples as one list for each unit that they belong to."""
    count = Gate(*gate).num_units
    units: dict[int, list[tuple[Any, ...]]] = {}
    for example in examples:
        units.setdefault(unit_number(example[0], count), []).append(example)
    return units.items()


def unpacked(unit: tuple[int, Iterable[list[tuple[Any, ...]]]]) -> list[Example]:
    """The members of a unit that comes in lists."""
    return members((unit[0], itertools.chain.from_iterable(unit[1])))


def members(unit: tuple[int, Iterable[tuple[Any, ...]]]) -> list[Example]:
    """A unit's examples, each id once, in id order."""
    examples = sorted((Example(*example) for example in unit[1]), key=lambda example: example.id)
    return [next(same) for _, same in itertools.groupby(examples, key=lambda example: example.id)]


def rewrite_shard(
    element: tuple[str, Iterable[tuple[bytes, bool]]], run: Run, row_group_tokens: int, gate: tuple[Any, ...]
) -> ShardLine:
    """A live shard without the rows that leave."""
    return rewrite(element, run, row_group_tokens, Gate(*gate).prune_withheld)


def commit_run(
    _: None, run: Run, lines: list[Any], counts: dict[str, int], rejects: Iterable[tuple[Any, ...]]
) -> RunSummary:
    """The pipeline's last step."""
    return finish(run, lines_of(lines), counts, _reject_lines(rejects))


def _reject_lines(rejects: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [tuple(reject) for reject in rejects]


def _place(reject: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(reject[1:3])
