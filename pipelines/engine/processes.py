"""Worker processes on one box: the in-process runner's stages, each of them split among N processes.

Beam's own `multi_processing` mode splits in the same way and loses nothing either. What it lacks is here: a worker that
dies fails the run at once and by name, and so does an error in one (there the run waits for the shares of the workers
before it, or for ever), the driver's options reach the workers, a worker never outlives its driver, each gets its share
of the cores, and its progress comes back.

Cost: every process holds the teacher, and what is grouped lives in the driver, as without workers. The work of a stage
is split before it starts, by number of units, so units are made a multiple of the workers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    ControlFuture,
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.transforms.environments import Environment, python_sdk_capabilities

from pipelines.engine.beam_options import DEFAULT_RUNNER
from pipelines.progress import PROGRESS
from schemas.errors import TeachonceError, UsageError

_URN = "teachonce:env:worker_process:v1"
_BUNDLE = "bundle_"
"""How Beam names the shares of a stage."""
_OWN_FLAGS = {
    "FlinkRunner": "--parallelism",
    "SparkRunner": "the cluster's executors",
    "DataflowRunner": "--num_workers and --max_num_workers",
    "PortableRunner": "--parallelism, or --sdk_worker_parallelism",
}
_QUIETLY = "import logging; logging.disable(); import pipelines.engine.worker;"
"""Libraries warn while they are imported."""

_DIED: list[str] = []
"""How workers of the run ended that nobody had asked to end."""
_FAILED: list[str] = []
"""What workers of the run told as their share's error."""


def refuse_workers(workers: int, options: PipelineOptions) -> None:
    """Refuses `--workers` where the engine has its own flag for that.

    Raises:
        UsageError: more than one worker on another engine, or two ways of asking for them.
    """
    runner = options.view_as(StandardOptions).runner
    if workers == 1:
        return
    if runner != DEFAULT_RUNNER:
        flag = _OWN_FLAGS.get(runner.rsplit(".", 1)[-1], "the engine's own flags")
        raise UsageError(
            f"--workers is for {DEFAULT_RUNNER} alone", got=f"--runner={runner}", do=f"Use {flag}"
        )
    direct = options.view_as(DirectOptions)
    if direct.direct_num_workers != 1 or direct.direct_running_mode != "in_memory":
        raise UsageError(
            "--workers and Beam's --direct_num_workers or --direct_running_mode exclude each other",
            do="Say --workers alone",
        )


def with_workers(options: PipelineOptions, workers: int) -> FnApiRunner:
    """The in-process runner, whose stages are split among so many processes."""
    options.view_as(DirectOptions).direct_num_workers = workers
    return _ProcessRunner(default_environment=WorkerProcess(_settings(options, workers)))


def threads_each(workers: int) -> int:
    """Cores of this machine for each of so many workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def _settings(options: PipelineOptions, workers: int) -> bytes:
    """What a worker is started with: environment variables."""
    threads = str(threads_each(workers))
    given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    return json.dumps(
        {
            "PIPELINE_OPTIONS": json.dumps({"options": given}, default=str),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
            "MKL_NUM_THREADS": os.environ.get("MKL_NUM_THREADS", threads),
        }
    ).encode()


class _ProcessRunner(FnApiRunner):  # type: ignore[misc]
    """Tells of a worker's death in place of the channels that it closed."""

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> Any:
        _DIED.clear()
        _FAILED.clear()
        try:
            with _quiet_channels():
                return super().run_pipeline(pipeline, options)
        except Exception as error:
            if not _DIED:
                raise
            raise TeachonceError(
                "a worker process died; nothing was committed",
                got=_DIED[0],
                do="Give it more memory, or say fewer --workers. The next run goes on with what is finished",
            ) from error


@Environment.register_urn(_URN, bytes)
class WorkerProcess(Environment):  # type: ignore[misc]
    """Beam's name for where the steps run: a process of this machine."""

    def __init__(self, settings: bytes) -> None:
        super().__init__(capabilities=python_sdk_capabilities())
        self._settings = settings

    def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
        return _URN, self._settings

    @staticmethod
    def from_runner_api_parameter(payload: bytes, *_: Any) -> WorkerProcess:
        return WorkerProcess(payload)


@WorkerHandler.register_environment(_URN, bytes)
class WatchedWorker(GrpcWorkerHandler):  # type: ignore[misc]
    """One worker process: started, watched and ended. Its pipe carries its progress, and closes with it."""

    def __init__(self, settings: bytes, *rest: Any) -> None:
        super().__init__(*rest)
        self._settings = json.loads(settings)
        self._closing = False
        connection = self.control_conn
        connection._futures_by_id = _Futures()
        connection.set_input = functools.partial(_set_input, self._heard, connection.set_input)

    def start_worker(self) -> None:
        told, tell = os.pipe()
        environment = self._settings | {
            "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{self.control_address}"',
            "WORKER_ID": self.worker_id,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{_QUIETLY} pipelines.engine.worker.main({tell})"],
            stdin=subprocess.PIPE,
            pass_fds=(tell,),
            env=os.environ | environment,
            start_new_session=True,
        )
        os.close(tell)
        self._watcher = threading.Thread(target=self._watch, args=(os.fdopen(told),), daemon=True)
        self._watcher.start()

    def _watch(self, lines: io.TextIOWrapper) -> None:
        """Hands the worker's progress on; when it ends unasked, ends every worker's work."""
        with lines:
            for line in lines:
                _add_progress(json.loads(line))
        code = self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not self._closing:
            _DIED.append(f"signal {-code}" if code < 0 else f"exit status {code}")
        while not self._closing:
            _fail_all(self._grpc_server.control_handler, "a worker process died")
            time.sleep(0.2)

    def _heard(self, responses: Iterable[Any]) -> Iterator[Any]:
        """Hands on what the worker answers; after an error in its share nobody waits for the others'."""
        for response in responses:
            yield response
            if response.error and response.instruction_id.startswith(_BUNDLE):
                _FAILED.append(response.error)
                _fail_all(self._grpc_server.control_handler, response.error)

    def close(self) -> None:
        """Ends the process: at its own pace when its work is done, at once when the run has failed."""
        self._closing = True
        if _DIED or _FAILED or self.control_conn._futures_by_id:
            self._process.kill()
        super().close()

    def stop_worker(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._process.stdin.close()
        self._process.wait()
        self._watcher.join()


class _Futures(dict[str, ControlFuture]):
    """Answers that are awaited. One that comes when nobody waits any more is heard by nobody."""

    def pop(self, name: str, *_: Any) -> ControlFuture:
        return super().pop(name, None) or ControlFuture(name)


def _set_input(heard: Callable[..., Iterator[Any]], real: Callable[..., None], responses: Any) -> None:
    real(heard(responses))


def _add_progress(told: dict[str, int]) -> None:
    if told.pop("teacher"):
        PROGRESS.start_teacher()
    PROGRESS.add(**told)


def _fail_all(servicer: Any, error: str) -> None:
    """Answers what every worker was asked with an error, so that no stage waits for them."""
    for connection in list(servicer._connections_by_worker_id.values()):
        for name in list(connection._futures_by_id):
            response = beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=error)
            connection._futures_by_id.pop(name).set(response)


@contextlib.contextmanager
def _quiet_channels() -> Iterator[None]:
    """Threads that read a dead worker's channel end in gRPC's error: it is told once, as the run's."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not arguments.exc_type.__module__.startswith("grpc"):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
