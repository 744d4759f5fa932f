"""`precompute`: one run, from a config to a committed version."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

import schemas.errors
from pipelines.config import PrecomputeConfig
from pipelines.corpus.files import Piece, find_pieces, text_bytes
from pipelines.corpus.labels import LabelMap
from pipelines.engine.beam_options import parse_beam_options
from pipelines.engine.device_assignment import forget_claims
from pipelines.engine.processes import refuse_workers, with_workers
from pipelines.fingerprint.agreement import agreed
from pipelines.fingerprint.fingerprint import make_header, resolve
from pipelines.job.existing_rows import LEAST_ROW_BYTES, num_buckets
from pipelines.job.outcome import RunSummary, put_summary
from pipelines.job.pipeline import Job, build
from pipelines.job.preflight import check_teacher, first_records
from pipelines.progress import shown
from pipelines.scoring.overlap import end_units
from pipelines.teacher.devices import pick_device
from pipelines.teacher.provenance import job_provenance
from pipelines.tolerances import Run
from schemas.cache import RUNS_FOLDER
from schemas.cli.process import refuse_to_go_on
from schemas.errors import CacheError, ConflictError, TeachonceError, UsageError, one_line
from schemas.fingerprint import Fingerprint
from schemas.shards.seal import Totals
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.commits import NO_VERSION, base_version
from schemas.versions.history import end_lease, living_runs, new_run, orphans, take_lease, told_of
from schemas.versions.memory import FORGOTTEN_FOLDER, UNSCORED_FOLDER, refuse_lost_memory, remembered_names

_LOG = logging.getLogger(__name__)
_LAST_RAISED = re.compile(r"^schemas\.errors\.(?P<kind>\w+): (?P<line>.*)$", re.MULTILINE)


def precompute(config: PrecomputeConfig) -> RunSummary:
    """Runs the teacher over what is new in the corpus, and commits one version of the cache.

    With nothing new, nothing is committed and the summary says so. Known documents are found by their content.

    Raises:
        UsageError: a path, a flag or a Beam option is wrong.
        TeacherError: the teacher cannot be opened or run as asked.
        MismatchError: the cache was made by another teacher, or with another spec.
        TooManyRejectsError: too many documents were rejected; nothing was committed.
        CorpusError: the corpus cannot be read to its end; nothing was committed.
        ConflictError: other runs committed in the meantime, twice.
    """
    started = time.time()
    job, options = prepare(config, started=started)
    try:
        return _attempt(job, options)
    except ConflictError:
        lost = _lost(job)
    # what this run has finished is an orphan now, and adopted less what is live
    job, options = prepare(config, started=started)
    return _after(lost, _attempt(job, options), job)


def run_once(config: PrecomputeConfig, started: float | None = None) -> RunSummary:
    """One attempt of a run that began at `started` (seconds since the epoch; None: now).

    Raises:
        ConflictError: another run committed in the meantime.
    """
    return _attempt(*prepare(config, started=started))


def _attempt(job: Job, options: PipelineOptions) -> RunSummary:
    """Runs the pipeline, and gives the lease back; not where a signal ends this process, and an engine goes on."""
    goes_on = False
    try:
        with shown(job.config.show_progress and in_process(options)):
            execute(job, options)
        return _summary_of(job)
    except KeyboardInterrupt:
        goes_on = not in_process(options)
        raise
    finally:
        if not goes_on:
            with contextlib.suppress(CacheError):
                end_lease(Storage.at(job.run.root), job.run.id)


def _summary_of(job: Job) -> RunSummary:
    data = Storage.at(job.run.root).read(f"{RUNS_FOLDER}/{job.run.id}.json")
    return RunSummary.from_json(json.loads(data))


def _lost(job: Job) -> RunSummary | None:
    """What an attempt had done when another run's commit overtook it."""
    try:
        return _summary_of(job)
    except FileNotFoundError:
        return None


def _after(lost: RunSummary | None, summary: RunSummary, job: Job) -> RunSummary:
    """The second attempt's summary, with what the first has scored; it stands in the cache so too."""
    scored = Totals() if lost is None else lost.totals
    summary = replace(
        summary, overtaken=True, overtaken_examples=scored.examples, overtaken_tokens=scored.tokens
    )
    put_summary(Storage.at(job.run.root), summary)
    return summary


def prepare(
    config: PrecomputeConfig, *, leased: bool = True, started: float | None = None
) -> tuple[Job, PipelineOptions]:
    """Everything that is decided before the pipeline: pieces, teacher, header, base version.

    The cache is told that a run lives before anything of it is read, unless nothing will be written (`leased`): so
    `forget` knows of every run that began before it.
    """
    options = parse_beam_options(config.beam_options)
    FileSystems.set_options(options)  # the corpus is listed before there is a pipeline that would say so
    refuse_workers(config.workers, options)
    storage = Storage.at(config.cache)
    _refuse_own_disks(storage, options)
    pieces = find_pieces(config.corpus)
    first = first_records(config.corpus, pieces)
    teacher = resolve(config.teacher)
    asked = make_header(config, teacher)
    check_teacher(config, teacher, LabelMap.for_spec(asked.spec), first)
    pick_device(config.teacher.device)
    run = new_run()
    try:
        if leased:
            take_lease(storage, run)
        _tell_of_others(storage, run)
        runner = options.view_as(StandardOptions).runner
        found = agreed(storage, config, teacher, asked)
        job = _job(config, run, storage, agreed=found, pieces=pieces, runner=runner, started=started)
        return job, options
    except BaseException:
        with contextlib.suppress(CacheError):
            end_lease(storage, run)
        raise


def _tell_of_others(storage: Storage, run: str) -> None:
    """Two runs at once cost the teacher twice: people who did not mean to should know at the start."""
    if others := [other for other in living_runs(storage) if other != run]:
        _LOG.warning(
            "another run lives in %s: %s. What it commits first, this run scores for nothing",
            storage.root,
            told_of(storage, others),
        )


def _job(
    config: PrecomputeConfig,
    name: str,
    storage: Storage,
    *,
    agreed: tuple[Header, Fingerprint],
    pieces: list[Piece],
    runner: str,
    started: float | None,
) -> Job:
    """What is found in the cache when a run begins."""
    base = base_version(storage)
    header, fingerprint = agreed
    if base is not None:
        refuse_lost_memory(storage, base.record.memory)
    run = Run(
        id=name,
        root=storage.root,
        base=NO_VERSION if base is None else base.number,
        header=header,
        teacher=config.teacher,
        provenance=job_provenance(runner),
        max_reject_fraction=config.max_reject_fraction,
        started=time.time() if started is None else started,
        fingerprint=fingerprint,
        max_prune_fraction=config.max_prune_fraction,
        live_rows=0 if base is None else base.record.live_rows,
        may_leave=config.prune or config.replace,
        forgotten=remembered_names(storage, FORGOTTEN_FOLDER),
    )
    unadopted = orphans(storage, base)
    return Job(
        config=config,
        run=run,
        pieces=pieces,
        labels=LabelMap.for_spec(header.spec),
        live=() if base is None else base.shards,
        orphans=unadopted,
        buckets=num_buckets(
            text_bytes(pieces), run.live_rows + sum(file.size_bytes for file in unadopted) // LEAST_ROW_BYTES
        ),
        unscored=() if config.retry_rejects else remembered_names(storage, UNSCORED_FOLDER),
    )


def execute(job: Job, options: PipelineOptions) -> None:
    """Builds the pipeline and runs it to its end."""
    run_wired(job, options, lambda pipeline: build(pipeline, job))


def run_wired(job: Job, options: PipelineOptions, wire: Callable[[beam.Pipeline], None]) -> None:
    """Runs what `wire` makes of an empty pipeline, with as many workers as the job asks for."""
    workers = job.config.workers
    runner = with_workers(options, workers) if workers > 1 else None
    try:
        pipeline = new_pipeline(options, runner)
        wire(pipeline)
        run_to_end(pipeline)
    finally:
        end_units(job.run.id)
        forget_claims(job.run.id)


def new_pipeline(options: PipelineOptions, runner: Any = None) -> beam.Pipeline:
    """An empty pipeline.

    Raises:
        UsageError: the engine's options do not fit together.
    """
    try:
        return beam.Pipeline(runner=runner, options=options)
    except (ValueError, ImportError) as error:
        raise UsageError("Beam refuses its options", got=one_line(error), do="See docs/engines.md") from error


def run_to_end(pipeline: beam.Pipeline, left: str = "nothing was committed") -> None:
    """Runs a pipeline; an error that a worker raised on purpose is raised again as itself.

    `left` says how any other failure leaves the cache.
    """
    try:
        with _quiet_beam():
            pipeline.run().wait_until_finish()
    except Exception as error:
        refuse_to_go_on()  # a step of the engine may have turned a signal into an error of its own
        raise _told(error, left) from error


def _told(error: Exception, left: str) -> TeachonceError:
    """What a worker raised on purpose, as itself: an engine hands errors on as text, with the step's name behind."""
    text = str(error)
    kind, line = type(error).__name__, text
    if not isinstance(error, TeachonceError):
        found = _LAST_RAISED.findall(text)
        if not found:
            return TeachonceError(
                f"the pipeline failed; {left}",
                got=text.strip().splitlines()[-1] if text.strip() else repr(error),
                do="Run again with --traceback for the whole story",
            )
        kind, line = found[-1]
    told: TeachonceError = getattr(schemas.errors, kind)(line.split(" [while running")[0])
    return told


def _refuse_own_disks(storage: Storage, options: PipelineOptions) -> None:
    """On Dataflow every worker has a disk of its own."""
    runner = options.view_as(StandardOptions).runner
    if storage.is_local and runner.rsplit(".", 1)[-1] == "DataflowRunner":
        raise UsageError("--cache must be where every worker reaches it", got=storage.root, do="Use gs://")


def in_process(options: PipelineOptions) -> bool:
    """Whether the pipeline runs in this very process."""
    return bool(options.view_as(StandardOptions).runner == "FnApiRunner")


class _quiet_beam:  # noqa: N801  reads as a block
    """Beam logs a worker's error with its traceback before it raises it; it is told once, at the end."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("apache_beam")
        self._before = self._logger.level
        if self._before == logging.NOTSET:
            self._logger.setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._before)
