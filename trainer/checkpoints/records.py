"""`teachonce.json`: what a student was trained from and how, beside every saved student; and which files belong to it.

The record says whose a checkpoint is and what decides its weights: a resumed run must replay the same stream by the
same rule, so it takes the cache's version from its checkpoint and refuses other settings. `evaluate` takes its split
from there. The manifest around it lists the SHA-256 of every file beside it, and ends in its own: it is written last,
so a folder without one, or with one that does not fit, is not whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from schemas.errors import UsageError
from schemas.identity import canonical_json

RECORD_NAME = "teachonce.json"

_SAME_FIELDS = (
    "seed",
    "global_batch",
    "lanes",
    "eval_fraction",
    "shuffle_row_groups",
    "where",
    "student_weights",
    "losses",
    "temperature",
    "feature_loss",
    "batching",
)
"""What decides which rows a step sees and what it makes of them; with the caches and `settings`, all that decides
weights. The number of ranks, and how a step is cut into batches, decide no more than how sums are rounded."""
_SAME_OF_CACHES = ("header_hash", "version", "live_hash", "row_counts", "weight")
_NEW_DATA = ("version", "live_hash", "row_counts")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run was told."""

    caches: list[dict[str, Any]]
    """Of each: its `path`; its `weight`; `header_hash` of spec and fingerprint; its `version`; `live_hash` over the
    names of the version's shards, by which two caches of one header differ; and `row_counts`, a hash of how many rows
    of each row group are trained on, which the order of rows is made of."""
    seed: int
    global_batch: int
    """Rows of a step: those of a batch, times ranks, times accumulation steps."""
    lanes: int
    eval_fraction: float
    shuffle_row_groups: int
    where: list[str]
    """What filters the rows."""
    student: str
    losses: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    feature_loss: str = "mse"
    batching: str = "bucket"
    """Whether rows held one text each, or several."""
    run: str = ""
    """Drawn when the run began, and kept when it is resumed."""
    student_weights: str = ""
    """Hash of the weights that the student began with, or that its adapters stand beside; empty where they were drawn
    by the seed."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of transformers that decide weights."""
    lora: Mapping[str, Any] = field(default_factory=dict)
    """The adapters that are trained; empty where the student's own weights are."""
    label_names: list[str] = field(default_factory=list)
    """The classes' names, in order, where the cache has them: an adapter's config has no room for them."""

    @classmethod
    def load(cls, folder: str | Path) -> Record | None:
        """The record of a student's folder; None where there is none.

        Raises:
            UsageError: there is one that cannot be read.
        """
        values = _read(folder)
        return None if values is None else _record(values, folder)

    def check_resumable(self, checkpoint: Record, where: str, *, allow_new_data: bool = False) -> None:
        """Whether this run would go on to the weights that the checkpoint's run would have come to; but on other
        versions of its caches where that is allowed.

        Raises:
            UsageError: naming the first field that differs.
        """
        of_caches = [name for name in _SAME_OF_CACHES if not (allow_new_data and name in _NEW_DATA)]
        pairs: list[tuple[str, Any, Any]] = [("number of caches", len(self.caches), len(checkpoint.caches))]
        pairs += [(name, getattr(self, name), getattr(checkpoint, name)) for name in _SAME_FIELDS]
        pairs += [
            (name, one.get(name), other.get(name))
            for one, other in zip(self.caches, checkpoint.caches, strict=False)
            for name in of_caches
        ]
        names = sorted({*self.settings, *checkpoint.settings})
        pairs += [(name, self.settings.get(name), checkpoint.settings.get(name)) for name in names]
        names = sorted({*self.lora, *checkpoint.lora})
        pairs += [(f"lora {name}", self.lora.get(name), checkpoint.lora.get(name)) for name in names]
        for name, ours, theirs in pairs:
            if name == "row_counts" and theirs is None:
                raise UsageError(
                    "an earlier teachonce saved this, and did not say which row counts its order of rows was made of",
                    where=where,
                    do="Start a new run in another --output_dir, with it as the --student; or let it go on, in an "
                    "order that may be another, with --allow_new_data",
                )
            if ours != theirs:
                raise UsageError(
                    f"a run cannot be resumed with another {name}",
                    where=where,
                    expected=theirs,
                    got=ours,
                    do="Resume with the flags of the first run, or start a new one in another --output_dir "
                    "(--student may be a checkpoint)",
                )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A record, where the run stood, and the files that make the folder whole."""

    record: Record
    step: int
    total: int
    """Steps in all that the run was to take."""
    saved: float = 0.0
    """Seconds since 1970: of two checkpoints of a run the later one is the newer, whatever their steps."""
    finished: bool = False
    evaluation_due: bool = False
    """The run was stopped in an evaluation: it is made up for before the next step."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file, by name."""

    def save(self, folder: str | Path) -> None:
        """Writes the manifest into a folder."""
        values = {**asdict(self.record), **_own(asdict(self))}
        text = json.dumps({**values, "seal": _seal(values)}, indent=2, sort_keys=True)
        (Path(folder) / RECORD_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Manifest | None:
        """The manifest of a folder; None where there is none.

        Raises:
            UsageError: there is one that cannot be read, was changed, or comes from an earlier release.
        """
        values = _read(folder)
        if values is None:
            return None
        if "seal" not in values:
            _record(values, folder)
            raise _earlier(folder)
        seal = values.pop("seal")
        if seal != _seal(values):
            raise UsageError("the record is not what was written", where=Path(folder) / RECORD_NAME)
        if not _is_well_formed(values):
            raise UsageError("the record is none of teachonce's", where=Path(folder) / RECORD_NAME)
        return cls(record=_record(values, folder), **_own(values))


def seal_of(folder: str | Path) -> str:
    """What a folder's manifest ends in: another student has another one. Empty where there is none."""
    return str((_read(folder) or {}).get("seal", ""))


def _is_well_formed(values: Mapping[str, Any]) -> bool:
    """Whether the manifest's own part is what we write: names stay below the folder, whoever wrote them."""
    files, numbers = values.get("files"), [values.get(name) for name in ("step", "total", "saved")]
    if not isinstance(files, dict) or not all(type(number) in (int, float) for number in numbers):
        return False
    paths = [PurePosixPath(name) for name in files]
    return not any(path.is_absolute() or ".." in path.parts for path in paths)


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(Manifest)} - {"record"}
    return {name: value for name, value in values.items() if name in names}


def _record(values: Mapping[str, Any], folder: str | Path) -> Record:
    if "caches" not in values and "header_hash" in values:
        raise _earlier(folder)
    others = {*_own(values), "seal"}
    try:
        return Record(**{name: value for name, value in values.items() if name not in others})
    except TypeError as error:
        raise _unreadable(folder, error) from error


def _earlier(folder: str | Path) -> UsageError:
    return UsageError(
        "an earlier teachonce saved this: what it took from its cache by then cannot be known, or whether it is whole",
        where=folder,
        do="Start a new run with it as the --student",
    )


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values)).hexdigest()


def _read(folder: str | Path) -> dict[str, Any] | None:
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"a {type(values).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(folder, error) from error
    return values


def _unreadable(folder: str | Path, error: Exception) -> UsageError:
    return UsageError("a student's record cannot be read", where=Path(folder) / RECORD_NAME, got=str(error))
