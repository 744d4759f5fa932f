"""`teachonce train` with the flags of a tiny run, in this process or for a child."""

import json
from pathlib import Path
from typing import Any

import teachonce
from schemas.cache import Cache
from tests.trainer.tiny import STUDENT

USUAL: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 8,
    "eval_fraction": 0.2,
    "logging_steps": 2,
    "save_steps": 2,
    "save_total_limit": 10,
    "disable_tqdm": True,
    "use_cpu": True,
}


def flags(cache: Cache | str, folder: Path, out: str | Path, *more: str, **changes: Any) -> list[str]:
    """`train` with a student from scratch, whose dropout makes every random number count."""
    student = folder / "student.json"
    student.write_text(json.dumps(STUDENT | {"attention_dropout": 0.1} | changes.pop("model", {})))
    root = cache if isinstance(cache, str) else cache.storage.root
    named = {"cache": root, "student": str(student), "output_dir": str(folder / out), **USUAL, **changes}
    found = ["train"]
    for name, value in named.items():
        if value is not None:
            found += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return [*found, *more]


def train(*arguments: Any, **changes: Any) -> int:
    return teachonce.main(flags(*arguments, **changes))


AUTO = ("--resume_from_checkpoint", "auto")
