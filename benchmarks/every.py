"""All benchmarks, one after the other, and one table of their ratios: which reach their aims, and which fall short.

Each runs in a process of its own, as it does alone. The table names machine, cores and date; what a ratio depends on
beside them stands in its benchmark's header.

    python benchmarks/every.py
    python benchmarks/every.py --only precompute train
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ratios import TOLD_TO, Ratio

HERE = Path(__file__).resolve().parent
BENCHMARKS: dict[str, Sequence[str]] = {
    "precompute": ("precompute.py",),
    "job_parts": ("job_parts.py",),
    "train": ("train.py",),
    "replay": ("replay.py",),
    "fanout": ("fanout.py",),
    "loss": ("loss.py",),
    "codec": ("codec.py",),
    "quality": ("quality.py", "--quick"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    found: list[tuple[str, Ratio]] = []
    failed = []
    for name in parser.parse_args().only:
        print(f"== {' '.join(BENCHMARKS[name])}", flush=True)
        ratios, code = run(BENCHMARKS[name])
        found += [(name, ratio) for ratio in ratios]
        failed += [name] if code else []
    print(table(found))
    if failed:
        sys.exit(f"these ended with an error: {', '.join(failed)}")


def run(command: Sequence[str]) -> tuple[list[Ratio], int]:
    """What one benchmark told, and its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "ratios.jsonl")
        told.touch()
        script, *flags = command
        done = subprocess.run(
            [sys.executable, str(HERE / script), *flags], env=os.environ | {TOLD_TO: str(told)}, check=False
        )
        return [Ratio(**json.loads(line)) for line in told.read_text("utf-8").splitlines()], done.returncode


def machine() -> str:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        names = [line.partition(": ")[2] for line in cpus.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {datetime.date.today():%Y-%m-%d}"


def table(found: Sequence[tuple[str, Ratio]]) -> str:
    short = [ratio for _, ratio in found if ratio.falls_short]
    aimed = [ratio for _, ratio in found if ratio.aim is not None]
    lines = ["", machine(), "", "| benchmark | ratio | measured | aim | |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {ratio.name} | {ratio.value:.3g} | {ratio.aimed} | {'falls short' if ratio.falls_short else ''} |"
        for name, ratio in found
    ]
    return "\n".join([*lines, "", f"{len(short)} of {len(aimed)} that have an aim fall short"])


if __name__ == "__main__":
    main()
