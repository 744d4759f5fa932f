"""`train_students`: several students from one decode, in one process, each as if it were trained alone.

Each has its own loop, in a thread of its own; they take turns (`turns.py`), and read the caches together
(`trainer/stream/shared.py`). Folders, checkpoints and logs are each student's own, so one that ends leaves the others.

What shapes the order, and what a process has once, must be the same for all: it is compared before anything is opened.
"""

from __future__ import annotations

import gc
import logging
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from schemas.errors import TeachonceError, UsageError, one_line
from trainer.checkpoints.keeping import GO_ON
from trainer.checkpoints.output_folder import check_place
from trainer.checkpoints.records import Record
from trainer.checkpoints.resuming import Beginning
from trainer.checkpoints.signals import Signals, Stopped, name_of, watched
from trainer.training.arguments import StudentArguments
from trainer.training.company import Company, Observer, Pruned
from trainer.training.config import TrainConfig
from trainer.training.preflight import check_settings
from trainer.training.settings import word
from trainer.training.streams import Opened, SharedSides, global_batch, open_caches, stream_seed
from trainer.training.training import Trained, begin, distil
from trainer.training.turns import Turn, Turns

_log = logging.getLogger(__name__)
THREAD = "student "
"""What the name of a student's thread begins with; its output folder follows."""
_REPORTS = ("none", "tensorboard")
"""Services that keep several runs of one process apart."""
_OF_ORDER = (
    *(
        "join",
        "join_pick",
        "cache_version",
        "eval_fraction",
        "shuffle_row_groups",
        "where",
        "lanes",
        "allow_new_data",
    ),
    *("local_cache", "local_cache_gb", "memory_cache_gb"),
)
_OF_PROCESS = ("use_cpu", "tf32", "full_determinism", "log_level")


class Outcome(NamedTuple):
    """What became of one student."""

    output_dir: str
    """As it was named."""
    trained: Trained | None
    error: BaseException | None
    """Why it could not start, or did not come to its end; None where `trained` is there."""


@dataclass(eq=False)
class _Run:
    """One student, from the claim of its folder to its end."""

    config: TrainConfig
    arguments: StudentArguments
    stack: ExitStack
    name: str
    observer: Observer | None = None
    beginning: Beginning | None = None
    trained: Trained | None = None
    error: BaseException | None = None

    def begin(self) -> None:
        """Claims the folder, and finds what to go on from."""
        try:
            self.beginning = begin(self.config, self.arguments, self.stack)
        except Exception as error:  # noqa: BLE001  (it is told, and the others go on)
            self.fail(error)

    def train(self, turn: Turn, sides: SharedSides, opened: Opened, signals: Signals) -> None:
        """The student's thread."""
        assert self.beginning is not None
        company = Company(name=self.name, turn=turn, sides=sides, observer=self.observer)
        try:
            turn.take()
            if signals.asked is not None:
                raise Stopped(signals.asked, f"{name_of(signals.asked)}: stopped before it began")
            self.trained = distil(
                self.config, self.arguments, self.beginning, opened, signals, company=company
            )
        except BaseException as error:  # noqa: BLE001  (it is told, and the others go on)
            self.fail(error)
        finally:
            try:
                self.stack.close()
                gc.collect()  # its weights, before the next one takes a step
            finally:
                turn.leave()

    def fail(self, error: BaseException) -> None:
        """Tells why, and lets go of what the error's frames hold: the model among it."""
        self.error = error
        self.stack.close()
        if isinstance(error, Stopped):
            _log.warning("%s", error)
        elif isinstance(error, Pruned):
            _log.info("%s: %s", self.name, error)
        elif isinstance(error, TeachonceError) and self.observer is not None:
            _log.info("%s: failed: %s", self.name, error)  # who looks on tells it
        elif isinstance(error, TeachonceError):
            _log.error("%s: failed, and leaves the others: %s", self.name, error)
        else:
            told = f"{type(error).__name__}: {one_line(error)}"
            _log.error("%s: failed, and leaves the others: %s", self.name, told, exc_info=error)
        link: BaseException | None = error
        while link is not None:
            traceback.clear_frames(link.__traceback__)
            link.__traceback__ = None
            link = link.__cause__ or link.__context__

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.name, self.trained, self.error)


def train_students(
    students: Sequence[tuple[TrainConfig, StudentArguments]], observers: Sequence[Observer] | None = None
) -> list[Outcome]:
    """Distils several students, each as `train` would, from one decode of the caches.

    One that cannot start, is no longer finite or cannot be saved is told in its outcome; the others go on. Each may
    resume: all go on with the version of the caches that those have who began. `observers` look on, one at each.

    Raises:
        UsageError: the students cannot share a decode, or several ranks would.
        CacheError: the caches cannot be opened.
        Stopped: SIGTERM or SIGINT came; what was trained is saved. (A `KeyboardInterrupt`.)
    """
    check_together(students)
    watching: Sequence[Observer | None] = observers or [None] * len(students)
    with ExitStack() as stack:
        signals = stack.enter_context(watched())
        runs = [
            _Run(config, arguments, stack.enter_context(ExitStack()), str(arguments.output_dir), observer)
            for (config, arguments), observer in zip(students, watching, strict=True)
        ]
        for run in runs:
            run.begin()
        if begun := [run for run in runs if run.beginning is not None]:
            _train(begun, signals)
    _raise_if_stopped(runs)
    return [run.outcome for run in runs]


def _train(runs: Sequence[_Run], signals: Signals) -> None:
    opened = open_caches(runs[0].config, runs[0].arguments.world_size, _before(runs))
    turns, sides = Turns(len(runs)), SharedSides()
    with signals.waiting():
        threads = [_start(run, turns.turn(number), sides, opened, signals) for number, run in enumerate(runs)]
        for thread in threads:
            if thread is not None:
                thread.join()


def _start(
    run: _Run, turn: Turn, sides: SharedSides, opened: Opened, signals: Signals
) -> threading.Thread | None:
    """A student's thread. Where the system gives none the student has failed, and its turn goes to the others."""
    name = f"{THREAD}{run.name}"
    thread = threading.Thread(target=run.train, args=(turn, sides, opened, signals), name=name)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        run.fail(error)
        turn.leave()
        return None
    return thread


def _before(runs: Sequence[_Run]) -> Record | None:
    """Whose versions of the caches all take: those of a student that is begun and not finished, else of a finished."""
    beginnings = [run.beginning for run in runs if run.beginning is not None and run.beginning.record]
    beginnings.sort(key=lambda beginning: beginning.finished is not None)
    return beginnings[0].record if beginnings else None


def _raise_if_stopped(runs: Sequence[_Run]) -> None:
    stopped = [run.error for run in runs if isinstance(run.error, Stopped)]
    if stopped:
        number = stopped[0].number
        told = f"{name_of(number)}: {len(stopped)} of {len(runs)} students are stopped, and saved; {GO_ON}"
        raise Stopped(number, told)


def check_together(students: Sequence[tuple[TrainConfig, StudentArguments]]) -> None:
    """Whether one decode can serve them, and each has a folder.

    Raises:
        UsageError: naming the flag and the students.
    """
    if not students:
        raise UsageError("there is no student to train")
    (config, first), *_ = students
    if first.world_size > 1:
        raise UsageError(
            "--students trains in one process, and not in several ranks",
            got=f"{first.world_size} ranks",
            do="Run it without torchrun, or train each student by itself",
        )
    for number, (own, arguments) in enumerate(students):
        check_settings(own, arguments)
        if arguments.fsdp:
            raise UsageError(
                "--fsdp is for several ranks, and --students trains in one process",
                got=f"--fsdp of {arguments.output_dir}",
                do="Leave it out, or train that student by itself under torchrun",
            )
        _check_folder(number, students)
        _check_reports(arguments)
        ours, theirs = shared_settings(config, first), shared_settings(own, arguments)
        for name, value in ours.items():
            if theirs[name] != value:
                raise UsageError(
                    f"students of one decode cannot differ in {name}",
                    expected=f"{_told(value)}, as {first.output_dir} has it",
                    got=f"{_told(theirs[name])} of {arguments.output_dir}",
                    do="Say it once for all, or train them apart",
                )


def shared_settings(config: TrainConfig, arguments: StudentArguments) -> Mapping[str, Any]:
    """What students of one decode must have alike, by its flag."""
    return {
        "--cache": list(config.sources.items()),
        "--data_seed (without one, --seed)": stream_seed(arguments),
        "--per_device_train_batch_size times --gradient_accumulation_steps": global_batch(arguments),
        **{f"--{name}": getattr(config, name) for name in _OF_ORDER},
        **{f"--{name}": word(getattr(arguments, name)) for name in _OF_PROCESS},
    }


def _told(value: Any) -> str:
    if isinstance(value, list):
        pairs = (
            [f"{a}={b}" if b is not None else a for a, b in value]
            if value and isinstance(value[0], tuple)
            else value
        )
        return " ".join(map(str, pairs)) or "none"
    return "none" if value is None else str(value)


def _check_folder(number: int, students: Sequence[tuple[TrainConfig, StudentArguments]]) -> None:
    """A folder is one student's; and no student begins with what another one's is to be replaced by."""
    folder = str(students[number][1].output_dir)
    others = [str(arguments.output_dir) for _, arguments in students[:number]]
    if any(Path(folder).resolve() == Path(other).resolve() for other in others):
        raise UsageError("two students have one --output_dir", got=folder, do="Name a folder for each")
    beginnings = [name for config, _ in students for name in config.beginnings]
    check_place(folder, students[number][0].sources, beginnings)


def _check_reports(arguments: StudentArguments) -> None:
    named: str | list[str] = arguments.report_to or "none"
    for service in [named] if isinstance(named, str) else named:
        if service not in _REPORTS:
            raise UsageError(
                f"--report_to {service} may keep one run a process only, and several students train in this one",
                expected=" or ".join(_REPORTS),
                got=service,
                do="Train the student by itself",
            )
