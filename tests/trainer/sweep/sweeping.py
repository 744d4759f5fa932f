"""`teachonce sweep` over a space of tiny students, in this process or for a child."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import teachonce
from schemas.cache import Cache
from tests.trainer.tiny import STUDENT

USUAL: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 8,
    "eval_fraction": 0.2,
    "save_steps": 2,
    "disable_tqdm": True,
    "use_cpu": True,
}


class Sweeping:
    """Writes the file of a space, and runs the command on it."""

    def __init__(self, cache: Cache, folder: Path) -> None:
        self.cache, self.folder = cache, folder
        self.file = folder / "space.yaml"
        for name, changes in {"small": {}, "wide": {"hidden_size": 48, "intermediate_size": 96}}.items():
            config = STUDENT | {"attention_dropout": 0.1} | changes
            (folder / f"{name}.json").write_text(json.dumps(config))

    def student(self, name: str = "small") -> str:
        return str(self.folder / f"{name}.json")

    def argv(self, study: str, *flags: str, **space: Any) -> list[str]:
        told = {"student": self.student(), **USUAL, **space}
        self.file.write_text(
            yaml.safe_dump({k: v for k, v in told.items() if v is not None}, sort_keys=False)
        )
        place = str(self.folder / study)
        return ["sweep", self.cache.storage.root, "--space", str(self.file), "--study", place, *flags]

    def run(self, study: str, *flags: str, **space: Any) -> int:
        return teachonce.main(self.argv(study, *flags, **space))

    def found(self, capsys: pytest.CaptureFixture[str], study: str, *flags: str, **space: Any) -> Any:
        """What `--json` says of a sweep that ends well; with what the run said on stderr."""
        capsys.readouterr()
        status = self.run(study, "--json", *flags, **space)
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out) | {"err": err}


def told(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each trial what does not name its study's folder."""
    return [{k: v for k, v in trial.items() if k != "folder"} for trial in found["trials"]]
