"""`evaluate --export onnx`: a student as `onnx/model.onnx` in its own folder, checked on rows of the cache.

torch exports the model's own forward, with rows and tokens left open, and ONNX Runtime runs the file beside torch on
held-out rows. What differs by more than rounding is no export: nothing is left of it. Half a minute of a small student.
(optimum would export too, and does not go with transformers 5.)
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import shutil
import warnings
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from schemas.errors import StudentError, UsageError, one_line
from schemas.rows.ragged import Array
from trainer.tasks.student_task import Measured

FOLDER, FILE = "onnx", "model.onnx"
"""Where other libraries look for it, too."""
CHECKED_ROWS = 256
_TOLERANCE = 1e-3
"""Of the largest number that torch gives."""
_OUTPUTS = ("logits", "pred_boxes", "start_logits", "end_logits", "last_hidden_state")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_INSIDE = 2**30
"""Bytes of weights up to which they stand in the file itself: a protobuf holds two GiB."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how near it is to torch."""

    path: str
    bytes: int
    rows: int
    """Of the cache, on which it was compared."""
    largest_difference: float
    largest_value: float
    """Of torch's own numbers there."""


class _Plain(nn.Module):
    """A forward of tensors to tensors: what is exported."""

    def __init__(self, model: Any, names: tuple[str, ...], outputs: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs
        takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        self.more = {"use_cache": False} if takes_cache else {}

    def forward(self, *inputs: Tensor) -> Any:
        found = self.model(**dict(zip(self.names, inputs, strict=True)), **self.more)
        return tuple(found[name] for name in self.outputs) if self.outputs else found


def check_export(student: str, how: str | None) -> None:
    """Whether there is a folder to write into, and the packages to do it by.

    Raises:
        UsageError: naming what is missing.
    """
    if how is None:
        return
    if not Path(student).is_dir():
        raise UsageError("--export writes into the student's own folder", where=student, got="a hub name")
    lacks = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if lacks:
        raise UsageError(
            "--export onnx needs packages that are not installed",
            got=", ".join(lacks),
            do="pip install 'teachonce[onnx]'",
        )


def export_onnx(student: str, asked: Measured) -> Exported:
    """Writes the model, and compares it with torch on held-out rows, both on the CPU.

    Raises:
        StudentError: its class cannot be exported, or the file answers otherwise than torch.
        UsageError: the folder cannot be written into.
    """
    model = asked.model.to("cpu").eval()
    if asked.collation.reads_features:
        raise StudentError(
            "a student without a backbone is not exported: what it is given is the teacher's features",
            where=student,
        )
    batches = _batches(asked)
    place, partial = Path(student) / FOLDER, Path(student) / f".{FOLDER}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        plain = _write(model, _open(batches[0]), partial / FILE)
        rows, difference, largest = _compared(plain, batches, partial / FILE)
        size = sum(file.stat().st_size for file in partial.iterdir())
        if difference > _TOLERANCE * largest:
            raise StudentError(
                f"{type(model).__name__} answers otherwise when it is exported to ONNX",
                where=student,
                expected=f"a difference of at most {_TOLERANCE:g} of the largest number ({largest:.4g})",
                got=f"{difference:.4g}",
            )
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    except OSError as error:
        raise UsageError("the export cannot be written", where=place, got=one_line(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    path = str(place / FILE)
    return Exported(path=path, bytes=size, rows=rows, largest_difference=difference, largest_value=largest)


def _batches(asked: Measured) -> list[dict[str, Tensor]]:
    """What the student is given of the first held-out rows."""
    found, rows = list[dict[str, Tensor]](), 0
    with contextlib.closing(_each(asked)) as every:
        for inputs in every:
            found.append(inputs)
            rows += len(next(iter(inputs.values())))
            if rows >= CHECKED_ROWS:
                break
    return found


def _each(asked: Measured) -> Generator[dict[str, Tensor]]:
    for batch in asked.held_out.batches(asked.collation):
        yield {name: value.contiguous() for name, value in batch.model_inputs.items()}


def _open(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An example for the exporter, which takes a size of 1 for one that never changes: two rows, some tokens."""
    found = {}
    for name, value in inputs.items():
        rows = value[:2] if len(value) > 1 else torch.cat([value, value])
        short = rows.ndim == 2 and rows.shape[1] < 3
        found[name] = torch.cat([rows] * 3, 1) if short else rows
    return found


def _write(model: Any, example: Mapping[str, Tensor], path: Path) -> _Plain:
    """The file, and what was exported. A class that the exporter cannot follow is told by its name."""
    names = tuple(example)
    try:
        with torch.no_grad():
            answer = _Plain(model, names).eval()(*example.values())
        outputs = tuple(name for name in _OUTPUTS if answer.get(name) is not None)
        plain = _Plain(model, names, outputs).eval()
        opened = tuple(_dynamic(value) for value in example.values())
        with _quiet(), _written_out(model, names):
            torch.onnx.export(
                plain,
                tuple(example.values()),
                path,
                input_names=list(names),
                output_names=list(plain.outputs),
                dynamic_shapes={"inputs": opened},
                dynamo=True,
                external_data=_bytes(model) > _INSIDE,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:
        raise StudentError(
            f"{type(model).__name__} cannot be exported to ONNX",
            got=one_line(error.__cause__ or error),
            do="torch's exporter does not follow its code: serve it with transformers, or choose another class",
        ) from error
    return plain


@contextlib.contextmanager
def _written_out(model: Any, names: tuple[str, ...]) -> Iterator[None]:
    """Of an encoder and a decoder the exporter follows attention that is written out, not torch's own, which the file
    is compared with.
    """
    own = model.config._attn_implementation
    if "decoder_input_ids" in names:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if model.config._attn_implementation != own:
            model.set_attn_implementation(own)


def _dynamic(value: Tensor) -> dict[int, Any]:
    """Rows are open, and of texts the tokens; the size of an image is not."""
    axes = (0, 1) if value.ndim == 2 else (0,)
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


@torch.no_grad()
def _compared(plain: _Plain, batches: list[dict[str, Tensor]], path: Path) -> tuple[int, float, float]:
    """Rows; the largest difference where no padding stands; the largest number."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}
    rows, difference, largest = 0, 0.0, 0.0
    for inputs in batches:
        theirs = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in taken})
        for own, other in zip(plain(*inputs.values()), theirs, strict=True):
            counted = _counted(own.numpy(), inputs)
            gap = np.abs(own.numpy() - other)[counted]
            difference = max(difference, float(np.max(np.nan_to_num(gap, nan=np.inf), initial=0.0)))
            largest = max(largest, float(np.max(np.abs(own.numpy())[counted], initial=0.0)))
        rows += len(next(iter(inputs.values())))
    return rows, difference, largest


def _counted(values: Array, inputs: Mapping[str, Tensor]) -> Any:
    """Which of an output's places are no padding's."""
    mask = inputs.get("attention_mask")
    if mask is None or "decoder_input_ids" in inputs or values.shape[:2] != tuple(mask.shape):
        return slice(None)
    return mask.bool().numpy()


def _bytes(model: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its steps, and warns of what it decides by itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        unheard = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(unheard),
            contextlib.redirect_stderr(unheard),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
