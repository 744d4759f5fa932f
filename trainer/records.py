"""`teachonce.json`: what a student was trained from and how, beside every saved student.

A resumed run must replay the same stream, so it takes the cache's version from its checkpoint and refuses another
seed, batch size or split. `evaluate` takes its split from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import UsageError

RECORD_NAME = "teachonce.json"

_STREAM_FIELDS = (
    "header_hash",
    "version",
    "seed",
    "batch_size",
    "eval_fraction",
    "shuffle_row_groups",
    "batches_a_step",
)
"""What decides which rows a step sees."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run was told."""

    cache: str
    header_hash: str
    """Of the cache's spec and fingerprint."""
    version: int
    seed: int
    batch_size: int
    eval_fraction: float
    shuffle_row_groups: int
    batches_a_step: int
    """Ranks times accumulation steps."""
    student: str
    losses: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    feature_loss: str = "mse"

    def save(self, folder: str | Path) -> None:
        """Writes the record into a student's folder."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True)
        (Path(folder) / RECORD_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Record | None:
        """The record of a student's folder; None where there is none.

        Raises:
            UsageError: there is one that cannot be read.
        """
        path = Path(folder) / RECORD_NAME
        if not path.is_file():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise UsageError("a student's record cannot be read", where=path, got=str(error)) from error

    def check_resumable(self, checkpoint: Record, where: str) -> None:
        """Whether this run would go on with the stream of a checkpoint.

        Raises:
            UsageError: naming the first field that differs.
        """
        for name in _STREAM_FIELDS:
            ours, theirs = getattr(self, name), getattr(checkpoint, name)
            if ours != theirs:
                raise UsageError(
                    f"a run cannot be resumed with another {name}",
                    where=where,
                    expected=theirs,
                    got=ours,
                    do="Resume with the flags of the first run, or start a new one",
                )
