"""A sweep that is killed goes on where it was: no trial is lost, and none is trained to its end twice."""

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.trainer import children
from tests.trainer.sweep.sweeping import Sweeping, told

SPACE: dict[str, Any] = {
    "losses": {"kl": 1, "ce": {"uniform": [0, 1]}},
    "learning_rate": {"log": [1e-4, 1e-2]},
    "max_steps": 8,
}
FLAGS = ("--json", "--trials", "5", "--parallel", "2", "--keep", "all")
ENDED = re.compile(r"^\S+ trial (\d+): cross_entropy_nats [\d.]+$", re.MULTILINE)


def result(log: Path) -> list[dict[str, Any]]:
    """What a run that ended well printed as JSON, behind what it said."""
    text = log.read_text()
    return told(json.loads(text[text.index("\n{\n") :]))


def finished(study: Path) -> dict[str, int]:
    """When each finished student was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in study.glob("trial-*/model.safetensors")}


def test_killed_again_and_again(sweeping: Sweeping) -> None:
    """At instants at which something is written, in training and between trials."""
    whole = sweeping.folder / "whole.log"
    assert children.run(sweeping.argv("whole", *FLAGS, **SPACE), whole) == 0
    each = children.instants(whole) // 5
    written: dict[str, int] = {}
    logs: list[Path] = []
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        logs.append(sweeping.folder / f"{len(logs)}.log")
        argv = sweeping.argv("killed", *FLAGS, **SPACE)
        status = children.run(argv, logs[-1], crash_at=each + 7 * len(logs))
        now = finished(sweeping.folder / "killed")
        assert now.items() >= written.items()
        written = now
    assert status == 0, logs[-1].read_text()
    assert len(logs) > 3
    assert result(logs[-1]) == result(whole)
    ended = Counter(number for log in logs for number in ENDED.findall(log.read_text()))
    assert set(ended) <= {"0", "1", "2", "3", "4"}
    assert max(ended.values()) == 1
    assert len(written) == 5


def test_asked_to_stop(sweeping: Sweeping) -> None:
    """SIGTERM in training: the step is finished and saved, status 143; the same command goes on."""
    log, whole = sweeping.folder / "stopped.log", sweeping.folder / "whole.log"
    process = children.start(sweeping.argv("stopped", *FLAGS, **SPACE), log)
    deadline = time.monotonic() + 100
    while not (log.exists() and "25% of its steps" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert children.finish(process) == 128 + signal.SIGTERM
    assert "is saved; the same command goes on" in log.read_text()
    assert children.run(sweeping.argv("stopped", *FLAGS, **SPACE), log) == 0
    assert children.run(sweeping.argv("whole", *FLAGS, **SPACE), whole) == 0
    assert result(log) == result(whole)
