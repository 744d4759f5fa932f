"""What the output folder of a training run holds, read without torch: its record, its log, its size, its evaluation.

The folder is data from somebody: files are bounded and typed before they are believed, and a field that is missing is
missing on the page.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from schemas.errors import TeachonceError, UsageError, one_line
from schemas.limits import parse_json
from schemas.reports.evaluations import EVALUATION_NAME, Evaluation

RECORD_NAME, STATE_NAME = "teachonce.json", "trainer_state.json"
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
_MOST_BYTES, _MOST_HEADER_BYTES = 2**28, 2**26
_NOT_SETTINGS = ("files", "seal", "run", "saved", "step", "total", "finished", "evaluation_due", "settings")
_OF_CACHES = ("path", "version", "weight", "header_hash")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    name: str
    """Its folder's name, made one of its own among those on the page."""
    path: str
    step: int
    settings: Mapping[str, str]
    """Everything that decides its weights, each as text."""
    losses: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    """The training's log: `step` and what was logged there; held-out values as `eval_...`."""
    parameters: int
    """Those that are saved: of an adapter its own."""
    weight_bytes: int
    evaluation: Evaluation | None
    no_evaluation: str
    """Why there is none."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What `evaluate` measured."""
        found = {} if self.evaluation is None else self.evaluation.evaluated.get("metrics")
        return found if isinstance(found, Mapping) else {}

    @property
    def tokens_per_second(self) -> float | None:
        """Of the student alone, as `evaluate` timed it."""
        models = [] if self.evaluation is None else self.evaluation.evaluated.get("models")
        first = models[0] if isinstance(models, list) and models else {}
        return number_of(first.get("tokens_per_second")) if isinstance(first, Mapping) else None


def is_run(path: str) -> bool:
    """Whether that is a student's folder rather than a cache's."""
    return "://" not in path and (Path(path) / RECORD_NAME).is_file()


def read_runs(paths: Sequence[str]) -> list[Run]:
    """The runs in these folders, each under a name of its own.

    Raises:
        UsageError: a folder whose record or log cannot be read.
    """
    folders = [Path(path) for path in paths]
    names = [folder.resolve().name for folder in folders]
    names = [
        name if names.count(name) == 1 else path for name, path in zip(names, map(str, folders), strict=True)
    ]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Run:
    record, history = _json(folder / RECORD_NAME), _history(folder)
    evaluation, why = _evaluation(folder, record)
    losses = record.get("losses")
    return Run(
        name=name,
        path=str(folder),
        step=int(number_of(record.get("step")) or 0),
        settings=_settings(record),
        losses={str(k): number_of(v) or 0.0 for k, v in losses.items()} if isinstance(losses, dict) else {},
        history=history,
        parameters=sum(map(_parameters, _weight_files(folder))),
        weight_bytes=sum(path.stat().st_size for path in _weight_files(folder)),
        evaluation=evaluation,
        no_evaluation=why,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = parse_json(file.read(_MOST_BYTES + 1))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError("a student's folder cannot be read", where=path, got=one_line(error)) from error
    return found


def _history(folder: Path) -> list[dict[str, float]]:
    """What was logged; transformers writes NaN where a loss was none, which is left out."""
    path = folder / STATE_NAME
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST_BYTES), parse_constant=lambda name: None)["log_history"]
        lines = [line for line in found if number_of(line.get("step")) is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError("a student's log cannot be read", where=path, got=one_line(error)) from error
    return [
        {str(k): number for k, v in line.items() if (number := number_of(v)) is not None} for line in lines
    ]


def number_of(value: Any) -> float | None:
    """A finite number as it is; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else None


def _evaluation(folder: Path, record: Mapping[str, Any]) -> tuple[Evaluation | None, str]:
    """What was saved of these weights, or why there is nothing to show."""
    try:
        found = Evaluation.load(folder)
    except TeachonceError as error:
        return None, str(error)
    if found is None:
        return None, "it was not evaluated"
    if found.seal != record.get("seal"):
        return None, f"its {EVALUATION_NAME} is of other weights: the student was trained anew since"
    return found, ""


def _settings(record: Mapping[str, Any]) -> dict[str, str]:
    """Flat: `settings` of transformers by their names, caches by number where there are several."""
    flat = {name: value for name, value in record.items() if name not in (*_NOT_SETTINGS, "caches", "losses")}
    inner = record.get("settings")
    flat |= inner if isinstance(inner, dict) else {}
    losses = record.get("losses")
    flat |= {f"loss {name}": value for name, value in losses.items()} if isinstance(losses, dict) else {}
    caches = [one for one in record.get("caches") or [] if isinstance(one, dict)]
    for number, cache in enumerate(caches):
        which = "cache" if len(caches) == 1 else f"cache {number + 1}"
        flat |= {f"{which} {name}": cache.get(name) for name in _OF_CACHES}
    return {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in flat.items()}


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, as its header says (https://huggingface.co/docs/safetensors)."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            tensors = parse_json(file.read(min(size, _MOST_HEADER_BYTES)))
        return sum(prod(one["shape"]) for name, one in tensors.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UsageError("a student's weights cannot be read", where=path, got=one_line(error)) from error
