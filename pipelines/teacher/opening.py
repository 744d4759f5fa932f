"""Opening a teacher: weights, head, and whether it says here what it says when it is called plainly.

Everything that could be wrong with a teacher, and can be known before the first document, is looked at here: on every
worker, while a run is planned, and in `verify --teacher`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipelines.config import TeacherConfig
from pipelines.keep.select import num_uniforms
from pipelines.tasks.image_classification import pictures_of
from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.teacher.batch_independence import settled
from pipelines.teacher.batching import every_token
from pipelines.teacher.calls import MODEL_ERRORS, told
from pipelines.teacher.config_shapes import refuse_unfit, text_config
from pipelines.teacher.devices import pick_device
from pipelines.teacher.generate import refuse_mute
from pipelines.teacher.heads import Head, compare_with_forward
from pipelines.teacher.image_checks import settled_images
from pipelines.teacher.load import load_model, open_tokenizer
from pipelines.teacher.model import Batch, Batching, Teacher
from schemas.errors import TeacherError, one_line
from schemas.images import Pictures
from schemas.model_heads import body_of
from schemas.spec import Spec
from schemas.token_bytes import word_starts

_COSTS: dict[Batching, str] = {
    "padded batches": "",
    "batches of one length": "other lengths change its answers, so batches are smaller where texts have many lengths",
    "one text a batch": "other texts change its answers, so it is asked for one at a time: many times slower",
}


def open_teacher(config: TeacherConfig, spec: Spec, path: str, device: torch.device | None = None) -> Teacher:
    """Opens the teacher in a local folder, on a device or over several, and checks it against the spec.

    Raises:
        TeacherError: the model cannot be opened or run, is not the one that the spec describes, or does not say here
            what it says when it is called plainly.
    """
    model = load_model(config, path, device or pick_device(config.device))
    tokenizer = open_tokenizer(config, path)
    names = tuple(feature.name for feature in spec.features)
    refuse_unfit(config.task, model.config, tokenizer, names, dict(spec.task_settings))
    if spec.generation is not None:
        refuse_mute(model)
    entry, embedded = _embedding(model)
    with told("cannot be asked through its head", model):
        head = Head.of(model) if spec.kind.has_vocabulary else None
        body = TEACHER_TASKS[config.task].body(model)
        if head is not None:
            _check_head(model, body, head, spec, entry)
    teacher = Teacher(
        model=model,
        spec=spec,
        head=head,
        device=head.weight.device if head is not None else entry,
        body=body,
        takes=body.forward,
        gives_last_states=body is body_of(model) and (head is not None or not spec.kind.has_positions),
        entry=entry,
        embedded=embedded,
        pad_id=0 if spec.kind.reads_images else pad_id(model, tokenizer, embedded),
    )
    if spec.kind.reads_images:
        teacher = settled_images(replace(teacher, pictures=pictures_of(tokenizer, spec)))
    else:
        teacher = settled(teacher, tokenizer)
    if "word_start" in spec.scalars:
        teacher = replace(teacher, word_starts=_word_starts(tokenizer, spec, path).to(teacher.device))
    if cost := _COSTS[teacher.batching]:
        sys.stderr.write(f"{type(model).__name__}: {teacher.batching}: {cost}\n")
    return _compiled(teacher, path) if config.compile else teacher


def _word_starts(tokenizer: Any, spec: Spec, path: str) -> torch.Tensor:
    """Ids of the head that begin a word; rows that only pad it begin none."""
    begins = word_starts(tokenizer)
    if begins is None:
        raise TeacherError("the tokenizer does not say which tokens begin a word", where=path)
    return torch.from_numpy(np.flatnonzero(begins[: spec.vocab_size]))


def pad_id(model: Any, tokenizer: Any, embedded: int) -> int:
    """What fills a padded batch: the id that the model itself takes for padding, else the tokenizer's, else any."""
    own = (getattr(config, "pad_token_id", None) for config in (text_config(model.config), model.config))
    candidates = (*own, tokenizer.pad_token_id)
    return next((i for i in candidates if isinstance(i, int) and 0 <= i < embedded), 0)


def _embedding(model: Any) -> tuple[torch.device, int]:
    """Where a model takes ids, and how many it has an embedding for."""
    try:
        weight = model.get_input_embeddings().weight
        return weight.device, len(weight)
    except (AttributeError, NotImplementedError):  # ids are hashed, or pictures of letters
        rows = getattr(text_config(model.config), "vocab_size", None)
        return next(model.parameters()).device, rows if isinstance(rows, int) else 2**31


@torch.inference_mode()
def _check_head(model: Any, body: Any, head: Head, spec: Spec, entry: torch.device) -> None:
    if len(head.weight) != spec.vocab_size:
        raise TeacherError(
            "the teacher's head is not as wide as its config says",
            expected=spec.vocab_size,
            got=len(head.weight),
        )
    ids = torch.arange(min(16, spec.vocab_size), device=entry)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if spec.kind.has_source:
        given["decoder_input_ids"] = ids
    compare_with_forward(model, body, head, given, TEACHER_TASKS[spec.task].at_positions)


def _compiled(teacher: Teacher, path: str) -> Teacher:
    """The teacher with a compiled body, tried on two shapes: they make batch sizes and lengths dynamic.

    Raises:
        TeacherError: the model cannot be compiled, or this machine has no compiler.
    """
    ready = replace(teacher, body=torch.compile(teacher.body, dynamic=True))
    try:
        for rows, width in ((2, 8), (3, 12)):
            ready.answer(_blank(rows, width, teacher.spec, teacher.pictures))
    except MODEL_ERRORS as error:
        raise TeacherError(
            "the teacher cannot be compiled",
            where=path,
            got=one_line(error),
            do="Leave --compile out: it changes the speed alone",
        ) from error
    return ready


def _blank(rows: int, width: int, spec: Spec, pictures: Pictures | None) -> Batch:
    """A batch of one token over and over, with the last token of each row as position, or the text's first one."""
    ids = torch.zeros(rows, width, dtype=torch.int64)
    places = torch.arange(rows if spec.kind.has_positions else 0)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=ids if spec.has_token_type_ids else None,
        position_rows=places,
        position_tokens=torch.full_like(places, width - 1 if spec.kind.predicts_tokens else 0),
        labels=torch.full_like(places, -1),
        uniforms=torch.zeros(len(places), num_uniforms(spec.keep), dtype=torch.float64),
        classes=every_token([width] * rows, spec),
        target_ids=ids if spec.kind.has_source else None,
        pixel_values=None if pictures is None else torch.zeros(rows, *pictures.shape),
    )
