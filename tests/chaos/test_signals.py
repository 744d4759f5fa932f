"""SIGTERM to the real command and all its processes: the lease is given back, the report says so, nobody is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import teachonce
from schemas.storage.storage import Storage
from schemas.versions.history import living_runs
from tests.pipelines import models
from tests.pipelines.helpers import documents, write_jsonl

ROOT = Path(teachonce.__file__).parent


def as_process(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "teachonce", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children_of(process):
    """Every process below one; none of one that has ended in the meantime, as what the imports ask of the system
    does."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*map(int, found), *(below for child in found for below in children_of(child))]


@pytest.mark.chaos
def test_sigterm_ends_a_real_run_and_its_worker_processes(tmp_path):
    teacher = models.causal_teacher(tmp_path / "teacher")
    report = tmp_path / "report.json"
    flags = ["--task=causal-lm", f"--teacher={teacher}", f"--cache={tmp_path / 'cache'}", "--no_progress"]
    more = write_jsonl(tmp_path / "more.jsonl", documents(400))
    process = as_process("precompute", *flags, f"--corpus={more}", "--workers=2", f"--report={report}")
    cache, workers = Storage.at(tmp_path / "cache"), []
    while process.poll() is None and (len(workers) < 2 or not living_runs(cache)):
        workers = children_of(process.pid)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (143, "", "teachonce precompute: ended by SIGTERM\n")
    assert json.loads(report.read_text())["status"] == 143
    assert living_runs(cache) == []
    assert not [child for child in workers if Path(f"/proc/{child}").exists()]
