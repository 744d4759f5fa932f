"""Runs as people start them: the command in a process of its own, with a time limit; and the rows that they leave."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from schemas import Cache
from tests.pipelines.helpers import read

LIMIT_SECONDS = 300
"""A job that takes longer hangs: engines wait in silence for a worker that died."""

LOGPROB_TOLERANCE = 1e-3
"""Nats. Engines cut the same units, and a unit its batches: on one machine the codes are the same, bit for bit. Other
nights cut other units, and a forward's last bit may depend on the batch: compare with the same nights."""


_SEVERAL = "import json, sys, teachonce; sys.exit(max(map(teachonce.main, json.loads(sys.argv[1]))))"
"""One process, several calls: eight seconds of imports are paid once."""


def start(
    *calls: Sequence[object], env: Mapping[str, str] | None = None, without: Sequence[str] = ()
) -> subprocess.Popen:
    """`teachonce` with these arguments, in the background; several calls are made one after the other."""
    given = {name: value for name, value in os.environ.items() if name not in without}
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _SEVERAL, json.dumps([[str(word) for word in call] for call in calls])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**given, **quiet, **(env or {})},
    )


def finish(process: subprocess.Popen, limit: float = LIMIT_SECONDS) -> tuple[int, str]:
    """Exit status and output; a process that takes longer than the limit is killed, and is a failure."""
    try:
        out, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        raise AssertionError(f"no end after {limit} s\n{out[-3000:]}") from None
    return process.returncode, out


def teachonce(*calls: Sequence[object], env: Mapping[str, str] | None = None) -> str:
    """The output of calls that all succeed."""
    status, out = finish(start(*calls, env=env))
    assert status == 0, out[-3000:]
    return out


def call(
    corpus: object,
    teacher: Path,
    cache: object,
    report: Path,
    beam: Sequence[str] = (),
    without: Sequence[str] = (),
    **own,
) -> list[object]:
    """The words of one `precompute`, with units that are small enough to be many; some flags are left out."""
    own = {
        "task": "causal-lm",
        "max_length": 24,
        "unit_tokens": 200,
        "batch_tokens": 256,
        "keep": "all",
    } | own
    given = {"corpus": corpus, "teacher": teacher, "cache": cache, "report": report, **own}
    flags = [f"--{name}={value}" for name, value in given.items() if name not in without]
    return ["precompute", *flags, "--no_progress", *(["--", *beam] if beam else [])]


def thin_call(cache: object, out: object, beam: Sequence[str] = ()) -> list[object]:
    """The words of one `thin` from draws to fewer draws, which tells what it did as one JSON object."""
    words = ["thin", cache, "--keep=threshold:1/8", f"--out={out}", "--json", "--no_progress"]
    return [*words, *(["--", *beam] if beam else [])]


def told(out: str) -> list[dict]:
    """The JSON objects that calls printed, among whatever engines say."""
    found, decoder = [], json.JSONDecoder()
    while (start := out.find("{\n")) >= 0:
        value, end = decoder.raw_decode(out[start:])
        found.append(value)
        out = out[start + end :]
    return found


def precompute(
    *args,
    times: int = 1,
    report: Path,
    env: Mapping[str, str] | None = None,
    then: Sequence[Sequence[object]] = (),
    **own,
) -> list[dict]:
    """The summaries of a run that succeeds, and of the same run again, as often as asked; then what other calls of
    the same process told."""
    reports = [report.with_name(f"{report.name}-{index}") for index in range(times)]
    out = teachonce(*(call(*args, report=path, **own) for path in reports), *then, env=env)
    summaries = [json.loads(path.read_text()) for path in reports]
    return [*summaries, *(told(out)[-len(then) :] if then else [])]


def assert_same_rows(cache: object, reference: object) -> None:
    """Both hold the same examples, each once, and say the same of each; and the first is whole, byte by byte."""
    opened = Cache.open(cache)
    found, wanted = read(opened), read(reference)
    assert found.keys() == wanted.keys()
    for key, row in found.items():
        assert np.array_equal(row["kept_ids"], wanted[key]["kept_ids"])
        assert np.allclose(row["logprobs"], wanted[key]["logprobs"], rtol=0, atol=LOGPROB_TOLERANCE)
    assert opened.verify().examples == len(wanted)


def assert_same_bytes(cache: object, reference: object) -> None:
    """Both have the same shards by their seals, and the first is whole: so each byte is the same."""
    found, wanted = Cache.open(cache), Cache.open(reference)
    assert found.verify().examples == wanted.totals.examples
    assert [(s.name, s.size_bytes) for s in found.shards] == [(s.name, s.size_bytes) for s in wanted.shards]
