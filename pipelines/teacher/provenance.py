"""How a run was done: device, attention, library versions. Recorded with each run, and free to differ."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from pipelines.config import TeacherConfig
from schemas.tasks import TASKS


def job_provenance(runner: str) -> dict[str, str]:
    """What is recorded of a run beside how its teacher is run; it decides nothing."""
    return {
        "runner": runner,
        "python": platform.python_version(),
        **{name: version(name) for name in ("apache-beam", "teachonce")},
    }


def teacher_provenance(config: TeacherConfig, device: torch.device) -> dict[str, str]:
    """How this worker runs the teacher: it may differ between runs, and then a sample is scored again."""
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "device_map": config.device_map or "none",
        "compile": "yes" if config.compile else "no",
        "attn_implementation": config.attn_implementation or "default",
        **{name: version(name) for name in ("torch", "transformers", *_of_images(config))},
    }


def _of_images(config: TeacherConfig) -> tuple[str, ...]:
    """The libraries that make an image's pixels."""
    return ("pillow", "torchvision") if TASKS[config.task].reads_images else ()
