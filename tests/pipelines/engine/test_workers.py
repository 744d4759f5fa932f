"""`--workers`: real processes, the same rows, and no death that passes silently or leaves anybody behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.engine import device_assignment, processes
from pipelines.engine.beam_options import parse_beam_options
from pipelines.engine.processes import refuse_workers, threads_each
from pipelines.progress import PROGRESS
from pipelines.teacher.devices import own_device
from schemas import Cache
from schemas.errors import CorruptionError, TeachonceError, UsageError
from schemas.spec import CODE_STEP_NATS
from tests.pipelines import models
from tests.pipelines.helpers import config, documents, read, run, write_jsonl

UNITS = {"unit_tokens": 300}
SECONDS = 120


@pytest.fixture(scope="module")
def slow_teacher(tmp_path_factory):
    """Slow enough for somebody to be killed in mid-unit."""
    return models.causal_teacher(tmp_path_factory.mktemp("slow") / "t", hidden_size=256, num_hidden_layers=8)


@pytest.fixture(scope="module")
def much(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("much") / "much.jsonl", documents(3000))


def children(pid):
    """Ids of a process's living children."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    own = [file.read_text() for file in found.parents[1].glob("*/children")] if found.exists() else []
    return [int(text) for line in own for text in line.split()]


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch):
    """Children that were there before are other tests'."""
    before = set(children(os.getpid()))
    found = children
    monkeypatch.setattr(
        sys.modules[__name__], "children", lambda pid: [one for one in found(pid) if one not in before]
    )


def wait_for(condition, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found


def alive(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_two_workers_give_the_rows_of_one_and_both_work(tmp_path, corpus, teacher, whole):
    summary = run(corpus, teacher, tmp_path / "c", workers=2, **UNITS)
    assert summary.workers == 2
    assert summary.shards % 2 == 0
    ours, theirs = read(tmp_path / "c"), read(whole[0])
    assert ours.keys() == theirs.keys()
    entries = rounded = 0
    for key, row in ours.items():
        np.testing.assert_array_equal(row["input_ids"], theirs[key]["input_ids"])
        apart = np.abs(row["logprobs"] - theirs[key]["logprobs"])
        assert ((apart < 1e-3) | (np.abs(apart - CODE_STEP_NATS) < 1e-3)).all(), (
            "equal, or rounded to the next code"
        )
        entries, rounded = entries + apart.size, rounded + int((apart >= 1e-3).sum())
        np.testing.assert_allclose(row["logsumexp"], theirs[key]["logsumexp"], atol=1e-4)
    assert rounded <= 0.005 * entries
    assert Cache.open(tmp_path / "c").verify().examples == whole[1].totals.examples
    told = (PROGRESS.documents, PROGRESS.examples, PROGRESS.tokens, PROGRESS.tokens_found)
    totals = whole[1].totals
    assert told == (24, totals.examples, totals.tokens, totals.tokens), (
        "the workers' progress reaches the driver"
    )
    assert children(os.getpid()) == []


def test_an_error_of_a_worker_is_told_as_itself(tmp_path, corpus, teacher):
    file = write_jsonl(tmp_path / "c.jsonl", [{"text": "one"}, {"no": "text"}])
    with pytest.raises(TeachonceError, match="1 of 2 documents are rejected") as caught:
        run(file, teacher, tmp_path / "c", workers=2)
    assert type(caught.value).__name__ == "TooManyRejectsError"
    assert "\n" not in str(caught.value)


def test_a_worker_that_is_killed_fails_the_run_at_once_and_by_name(tmp_path, much, slow_teacher):
    cache, killed = tmp_path / "c", []

    def kill():
        wait_for(lambda: list(cache.glob("*.parquet")))
        killed.append((children(os.getpid())[0], time.monotonic()))
        os.kill(killed[0][0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TeachonceError, match="a worker process died; nothing was committed: got signal 9"):
        run(much, slow_teacher, cache, workers=2, unit_tokens=3000)
    took = time.monotonic() - killed[0][1]
    killer.join()
    assert took < 20, "nobody waits for the other worker's share"
    assert children(os.getpid()) == []
    assert not (cache / "_delta_log").exists()


PLANTED = """
import os, time
import pipelines.scoring.handler
from schemas.errors import CorruptionError

def score(self, examples):
    try:
        os.close(os.open(os.environ["PLANTED"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise CorruptionError("a planted fault") from None
    time.sleep(600)

pipelines.scoring.handler.LazyScorer.score = score
"""


def test_an_error_of_one_worker_is_told_before_the_others_have_done_their_share(
    tmp_path, corpus, teacher, monkeypatch
):
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PLANTED", str(tmp_path / "first"))
    monkeypatch.setattr(processes, "_QUIETLY", f"{processes._QUIETLY} import planted;")
    started = time.monotonic()
    with pytest.raises(CorruptionError, match="a planted fault"):
        run(corpus, teacher, tmp_path / "c", workers=2, **UNITS)
    assert time.monotonic() - started < 550, "nobody waits for the ten minutes of the other"
    assert (tmp_path / "first").exists()
    assert children(os.getpid()) == []
    assert not (tmp_path / "c" / "_delta_log").exists()


def test_workers_end_with_a_driver_that_is_killed(tmp_path, much, slow_teacher):
    cache = tmp_path / "c"
    flags = f"--corpus {much} --teacher {slow_teacher} --task causal-lm --max_length 24 --cache {cache}"
    flags += " --workers 2 --unit_tokens 3000 --no_progress"
    command = "import sys, teachonce; sys.exit(teachonce.main())"
    driver = subprocess.Popen(
        [sys.executable, "-c", command, "precompute", *flags.split()],
        cwd=Path(__file__).resolve().parents[3],
    )
    try:
        wait_for(lambda: list(cache.glob("*.parquet")) or driver.poll() is not None)
        workers = children(driver.pid)
        assert len(workers) == 2
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not any(map(alive, workers)), 20)
    assert not (cache / "_delta_log").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--runner=FlinkRunner",), "Use --parallelism"),
        (("--runner=DataflowRunner",), "--num_workers"),
        (("--runner=PrismRunner",), "engine's own"),
        (("--direct_num_workers=2",), "exclude each other"),
        (("--direct_running_mode=multi_processing",), "exclude each other"),
    ],
)
def test_workers_are_for_the_in_process_runner_alone(flags, told):
    options = parse_beam_options(flags)
    refuse_workers(1, options)
    with pytest.raises(UsageError, match=told):
        refuse_workers(2, options)
    refuse_workers(2, parse_beam_options(()))


@pytest.mark.parametrize("changes", [{"workers": 0}, {"workers": 2, "device_map": "auto"}])
def test_workers_that_make_no_sense_are_refused(corpus, teacher, changes):
    with pytest.raises(ValueError, match="workers"):
        config(corpus, teacher, "unused", **changes)


def test_cores_are_shared_and_nobody_is_left_without():
    cores = len(os.sched_getaffinity(0))
    assert threads_each(1) == cores
    assert threads_each(10 * cores) == 1


CLAIM = f"""
import runpy, sys
claim = runpy.run_path({device_assignment.__file__!r})["claim_number"]
print(claim(sys.argv[1]), claim(sys.argv[1]), flush=True)
sys.stdin.read()
"""


def claimants(run_id, count):
    """Processes that have claimed a number each, and their numbers."""
    command = [sys.executable, "-c", CLAIM, run_id]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    made = [subprocess.Popen(command, **pipes) for _ in range(count)]
    return made, [tuple(map(int, one.stdout.readline().split())) for one in made]


def test_processes_of_a_run_share_out_the_devices_and_a_dead_one_leaves_its_own(monkeypatch, tmp_path):
    run_id = f"test-{os.getpid()}"
    made, numbers = claimants(run_id, 3)
    try:
        assert sorted(numbers) == [(0, 0), (1, 1), (2, 2)], "each its own, the same at every call"
        victim = made[numbers.index((1, 1))]
        victim.kill()
        victim.wait()
        others, again = claimants(run_id, 1)
        made += others
        assert again == [(1, 1)]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert own_device(torch.device("cpu"), run_id) == torch.device("cpu")
        own = own_device(torch.device("cuda"), run_id)
        assert own == torch.device("cuda:1"), "the fourth of a box with two"
    finally:
        for one in made:
            one.kill()
            one.communicate()
        device_assignment.forget_claims(run_id)
    device_assignment.forget_claims(run_id)
    assert device_assignment.claim_number(run_id) == 3, "a process keeps what it has"
