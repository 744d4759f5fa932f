"""A student and its projections as files of a checkpoint, and back into the modules that are being trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoints.shapes import check_same_shape
from trainer.checkpoints.shards import load_whole
from trainer.models.embeddings import Embedder
from trainer.students.adapters import load_adapter, save_adapter
from trainer.students.features import Projections
from trainer.students.student import Student

PROJECTIONS_NAME = "projections.safetensors"
_STUDENT = "student."
_PROJECTIONS = "projections."


def save_student(
    student: Student, projections: Projections | None, folder: Path, gathered: Mapping[str, Tensor] | None
) -> None:
    """The student as itself or as its adapter, its tokenizer and the projections; from weights that were gathered, or
    their own."""
    if student.adapter is None:
        student.model.save_pretrained(folder, state_dict=_part(gathered, _STUDENT))
    else:
        save_adapter(student.adapter, folder)
    student.tokenizer.save_pretrained(folder)
    if projections is not None:
        weights = _part(gathered, _PROJECTIONS)
        weights = projections.state_dict() if weights is None else weights
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / PROJECTIONS_NAME)
        if student.embedder is not None:
            _save_embedder(student.embedder, projections, weights, folder)


def _save_embedder(
    embedder: Embedder, projections: Projections, weights: Mapping[str, Tensor], folder: Path
) -> None:
    """The student as a folder of sentence-transformers too, with its map to the teacher's width where it has one."""
    name = f"maps.{projections.features[0].column}"
    dense = (weights[f"{name}.weight"], weights[f"{name}.bias"]) if f"{name}.bias" in weights else None
    width = projections.features[0].width if dense is None else dense[0].shape[1]
    embedder.save(folder, width=width, dense=dense)


def load_student(student: Student, projections: Projections | None, folder: Path) -> None:
    """What `save_student` saved.

    Raises:
        UsageError: it is of another shape.
    """
    if student.adapter is not None:
        load_adapter(student.adapter, folder)
    else:
        model = student.model
        saved = type(model).from_pretrained(
            folder, dtype=model.dtype, trust_remote_code=False, use_safetensors=True
        )
        check_same_shape(model.config, saved.config, str(folder))
        load_whole(model, saved.state_dict())
    if projections is not None:
        load_whole(projections, load_file(folder / PROJECTIONS_NAME))


def _part(weights: Mapping[str, Tensor] | None, prefix: str) -> dict[str, Tensor] | None:
    """The weights under a prefix, without it; None where none were gathered."""
    if weights is None:
        return None
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
