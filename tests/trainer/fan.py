"""`teachonce train --students`: writes the file of some tiny students, and runs the command."""

import json
import threading
from pathlib import Path
from typing import Any

import yaml

import teachonce
from schemas.cache import Cache
from tests.trainer.tiny import STUDENT

COMMON: dict[str, Any] = {
    "max_steps": 14,
    "eval_fraction": 0.2,
    "per_device_train_batch_size": 16,
    "logging_steps": 2,
    "save_steps": 2,
    "save_total_limit": 10,
    "disable_tqdm": True,
    "use_cpu": True,
}
"""Nine steps an epoch: the runs end in the second one."""


class Fan:
    """Writes the file of some students, and runs the command."""

    def __init__(self, cache: Cache, folder: Path) -> None:
        self.cache, self.folder = cache, folder

    def student(self, name: str, own: dict[str, Any]) -> dict[str, Any]:
        config = self.folder / f"{name}.json"
        config.write_text(json.dumps(STUDENT | {"attention_dropout": 0.1} | own.get("model", {})))
        rest = {key: value for key, value in own.items() if key != "model"}
        return {"student": str(config), "output_dir": str(self.folder / name), **rest}

    def file(self, students: dict[str, dict[str, Any]], **common: Any) -> Path:
        told = {"cache": self.cache.storage.root, **COMMON, **common}
        told["students"] = [self.student(name, own) for name, own in students.items()]
        path = self.folder / "students.yaml"
        path.write_text(yaml.safe_dump(told, sort_keys=False))
        return path

    def argv(self, students: dict[str, dict[str, Any]], *flags: str, **common: Any) -> list[str]:
        return ["train", "--students", str(self.file(students, **common)), *flags]

    def together(self, students: dict[str, dict[str, Any]], *flags: str, **common: Any) -> int:
        status = teachonce.main(self.argv(students, *flags, **common))
        assert not [t for t in threading.enumerate() if t.name.startswith(("teachonce-ahead", "student "))]
        assert not list(self.folder.glob("*/*lock*"))
        return status
