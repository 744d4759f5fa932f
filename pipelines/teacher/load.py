"""Weights into memory: on one device or spread over several, quantised or not; or one clear error."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from pipelines.config import TeacherConfig
from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.teacher.calls import MODEL_ERRORS, lacking
from schemas.errors import TeacherError, one_line


def load_model(config: TeacherConfig, path: str, device: torch.device) -> Any:
    """The model, ready to run. Weights that are quantised already are placed as they are loaded: they cannot move.

    Raises:
        TeacherError: it cannot be opened, lacks weights, or does not fit the devices.
    """
    place = config.device_map or ({"": str(device)} if is_quantised(path) else None)
    try:
        model, loaded = TEACHER_TASKS[config.task].auto.from_pretrained(
            path,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=None if config.allow_pickle else True,
            device_map=place,
            local_files_only=True,
            output_loading_info=True,
        )
        model = model if place is not None else model.to(device)
    except MODEL_ERRORS as error:
        lacks = isinstance(error, ImportError) and place is not None
        raise TeacherError(
            "the teacher cannot be opened",
            where=path,
            got=one_line(error),
            do="pip install 'teachonce[large]'" if lacks else lacking(error),
        ) from error
    _refuse_incomplete(model, loaded, config.task, path)
    return model.eval().requires_grad_(False)


def open_tokenizer(config: TeacherConfig, path: str) -> Any:
    """The teacher's tokenizer, or its image processor.

    Raises:
        TeacherError: it cannot be opened.
    """
    try:
        return TEACHER_TASKS[config.task].opens(
            path, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except MODEL_ERRORS as error:
        raise TeacherError(
            "the teacher's tokenizer cannot be opened", where=path, got=one_line(error), do=lacking(error)
        ) from error


def is_quantised(path: str) -> bool:
    """Whether a model folder holds weights that are quantised already."""
    values, _ = transformers.PretrainedConfig.get_config_dict(path, local_files_only=True)
    return values.get("quantization_config") is not None


def _refuse_incomplete(model: Any, loaded: dict[str, Any], task: str, path: str) -> None:
    missing = loaded["missing_keys"] or {str(key[0]) for key in loaded.get("mismatched_keys") or ()}
    missing = {name for name in missing if not any(word in name for word in TEACHER_TASKS[task].unused)}
    if missing:
        raise TeacherError(
            f"the teacher's files lack weights of {type(model).__name__}, which would be random",
            where=path,
            got=", ".join(sorted(missing)[:3]),
            do=f"Is the model one for {task}?",
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TeacherError(
            "the teacher does not fit the devices: parts of it would be fetched again for every batch",
            where=path,
            do="Use more or larger devices, --dtype bfloat16, or a checkpoint that is quantised",
        )
