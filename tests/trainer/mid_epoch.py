"""Something goes wrong with a cache while it is trained on: when a shard is read, well after the first step."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.cache import Cache
from schemas.storage.storage import Storage
from tests.trainer.commanding import AUTO, train
from tests.trainer.outputs import same

TOLD: dict[str, Any] = {
    "max_steps": 24,
    "per_device_train_batch_size": 4,
    "save_steps": 3,
    "save_total_limit": 20,
    "shuffle_row_groups": 2,
    "lanes": 2,
}
"""Of a run whose row groups, of four rows, are read a few at a time; an epoch has 33 steps."""
_SECONDS = 60.0
_USUAL = (
    "Writing model shards",
    "Loading weights",
    "kl from top_k",
    "mse_logits from all",
    "ce: from the corpus",
    "feature: as the cache",
)
"""What every run says."""


class Fault:
    """Does something to the first shard of which a range is read after `reads` others, once training has begun.

    What is damaged is the real file, between two real reads; nothing of the reader is replaced.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        folder: Path,
        out: Path,
        damage: Callable[[Path], object],
        *,
        reads: int = 36,
        footer: bool = False,
    ) -> None:
        self._folder, self._out, self._damage = folder, out, damage
        self._left, self._footer, self._lock = reads, footer, threading.Lock()
        self.name = ""
        """Of the shard."""
        read_range = Storage.read_range

        def watched(storage: Storage, name: str, start: int, end: int) -> bytes:
            if name.endswith(".parquet"):
                with self._lock:
                    self._look(folder / name, end)
            return read_range(storage, name, start, end)

        patch.setattr(Storage, "read_range", watched)

    def _look(self, path: Path, end: int) -> None:
        self._left -= 1
        if self._left > 0 or self.name or (end == path.stat().st_size) != self._footer:
            return
        deadline = time.monotonic() + _SECONDS
        while not (self._out / "checkpoint-3").is_dir():
            assert time.monotonic() < deadline, "training has not begun"
            time.sleep(0.005)
        self.name = path.name
        self._damage(path)


def refused(err: str, *named: str) -> str:
    """The one message on stderr, which names all of these; no traceback, and nothing that came with it."""
    assert "Traceback" not in err
    lines = [re.sub(r"^\d{4}-\S+ ", "", line) for line in err.splitlines() if line]
    told = [line for line in lines if not line.startswith(_USUAL)]
    assert len(told) == 1, told
    assert told[0].startswith("teachonce train: ")
    for name in named:
        assert name in told[0], told[0]
    return told[0]


def check_only_good_is_saved(out: Path, whole: Path) -> int:
    """No student, and every checkpoint is that of the undisturbed run; the last one's step."""
    assert not (out / "model.safetensors").exists()
    assert not (out / "teachonce.json").exists()
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))
    assert steps
    for step in steps:
        assert same(out / f"checkpoint-{step}", whole / f"checkpoint-{step}")
    return steps[-1]


def restore(folder: Path, good: Cache) -> None:
    """Puts every shard back as it was."""
    for shard in good.shards:
        path = folder / shard.name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        shutil.copy(Path(good.storage.root) / shard.name, path)


def check_resumes(cache: str, folder: Path, whole: Path, *more: str) -> None:
    """The same command goes on, to the weights of the run that nothing disturbed."""
    assert train(cache, folder, "out", *AUTO, *more, **TOLD) == 0
    assert same(folder / "out", whole)


def interrupted(
    cache: str,
    folder: Path,
    whole: Path,
    capfd: pytest.CaptureFixture[str],
    fault: Fault,
    *more: str,
    names_shard: bool = True,
) -> None:
    """Trains until the fault, which is told, and after which nothing bad stands."""
    assert train(cache, folder, "out", *more, **TOLD) == 1
    told = refused(capfd.readouterr().err, f"{cache}/", "row group ")
    assert fault.name in told or not names_shard
    check_only_good_is_saved(folder / "out", whole)
