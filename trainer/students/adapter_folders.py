"""A folder with a LoRA adapter, as a finished student is saved with `--lora`: opened with its base, and merged.

It is data: its config is taken only where each key is one that is known here or stands at PEFT's default, for PEFT
imports what some of them name; weights are read from safetensors alone. A student is measured as it would be served,
its adapters merged into the base.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.cli.arguments import small_text
from schemas.errors import StudentError, UsageError
from schemas.spec import Spec
from trainer.checkpoints.records import Record
from trainer.models.weights import weights_hash
from trainer.students.adapters import CONFIG_NAME, WEIGHTS_NAME, inject, load_adapter, peft_library
from trainer.students.lora import LARGEST_RANK
from trainer.students.opening import refuse_code

_MOST_CONFIG_BYTES = 2**22
_TAKEN = (
    *("r", "lora_alpha", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("fan_in_fan_out", "use_rslora", "use_dora"),
)
"""What decides a saved adapter's product."""
_TOLD = (
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "lora_dropout"),
    *("base_model_name_or_path", "revision", "init_lora_weights"),
)
"""What has no effect on it, or is read here."""
_INITS = (True, False, "gaussian")
"""How A was drawn; PEFT's other ways change the base too."""
_WHOLE = ("model*.safetensors", "pytorch_model*.bin")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class SavedAdapter:
    """What an adapter's config says."""

    folder: Path
    base: str
    """A folder, or a hub name."""
    revision: str | None
    config: Any
    """PEFT's `LoraConfig`."""

    def without_base(self, error: UsageError) -> UsageError:
        """What is said where the base cannot be opened."""
        return UsageError(
            "the base model of this adapter cannot be opened",
            where=self.folder,
            got=f"{self.base} ({error})",
            do=f"Put it there, or write where it is into {CONFIG_NAME} (base_model_name_or_path)",
        )


def is_adapter(source: str) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(source).expanduser() / CONFIG_NAME).is_file()


def read_adapter(source: str) -> SavedAdapter:
    """The config of a folder that holds an adapter.

    Raises:
        UsageError: PEFT is not installed, or the adapter is pickled, is no LoRA, or asks for what is not known here.
    """
    library, folder = peft_library(), Path(source).expanduser()
    path = folder / CONFIG_NAME
    if not (folder / WEIGHTS_NAME).is_file():
        pickled = next((file.name for file in sorted(folder.glob("adapter_model.*"))), None)
        raise UsageError(
            "the adapter's weights are pickled, which is code" if pickled else "this adapter has no weights",
            where=folder,
            expected=WEIGHTS_NAME,
            got=pickled,
        )
    if beside := next((file.name for pattern in _WHOLE for file in folder.glob(pattern)), None):
        raise UsageError("this folder holds an adapter and a whole model", where=folder, got=beside)
    values = _values(path)
    if values.get("peft_type") != "LORA":
        raise UsageError("this adapter is no LoRA", where=path, got=values.get("peft_type"))
    base, revision = values.get("base_model_name_or_path"), values.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise UsageError(
            "the adapter does not name its base model", where=path, do="Write base_model_name_or_path"
        )
    usual = {f.name: getattr(library.LoraConfig(), f.name) for f in dataclasses.fields(library.LoraConfig)}
    for name, value in values.items():
        _check(name, value, usual, path)
    taken = {name: values[name] for name in _TAKEN if name in values}
    return SavedAdapter(folder=folder, base=base, revision=revision, config=library.LoraConfig(**taken))


def _values(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(small_text(str(path), _MOST_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise UsageError("the adapter's config cannot be read", where=path, got=str(error)) from error
    if not isinstance(values, dict):
        raise UsageError("the adapter's config cannot be read", where=path, got=type(values).__name__)
    refuse_code(values, str(path))
    return values


def _check(name: str, value: Any, usual: Mapping[str, Any], path: Path) -> None:
    if name in ("target_modules", "modules_to_save"):
        names = [] if value is None else [value] if isinstance(value, str) else value
        fits = isinstance(names, list) and all(isinstance(n, str) and _NAME.fullmatch(n) for n in names)
    elif name in ("rank_pattern", "alpha_pattern"):
        fits = isinstance(value, dict) and all(
            _NAME.fullmatch(key) and (_is_rank(number) if name == "rank_pattern" else _is_number(number))
            for key, number in value.items()
        )
    elif name == "init_lora_weights":
        fits = value in _INITS
    elif name == "r":
        fits = _is_rank(value)
    elif name == "lora_alpha":
        fits = _is_number(value)
    elif name in (*_TAKEN, *_TOLD):
        fits = True
    else:
        fits = not value or (name in usual and value == usual[name])
    if not fits:
        raise UsageError(
            "the adapter's config asks for what is not known here",
            where=path,
            got=f"{name}: {json.dumps(value)[:80]}",
            do="Merge it into its base model first (peft: merge_and_unload) and save that",
        )


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def merged(model: Any, missing: Sequence[str], saved: SavedAdapter, spec: Spec) -> Any:
    """The base with the adapters in its own weights.

    Raises:
        UsageError: the weights cannot be read.
        StudentError: they do not fit the base, or the base or the classes are not those of its training.
    """
    record = Record.load(saved.folder)
    if (
        record is not None
        and spec.label_names
        and record.label_names
        and record.label_names != [*spec.label_names]
    ):
        raise StudentError(
            "the student's classes are not the cache's",
            where=saved.folder,
            expected=", ".join(spec.label_names),
            got=", ".join(record.label_names),
        )
    adapter = inject(model, saved.config)
    _check_missing(model, missing, saved)
    if record is not None and record.student_weights and not record.lora.get("load_in_4bit"):
        found = weights_hash(model)
        if found != record.student_weights:
            raise StudentError(
                "the base model of this adapter is not what it was trained on",
                where=saved.base,
                expected=f"weights of hash {record.student_weights}",
                got=found,
            )
    load_adapter(adapter, saved.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return adapter.merge_and_unload()


def _check_missing(model: Any, missing: Sequence[str], saved: SavedAdapter) -> None:
    """What the base lacks, the adapter must have been saved with."""
    inside = (name for name, _ in model.named_modules() if ".original_module" in name)
    held = {name.partition(".original_module")[0] for name in inside}
    lacking = [name for name in missing if not any(name.startswith(f"{module}.") for module in held)]
    if lacking:
        raise StudentError(
            f"neither the adapter nor its base has weights of {type(model).__name__}, which would be random",
            where=saved.folder,
            got=f"{len(lacking)} missing, {lacking[0]} among them",
        )
