"""`teachonce-evaluation.json`: what `evaluate --save` measured, beside the student that it measured.

It names the student by the seal of its manifest, so that an evaluation of other weights is never taken for these. The
trainer writes it and a report reads it: plain values, each checked as what anybody could have written.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.errors import UsageError, one_line
from schemas.limits import conform, parse_json

EVALUATION_NAME = "teachonce-evaluation.json"
EVALUATION_FORMAT = 1
_MOST_BYTES = 2**25


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """Positions whose likeliest class has a probability within one part of [0, 1]."""

    positions: int
    confidence: float
    """The mean probability of the likeliest class."""
    accuracy: float
    """The share of positions where it is right."""


@dataclass(frozen=True, kw_only=True)
class EntropyBin:
    """Positions whose teacher's entropy is in [low, high), in nats."""

    low_nats: float
    high_nats: float
    positions: int
    agreement: float
    """The share where student and teacher find the same class likeliest."""
    kl_nats: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One class or token of a distribution."""

    id: int
    text: str
    probability: float
    """Of a drawn entry of the teacher what it weighs."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """One position of an example, with the likeliest of both."""

    index: int
    """Of the token that it stands on."""
    before: str
    """The text up to there, its end."""
    gold: str
    """What is right; empty where that is not known."""
    loss_nats: float
    teacher: tuple[Candidate, ...]
    student: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example that went badly."""

    example_id: str
    text: str
    tokens: int
    loss_nats: float
    """The mean over its positions."""
    places: tuple[Position, ...]
    """The worst of them, the worst first."""


@dataclass(frozen=True, kw_only=True)
class Closer:
    """What is looked at one position at a time, over a bounded part of the held-out rows."""

    rows: int
    positions: int
    is_whole: bool
    """Whether that was every held-out row."""
    right_is: str
    """What `accuracy` is of: the corpus's `label`, or the `teacher`'s likeliest where there is none."""
    student: tuple[ConfidenceBin, ...] = ()
    teacher: tuple[ConfidenceBin, ...] = ()
    """Of the teacher's likeliest against labels; none where these are missing."""
    by_entropy: tuple[EntropyBin, ...] = ()
    worst: tuple[Example, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All of the file."""

    format: int
    seal: str
    """Of the student's manifest: these weights were measured."""
    time: str
    cache: str
    cache_version: int
    evaluated: Mapping[str, Any]
    """What `evaluate --json` prints."""
    closer: tuple[Closer, ...] = ()
    """One; or none, where the cache's scores are no distributions."""
    no_closer: str = ""
    """Why there is none."""

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the file into the student's folder, whole or not at all.

        Raises:
            UsageError: it cannot be written there.
        """
        place = Path(folder) / EVALUATION_NAME
        part = place.with_name(f".{EVALUATION_NAME}.{secrets.token_hex(4)}")
        text = json.dumps(finite(asdict(self)), indent=1, ensure_ascii=True, allow_nan=False)
        try:
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(place)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UsageError("--save cannot write there", where=place, got=one_line(error)) from error
        return place

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Evaluation | None:
        """What was saved in a student's folder; None where nothing was.

        Raises:
            UsageError: there is something else.
        """
        place = Path(folder) / EVALUATION_NAME
        try:
            if not place.exists():
                return None
            with place.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
            found: Evaluation = conform(cls, parse_json(data, max_bytes=_MOST_BYTES), "evaluation")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UsageError("a saved evaluation cannot be read", where=place, got=one_line(error)) from error
        if found.format != EVALUATION_FORMAT or len(found.closer) > 1:
            raise UsageError("a saved evaluation is of another release", where=place, got=found.format)
        return found


def finite(value: Any) -> Any:
    """The same without numbers that JSON has no word for: None stands in their place."""
    if isinstance(value, Mapping):
        return {str(name): finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
