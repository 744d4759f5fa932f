"""Classifiers of images: one position an example, which is one view of an image.

An example's only token stands for its image, whose bytes go along. An image is decoded before the teacher starts, so
that what no teacher can be shown is a reject with its reason; and again where it is scored.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers
from torch import Tensor

from pipelines.tasks.teacher_task import Asked, Settings, TeacherTask, model_name
from pipelines.tasks.windows import Tokens, Window, first
from schemas.errors import UsageError
from schemas.images import TIMM, Pictures, parse_augment, refuse_no_packages, refuse_no_timm
from schemas.spec import Spec

IMAGE_TOKEN = 0
"""What stands for an image among ids."""


def open_processor(folder: str, **options: Any) -> Any:
    """A teacher's image processor, as `AutoImageProcessor` opens it.

    Raises:
        UsageError: a package is missing.
    """
    refuse_no_packages()
    values, _ = transformers.PreTrainedConfig.get_config_dict(folder, **options)
    refuse_no_timm(values, folder)
    return transformers.AutoImageProcessor.from_pretrained(folder, **options)


def timm_config(processor: Any) -> dict[str, Any] | None:
    """What `AutoImageProcessor` opens a processor of timm's models from, as `config.json`; None of any other."""
    transforms = getattr(processor, "data_config", None)
    if transforms is None:
        return None
    names = {"model_type": TIMM, "image_processor_type": type(processor).__name__}
    return {**names, "architecture": processor.to_dict().get("architecture"), "pretrained_cfg": transforms}


def pictures_of(processor: Any, spec: Spec) -> Pictures:
    """How images become pixels under a spec.

    Raises:
        UsageError: the processor does not make one array of one shape of each.
    """
    found = Pictures.of(processor, dict(spec.task_settings))
    try:
        return found.probed()
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise UsageError(
            f"{type(processor).__name__} does not make one array of one shape of each image",
            got=str(error).splitlines()[0] if str(error) else repr(error),
            do="Give preprocessor_config.json a size with height and width, or do_center_crop",
        ) from error


@dataclass(frozen=True)
class Views:
    """Each image in as many views as the settings say."""

    processor: Any
    spec: Spec

    @functools.cached_property
    def pictures(self) -> Pictures:
        return pictures_of(self.processor, self.spec)

    def tokens(self, image: bytes, objects: Sequence[float] | None = None) -> Tokens:
        """The token that stands for an image; `objects` are what the corpus says is in it, where a task asks.

        Raises:
            BadImageError: it is none that a teacher can be shown.
        """
        self.pictures.decoded(image)
        return self.token()

    @staticmethod
    def token() -> Tokens:
        """The same of an image that was looked at."""
        one = np.full(1, IMAGE_TOKEN, np.int32)
        return Tokens(one, np.zeros_like(one), np.zeros(1, np.bool_), np.ones(1, np.bool_))

    def windows(self, tokens: Tokens) -> Sequence[Window]:
        return [Window(first(1), first(1), (view,)) for view in range(int(self.spec.setting("views")))]

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        return Asked(tokens.ids, window.positions)


def check_views(config: Any, processor: Any, settings: Settings, inputs: Collection[list[str]]) -> None:
    """Raises a `UsageError` where views make no sense, or a processor gives other inputs than these."""
    try:
        names = parse_augment(str(settings["augment"]))
    except ValueError as error:
        raise UsageError("--augment cannot be read", got=str(error)) from error
    if bool(names) != (int(settings["views"]) > 1):
        raise UsageError(
            "--views and --augment go together: the first view is the image itself, and others are augmented",
            got=f"--views {settings['views']} --augment {settings['augment']!r}",
        )
    if list(getattr(processor, "model_input_names", [])) not in inputs:
        raise UsageError(
            f"{model_name(config)} is asked for more than pixels, or its processor is none of images alone",
            got=", ".join(getattr(processor, "model_input_names", [])) or type(processor).__name__,
            do="Use a model whose image processor gives pixel_values",
        )


def _check(config: Any, processor: Any, settings: Settings) -> None:
    check_views(config, processor, settings, inputs=(["pixel_values"],))


def _at_positions(output: Any, rows: Tensor, tokens: Tensor) -> Tensor:
    """Every row has one position, so these are rows of the batch in order."""
    logits: Tensor = output.logits
    return logits


TASK = TeacherTask(
    auto=transformers.AutoModelForImageClassification,
    opens=open_processor,
    inputs=Views,
    body=lambda model: model,
    at_positions=_at_positions,
    check=_check,
    least="an image",
)
