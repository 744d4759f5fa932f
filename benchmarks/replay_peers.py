"""Four peers that hold what a cache holds, each in an environment of its own, and their processor time an epoch.

Environments are made with uv from the package index, at the versions below, in `.bench/`; torch is the project's own,
so that all collate with the same one. What they are fed is decoded by our reader: see `replay_worker.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas import Cache
from schemas.rows.entries import entries_of
from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from trainer.batches.collate import Collation

WORKER = Path(__file__).with_name("replay_worker.py")
PACKAGES = {
    "datasets": "datasets==5.2.0",
    "litdata": "litdata==0.2.76",
    "mosaic": "mosaicml-streaming==0.13.0 torchvision==0.28.0",
    "webdataset": "webdataset==1.0.2",
}
BUFFER = 1000
"""Examples in the shuffle buffers of `datasets` and `webdataset`: what their documentation shows."""


class Peer:
    """A process that goes through its copy of a cache, an epoch at a time."""

    def __init__(self, name: str, source: Path, folder: Path, environments: Path, batch_size: int) -> None:
        self.name = name
        python = environment(name, environments)
        settings = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HOME=str(folder / "hf"))
        settings.pop("PYTHONPATH", None)
        run = [str(python), str(WORKER), name]
        quiet: dict[str, Any] = {"stderr": subprocess.PIPE, "env": settings, "text": True, "cwd": folder}
        place = str(folder / name)
        written = subprocess.run(
            [*run, "write", str(source), place], stdout=subprocess.PIPE, check=False, **quiet
        )
        if written.returncode:
            raise SystemExit(f"{name} cannot be written:\n{written.stderr}")
        self.size_bytes = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
        self._log = (folder / f"{name}.log").open("w")
        self._process = subprocess.Popen(
            [*run, "read", place, str(batch_size), str(BUFFER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **quiet | {"stderr": self._log},
        )

    def epoch(self) -> dict[str, Any]:
        """Its processor time in `seconds`, and the `positions` that it gave; `padded` and `order` of its rows."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("\n")
        stdin.flush()
        for line in stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"{self.name} ended: see {self._log.name}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def environment(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there."""
    place = folder / name
    python, stamp = place / "bin/python", place / PACKAGES[name]
    if not stamp.exists():
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        if uv is None:
            raise SystemExit("--peers needs uv, which `make venv` installs")
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(place)], check=True)
        without = folder / "without.txt"
        without.write_text("torch; sys_platform == 'never'\n")
        install = [uv, "pip", "install", "--quiet", "--python", str(python), "--override", str(without)]
        subprocess.run([*install, *PACKAGES[name].split(), "numpy"], check=True)
        packages = next(place.glob("lib/python*/site-packages"))
        (packages / "zz_torch.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
        stamp.touch()
    return python


def buffer_shuffled(environments: Path, shards: int, rows: int) -> Array:
    """The order in which `datasets` would give the rows of so many shards."""
    with tempfile.TemporaryDirectory() as place:
        command = [str(environment("datasets", environments)), str(WORKER), "datasets", "shuffle"]
        command += [str(shards), str(rows), place, str(BUFFER)]
        settings = dict(os.environ, HF_HOME=f"{place}/hf", HF_HUB_OFFLINE="1")
        settings.pop("PYTHONPATH", None)
        told = subprocess.run(command, check=True, capture_output=True, text=True, env=settings).stdout
    return np.array(json.loads(told.splitlines()[-1]))


def write_source(cache: Cache, collation: Collation, path: Path) -> None:
    """A cache's content as plain arrays, flat, with each row's offsets in them."""
    parts = [_columns(rows, collation) for rows in cache.read_all()]
    found: dict[str, Array] = {}
    for name in parts[0]:
        found[name] = np.concatenate([part[name][0] for part in parts])
        found[f"{name}_offsets"] = offsets_of(np.concatenate([part[name][1] for part in parts]))
    rows = len(found["input_ids_offsets"]) - 1
    np.savez(path, number=np.arange(rows, dtype=np.int32), number_offsets=np.arange(rows + 1), **found)


def _columns(rows: Rows, collation: Collation) -> dict[str, tuple[Array, Array]]:
    """Of each column the values, and how many each row has."""
    entries, targets = entries_of(rows), collation.batch(rows).targets
    positions = np.diff(rows.position_offsets)
    assert (positions == rows.input_ids.lengths - 1).all()
    offsets = offsets_of(entries.counts)[rows.position_offsets]
    return {
        "input_ids": (rows.input_ids.values, rows.input_ids.lengths),
        "counts": (entries.counts.astype(np.int32), positions),
        "tail": (targets.tail.numpy(), positions),
        "negentropy": (targets.negentropy.numpy(), positions),
        "ids": (entries.ids, np.diff(offsets)),
        "logprobs": (np.log(entries.weights), np.diff(offsets)),
    }
