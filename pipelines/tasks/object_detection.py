"""Detectors of the DETR family: a position for each of a model's queries, with scores of classes and a box.

Two kinds of heads are known. DETR and those that took its loss have a softmax whose last class is no object; those with
a focal loss have a sigmoid a class, and none for no object. Which one a model has, its type says, and the teacher's
forward shows it: another width is refused at load. Scores and boxes are one row of numbers here, so that all that
compares a teacher's answers compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor

from pipelines.rejects import BOX_OUTSIDE_IMAGE, RejectedError
from pipelines.tasks.image_classification import TASK as CLASSIFIED
from pipelines.tasks.image_classification import Views, check_views
from pipelines.tasks.teacher_task import Defaults, Settings, model_name
from pipelines.tasks.windows import Tokens, Window, first
from schemas.errors import UsageError
from schemas.task import Score
from schemas.tasks import QUERIES

SOFTMAX = ("detr", "yolos", "table-transformer")
"""Model types whose last class is no object."""
_ROUNDED_PIXELS = 1.0
_QUERIES = ("num_queries", "num_detection_tokens")
_INPUTS = (["pixel_values"], ["pixel_values", "pixel_mask"])


@dataclass(frozen=True)
class Queries(Views):
    """Each image in as many views as the settings say, with a position for each query."""

    def tokens(self, image: bytes, objects: Sequence[float] | None = None) -> Tokens:
        """As of any image, with its objects as shares of its sides.

        Raises:
            BadImageError: it is none that a teacher can be shown.
            RejectedError: an object is beyond it.
        """
        decoded = self.pictures.decoded(image)
        return self.token()._replace(label=None if objects is None else placed(objects, *decoded.size))

    def windows(self, tokens: Tokens) -> list[Window]:
        places = first(self.spec.kind.text_positions)
        return [window._replace(positions=places) for window in super().windows(tokens)]


def placed(objects: Sequence[float], width: int, height: int) -> tuple[float, ...]:
    """Class, centre, width and height of each object, as shares of an image's sides, from class and a box in pixels. A
    box that goes beyond an edge by no more than a pixel was rounded there, and is cut at the edge.

    Raises:
        RejectedError: a box goes further.
    """
    found = list[float]()
    for at in range(0, len(objects), 5):
        own, left, top, wide, high = objects[at : at + 5]
        (x, w), (y, h) = _inside(left, wide, width, at), _inside(top, high, height, at)
        found += [own, x, y, w, h]
    return tuple(found)


def _inside(begin: float, length: float, side: int, at: int) -> tuple[float, float]:
    """Centre and length along a side, as shares of it."""
    low, high = max(begin, 0.0), min(begin + length, float(side))
    if begin < -_ROUNDED_PIXELS or begin + length > side + _ROUNDED_PIXELS or high <= low:
        raise RejectedError(
            BOX_OUTSIDE_IMAGE,
            expected=f"a box within the image's {side} pixels",
            got=f"{begin:g} to {begin + length:g}, of object {at // 5 + 1}",
        )
    return (low + high) / 2 / side, (high - low) / side


def queries_of(config: Any) -> int:
    """How many queries a detector has.

    Raises:
        UsageError: its config does not say.
    """
    found = (getattr(config, name, None) for name in _QUERIES)
    number = next((value for value in found if isinstance(value, int) and value > 0), None)
    if number is None:
        raise UsageError(
            f"the config of {model_name(config)} does not say how many queries there are",
            expected=f"one of {', '.join(_QUERIES)}",
            do="Use a detector of DETR's family",
        )
    return number


def score_of(config: Any) -> Score:
    """What turns a detector's scores into what it says."""
    return "softmax" if config.model_type in SOFTMAX else "sigmoid"


def answers(output: Any) -> Tensor:
    """Scores and box of each query, `[B, Q, V + 4]`."""
    return torch.cat([output.logits.float(), output.pred_boxes.float()], -1)


def _at_positions(output: Any, rows: Tensor, tokens: Tensor) -> Tensor:
    device = output.logits.device
    return answers(output)[rows.to(device), tokens.to(device)]


def _defaults(folder: str, given: Settings) -> Defaults:
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    return Defaults(settings={QUERIES: queries_of(config)})


def _check(config: Any, processor: Any, settings: Settings) -> None:
    check_views(config, processor, settings, inputs=_INPUTS)
    if settings[QUERIES] != queries_of(config):
        raise UsageError(
            f"--{QUERIES} is what the detector has",
            expected=queries_of(config),
            got=settings[QUERIES],
            do="Leave it out",
        )
    if getattr(processor, "pad_size", None):
        raise UsageError(
            "the detector's image processor pads images, and nothing here tells it where",
            got=f"pad_size {processor.pad_size}",
            do="Give preprocessor_config.json a size with height and width, and no pad_size",
        )


TASK = replace(
    CLASSIFIED,
    auto=transformers.AutoModelForObjectDetection,
    inputs=Queries,
    at_positions=_at_positions,
    check=_check,
    defaults=_defaults,
    score=score_of,
)
