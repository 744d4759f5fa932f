"""Opening a student of images: a model folder or hub name, or a config to start from scratch.

It is given the cache's pixels, and is saved with the cache's image processor: what a folder has of its own is not used.
It is tried before it is trained: what does not run, answers an image otherwise beside another, or cannot be saved, is
refused while it costs nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, set_seed

from schemas.cache import Cache
from schemas.cli.arguments import small_text
from schemas.errors import StudentError, UsageError, one_line
from schemas.images import Pictures, refuse_no_packages, refuse_no_timm
from schemas.spec import Spec
from trainer.batches.images import pictures_of
from trainer.models.shrink import parse_shrink
from trainer.students.compatibility import check_labels, check_trainable
from trainer.students.fitting import filled, fit_config, freeze_unused, is_unused, refuse_missing
from trainer.students.lora import Lora
from trainer.students.opening import open_config, open_weights, refuse_code
from trainer.students.scratch import MOST_CONFIG_BYTES, model_of
from trainer.students.trial import check_saves, differ
from trainer.tasks.tasks import STUDENT_TASKS

_PROCESSOR = "preprocessor_config.json"
_TRIED = 2


def open_images(cache: Cache) -> Pictures:
    """The cache's image processor, and how its images become pixels.

    Raises:
        UsageError: a package is missing, or it cannot be opened.
        StudentError: it asks for code, or does not make the pixels that the teacher was given.
    """
    refuse_no_packages()
    where = f"{cache.storage.root} (its image processor)"
    with tempfile.TemporaryDirectory() as folder:
        cache.save_tokenizer(folder)
        return pictures_of(_processor(folder, where), cache.spec, where)


def _processor(folder: str, where: str) -> Any:
    for path in sorted(Path(folder).glob("*.json")):
        try:
            values = json.loads(path.read_bytes())
            refuse_code(values, where)
            refuse_no_timm(values if path.name == "config.json" else {}, where)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                "an image processor cannot be opened", where=where, got=one_line(error)
            ) from error
    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UsageError("an image processor cannot be opened", where=where, got=one_line(error)) from error


def open_image_model(
    name: str,
    cache: Cache,
    pictures: Pictures,
    *,
    seed: int,
    lora: Lora | None,
    alone: bool,
    given: Any = None,
) -> Any:
    """A model that is going to be trained: of this name, or the one that is given.

    Raises:
        UsageError: it cannot be opened.
        StudentError: it does not fit the cache, or cannot be trained.
    """
    spec = cache.spec
    _refuse_unserved(name, lora)
    from_scratch = name.endswith(".json")
    if given is not None:
        config = given.config
    else:
        config = (
            _scratch_config(name, pictures, has_boxes=spec.kind.has_boxes)
            if from_scratch
            else open_config(name)
        )
    check_trainable(config, spec.kind, name)
    fit_config(config, spec, None)
    set_seed(seed)
    auto = STUDENT_TASKS[spec.task].auto
    model = given
    if given is None:
        model = model_of(auto, name, config) if from_scratch else filled(spec, name, config)[0]
    freeze_unused(model, spec)
    try_image_student(model, pictures, spec, alone=alone, trained=True)
    return model


def open_trained_images(folder: str, cache: Cache, pictures: Pictures, *, alone: bool) -> Any:
    """A finished student's model, or the teacher's.

    Raises:
        UsageError: it cannot be opened.
        StudentError: it does not fit the cache, or was made for other pixels.
    """
    config = open_config(folder)
    check_labels(config, cache.spec, folder)
    if (Path(folder) / _PROCESSOR).is_file():
        own = pictures_of(_processor(folder, folder), cache.spec, folder)
        if own != pictures:
            raise StudentError(
                "the student's image processor is not the cache's",
                where=f"{folder}/{_PROCESSOR}",
                do="Measure it on a cache of its own teacher",
            )
    model, missing = open_weights(STUDENT_TASKS[cache.spec.task].auto, folder, config)
    refuse_missing(model, [name for name in missing if not is_unused(name, cache.spec)], folder)
    try_image_student(model.eval(), pictures, cache.spec, alone=alone, trained=False)
    return model


def _refuse_unserved(name: str, lora: Lora | None) -> None:
    if parse_shrink(name) is not None:
        raise UsageError(
            "--student shrink: is for models of text",
            got=name,
            do="Name a smaller model's folder, or a config .json",
        )
    if lora is not None:
        raise UsageError("--lora is for models of text", do="Leave it out: the whole student is trained")


def _scratch_config(path: str, pictures: Pictures, *, has_boxes: bool) -> Any:
    """The config of a JSON file, for images of the cache's shape where it names none.

    Raises:
        UsageError: no such file, not JSON, or not a config.
    """
    channels, height, width = pictures.shape
    size = height if height == width and not has_boxes else [height, width]
    try:
        values: Mapping[str, Any] = json.loads(small_text(path, MOST_CONFIG_BYTES))
        refuse_code(values, path)
        merged = {"image_size": size, "num_channels": channels, **values}
        return AutoConfig.for_model(merged.pop("model_type"), **merged)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError("a student's config needs the key model_type", where=path) from error
    except Exception as error:
        got = one_line(error).rstrip(".")
        raise UsageError("the student's config cannot be read", where=path, got=got) from error


@torch.no_grad()
def try_image_student(model: Any, pictures: Pictures, spec: Spec, *, alone: bool, trained: bool) -> None:
    """Tries a student on two images of noise.

    Raises:
        StudentError: naming the class and what does not go.
    """
    training = model.training
    model.eval()
    images = torch.randn(_TRIED, *pictures.shape, generator=torch.Generator().manual_seed(0))
    first = _scores(model, images[:1], spec)
    expected: tuple[int | str, ...] = (1, spec.vocab_size)
    got: tuple[int | str, ...] = tuple(first.shape)
    if spec.kind.has_boxes:
        expected, got = (1, "queries", spec.vocab_size), (*got[:1], "queries", *got[2:])
    if spec.kind.has_positions and got != expected:
        raise _refused(model, "gives no scores of the cache's classes", expected=expected, got=got)
    if not bool(torch.isfinite(first).all()):
        raise _refused(model, "gives answers that are not numbers")
    if not alone and differ(_scores(model, images, spec)[:1], first):
        raise _refused(model, "answers an image otherwise when it stands beside another")
    if trained:
        check_saves(model)
    model.train(training)


@torch.no_grad()
def fails_alone(model: Any, pictures: Pictures) -> str | None:
    """What it says when it is trained on one image and can be on two: batch norm of a map of 1 x 1 does. Leaves the
    model and the generators as they were."""
    buffers, training = {name: buffer.clone() for name, buffer in model.named_buffers()}, model.training
    images = torch.randn(_TRIED, *pictures.shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        with torch.random.fork_rng(devices=[]):
            model.train()(pixel_values=images)
            model(pixel_values=images[:1])
    except ValueError as error:
        return one_line(error).rstrip(".")
    finally:
        model.train(training)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return None


def _scores(model: Any, images: Tensor, spec: Spec) -> Tensor:
    """Of each image, or its last states."""
    try:
        output = model(pixel_values=images.to(model.device))
        scores = STUDENT_TASKS[spec.task].scores(output).float()
    except Exception as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise _refused(
            model, f"fails on the cache's images ({shape})", got=one_line(error).rstrip(".")
        ) from error
    return scores


def _refused(model: Any, what: str, expected: Any = None, got: Any = None) -> StudentError:
    return StudentError(
        f"{type(model).__name__} cannot be a student: it {what}",
        expected=expected,
        got=got,
        do="Give its config the image size of the cache, or choose another class",
    )
