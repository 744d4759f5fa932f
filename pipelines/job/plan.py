"""`plan`: what a run would do and cost, with nothing written to the cache.

The corpus is read, joined with the cache and tokenised by the run's own steps, so that the counts are those of the run
that follows. A sample of the new examples is scored by the real teacher on a worker. What the workers found comes back
to the driver, on any engine, as one small JSON file in Beam's `--temp_location` (or in a local temporary folder, where
the pipeline runs in this process); it is deleted once it is read.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.pvalue import AsDict, AsIter

from pipelines.config import SAMPLE_TOKENS, PrecomputeConfig
from pipelines.job.cost import NO_PRICES, Cost, Expected, Prices, cost_of, expect
from pipelines.job.outcome import COUNTED
from pipelines.job.pipeline import Job, gate_of, hinted, in_unit, read, teacher_job
from pipelines.job.run import in_process, prepare, run_wired
from pipelines.progress import shown
from pipelines.scoring.sample import Measured, SampleHandler, SmallestIds, Unit
from pipelines.tolerances import Run, labels_of, rejects_of, too_many_missing, too_many_rejects
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run over this corpus into this cache would do. Counts are exact; `expected` is from a sample."""

    base: int
    """The cache's newest version; -1 where nothing was committed."""
    documents: int
    blank_lines: int
    duplicates: int
    known_documents: int
    new_documents: int
    adopted_documents: int
    remembered_documents: int
    forgotten_documents: int
    truncated_pairs: int
    rejects: Mapping[str, int]
    """Before the teacher is asked."""
    labels: Mapping[str, int]
    """Documents by how their labels were read."""
    examples: int
    tokens: int
    positions: int
    """Of new examples: what the teacher would score; of answers that it is to write, what they may have at most."""
    adopted_examples: int
    pruned_examples: int
    replaced_examples: int
    moved_shards: int
    """Shards to rewrite or to adopt."""
    prune_withheld: int
    refusals: tuple[str, ...]
    """Why the run would fail before the teacher starts; empty where it would not."""
    epochs: int
    keep: str
    """The policy of the run."""
    workers: int
    """As `--workers` asks."""
    sample: Measured | None
    """None where nothing is new."""
    expected: Expected | None
    cost: Cost | None
    """None where nothing is new."""
    plan_seconds: float = field(default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "sample": None if self.sample is None else self.sample._asdict()}


def plan(
    config: PrecomputeConfig,
    *,
    sample_tokens: int = SAMPLE_TOKENS,
    epochs: int = 1,
    prices: Prices = NO_PRICES,
) -> Plan:
    """Counts what a run would do, and scores a sample to tell what it would cost. The cache is not written to.

    Raises:
        UsageError: a path, a flag or a Beam option is wrong; or an engine elsewhere has no `--temp_location`.
        TeacherError: the teacher cannot be opened or run as asked.
        MismatchError, DriftError: the run would be refused.
        CorpusError: the corpus cannot be read to its end.
    """
    started = time.time()
    job, options = prepare(config, leased=False)
    with ExitStack() as stack:
        target = _target(options, job.run.id, stack)
        with shown(config.show_progress and in_process(options)):
            run_wired(job, options, lambda pipeline: wire(pipeline, job, sample_tokens, target))
        found = _fetch(target)
    return plan_of(job, found, epochs=epochs, prices=prices, plan_seconds=time.time() - started)


def wire(pipeline: beam.Pipeline, job: Job, sample_tokens: int, target: str) -> None:
    """A run up to its units, a sample instead of them, and one file instead of a commit."""
    config, run = job.config, job.run
    reading = read(pipeline, job)
    examples = reading.examples | "each example" >> beam.FlatMap(tuple)
    once = pipeline | "once" >> beam.Create([None])
    counted, moved = [examples | "count examples" >> beam.Map(lambda _: ("examples", 1))], []
    if reading.adopted is not None:
        counted.append(reading.adopted | "count adopted" >> beam.Map(lambda _: ("adopted_examples", 1)))
        moved.append(reading.adopted | "orphans" >> beam.Keys())
    if reading.leaving is not None:
        counted.append(reading.leaving | "count leaving" >> beam.Map(count_leaving))
        moved.append(reading.leaving | "their shards" >> beam.Map(lambda row: row[1][0]))
    if moved:
        counted.append(
            moved
            | "gather moves" >> beam.Flatten()
            | "each once" >> beam.Distinct()
            | "count shards" >> beam.Map(lambda _: ("moved_shards", 1))
        )
    moves = AsDict(
        counted | "gather what moves" >> beam.Flatten() | "add what moves" >> beam.CombinePerKey(sum)
    )
    measured = (
        examples
        | "take a sample" >> beam.CombineGlobally(SmallestIds(sample_tokens))
        | "cut into units" >> beam.FlatMap(cut, run, config, reading.counts)
        | "ask the teacher"
        >> hinted(RunInference(SampleHandler(teacher_job(job)).with_no_batching()), config)
    )
    _ = once | "tell the driver" >> beam.Map(tell, target, reading.counts, moves, AsIter(measured))


def count_leaving(element: tuple[str, tuple[str, bytes, bool]]) -> tuple[str, int]:
    """The count of one row that leaves."""
    return ("pruned_examples" if element[1][2] else "replaced_examples"), 1


def cut(sample: Unit, run: Run, config: PrecomputeConfig, counts: Mapping[str, int]) -> list[list[Unit]]:
    """The sample in the units that a run would make; nothing where there is no sample."""
    gate = tuple(gate_of(run, config, counts))
    units: dict[int, Unit] = {}
    for number, example in (in_unit(example, gate) for example in sample):
        units.setdefault(number, []).append(example)
    return [list(units.values())] if units else []


def tell(
    _: None,
    target: str,
    counts: Mapping[str, int],
    moves: Mapping[str, int],
    measured: Iterable[tuple[Any, ...]],
) -> None:
    """Writes what was found to where the driver reads it; done twice, it is the same."""
    found = {"counts": dict(counts), "moves": dict(moves), "measured": [list(one) for one in measured]}
    with FileSystems.create(target) as file:
        file.write(json.dumps(found).encode())


def plan_of(job: Job, found: Mapping[str, Any], *, epochs: int, prices: Prices, plan_seconds: float) -> Plan:
    """The plan from what the workers have found."""
    run, counts, moves = job.run, found["counts"], found["moves"]
    measured = next((Measured(*one) for one in found["measured"]), None)
    gate = gate_of(run, job.config, counts)
    errors = (too_many_rejects(run, counts), too_many_missing(run, counts))
    moved = {name: moves.get(name, 0) for name in ("adopted_examples", "replaced_examples", "moved_shards")}
    expected = cost = None
    if measured is not None and measured.tokens:
        tokens = counts["tokens"]
        if run.header.spec.generation is not None:  # counted is what answers may have at most
            tokens = round(measured.tokens * moves["examples"] / measured.examples)
        expected = expect(
            measured,
            tokens=tokens,
            examples=moves["examples"],
            num_units=gate.num_units,
            workers=job.config.workers,
            row_group_tokens=job.config.row_group_tokens,
            overhead_seconds=plan_seconds - measured.unit_seconds - measured.decode_seconds,
            epochs=epochs,
        )
        cost = cost_of(expected, tokens=tokens, epochs=epochs, prices=prices)
    return Plan(
        base=run.base,
        **{name: counts.get(name, 0) for name in COUNTED},
        rejects=rejects_of(counts),
        labels=labels_of(counts),
        examples=moves.get("examples", 0),
        tokens=counts.get("tokens", 0),
        positions=counts.get("positions", 0),
        **moved,
        pruned_examples=0 if gate.prune_withheld else moves.get("pruned_examples", 0),
        prune_withheld=counts.get("unidentified", 0),
        refusals=tuple(str(error) for error in errors if error is not None),
        epochs=epochs,
        keep=str(run.header.spec.keep),
        workers=job.config.workers,
        sample=measured,
        expected=expected,
        cost=cost,
        plan_seconds=plan_seconds,
    )


def _target(options: PipelineOptions, run: str, stack: ExitStack) -> str:
    """Where workers leave what they have found."""
    folder = options.view_as(GoogleCloudOptions).temp_location
    if folder is None and not in_process(options):
        raise UsageError(
            "on this engine a plan needs a place that its workers and this machine both see",
            do="Add --temp_location=DIR behind `--`",
        )
    if folder is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="teachonce-plan-"))
    return str(FileSystems.join(folder, f"teachonce-plan-{run}.json"))


def _fetch(target: str) -> Any:
    """What the workers have found; the file is gone then."""
    with FileSystems.open(target) as file:
        found = json.loads(file.read())
    FileSystems.delete([target])
    return found
