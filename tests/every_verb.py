"""Every verb's real command on one small place, in a process to which file permissions apply though root starts it.

`python -m tests.every_verb` takes a line of JSON (a command's words, and what is to go wrong) and answers one: status,
stdout, stderr, both as the process's own descriptors have them, so that what a library writes there is seen too.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import teachonce
from schemas.storage.storage import Storage
from tests.pipelines import models
from tests.pipelines.helpers import documents, write_jsonl

_WITHOUT_PRIVILEGES = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "tests.every_verb"])
"""
"""Root without the right to pass over permissions; nobody else has it."""


class Told(NamedTuple):
    """How a call ended."""

    status: int
    out: str
    err: str


def make_place(folder: Path, call) -> Path:
    """A corpus, a teacher, two nights' cache, another teacher's, a student and a space: what the verbs are given."""
    teacher = models.causal_teacher(folder / "teacher")
    models.causal_teacher(folder / "other", seed=1)
    (folder / "student.json").write_bytes((teacher / "config.json").read_bytes())
    write_jsonl(folder / "corpus.jsonl", documents(12))
    write_jsonl(folder / "more.jsonl", documents(16))
    (folder / "ids.txt").write_text("0" * 32 + "\n")
    (folder / "space.yaml").write_text(
        f"student: [{folder}/student.json]\nlosses: kl=1\nmax_steps: 1\nuse_cpu: true\n"
        "learning_rate: [0.001, 0.01]\n"
    )
    run = "precompute --task causal-lm --max_length 24 --no_progress --keep all --corpus"
    for line in (
        f"{run} {folder}/corpus.jsonl --teacher {folder}/teacher --cache {folder}/cache",
        f"{run} {folder}/more.jsonl --teacher {folder}/teacher --cache {folder}/cache",
        f"{run} {folder}/corpus.jsonl --teacher {folder}/other --cache {folder}/second",
        f"train --cache {folder}/cache --student {folder}/student.json --losses kl=1 --output_dir {folder}/student "
        "--max_steps 1 --use_cpu",
    ):
        told = call(line.split())
        assert told.status == 0, told
    return folder


def lines(
    folder: Path | str, *, cache: Path | str = "", out: Path | str = "", name: str = "new"
) -> dict[str, list[str]]:
    """A call of each verb that works: of a cache, and with what it writes named `name` in the folder `out`."""
    cache, out = cache or f"{folder}/cache", out or f"{folder}/out"
    run = (
        f"--corpus {folder}/more.jsonl --teacher {folder}/teacher --task causal-lm --max_length 24 --keep all"
    )
    train = "--losses kl=1 --max_steps 1 --use_cpu --report_to none"
    told = {
        "precompute": f"{run} --cache {cache} --no_progress",
        "plan": f"{run} --cache {cache}",
        "inspect": f"{cache} --rows 1",
        "verify": f"{cache}",
        "verify --teacher": f"{cache} --teacher {folder}/teacher",
        "verify --repair": f"{cache} --repair",
        "report": f"{cache} --out {out}/{name}.html",
        "export": f"{cache} --out {out}/{name}-plain",
        "compact": f"{cache}",
        "thin": f"{cache} --keep threshold:1/8 --out {out}/{name}-small",
        "merge": f"{cache} {folder}/second --out {out}/{name}-both",
        "forget": f"{cache} --ids {folder}/ids.txt",
        "vacuum": f"{cache} --older_than 7d",
        "train": f"--cache {cache} --student {folder}/student.json {train} --output_dir {out}/{name}-student",
        "sweep": f"{cache} --space {folder}/space.yaml --trials 1 --study {out}/{name}-study",
        "evaluate": f"--cache {cache} --student {folder}/student --device cpu",
    }
    return {verb: [verb.split()[0], *words.split()] for verb, words in told.items()}


@contextlib.contextmanager
def process():
    """A function that runs a command's words in a process of its own, one after another."""
    child = subprocess.Popen(
        [sys.executable, "-c", _WITHOUT_PRIVILEGES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )

    def call(words, **wrong) -> Told:
        child.stdin.write(json.dumps({"words": [str(word) for word in words], **wrong}) + "\n")
        child.stdin.flush()
        return Told(*json.loads(child.stdout.readline()))

    try:
        yield call
    finally:
        child.stdin.close()
        child.wait(60)
        child.stdout.close()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = _answer(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        answers.write(json.dumps([status, *texts]) + "\n")
        answers.flush()


def _answer(words: list[str], file_bytes: int | None = None, interrupt_at: str | None = None) -> int:
    """`file_bytes`: no file may grow beyond; `interrupt_at`: Ctrl-C at the storage's next call of that name."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    honest = getattr(Storage, interrupt_at or "read")

    def interrupted(*given: Any, **named: Any) -> Any:
        setattr(Storage, interrupt_at or "read", honest)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # in a thread of its own, until the first thread has seen it
        return honest(*given, **named)

    if interrupt_at:
        setattr(Storage, interrupt_at, interrupted)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        return teachonce.main(words)
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        setattr(Storage, interrupt_at or "read", honest)


if __name__ == "__main__":
    _serve()
