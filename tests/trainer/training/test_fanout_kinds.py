"""Students that keep adapters, and students that pack: from one decode each is what it would be alone, too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import teachonce
from schemas.cache import Cache
from tests.trainer.commanding import AUTO
from tests.trainer.fan import COMMON, Fan
from tests.trainer.outputs import logs
from tests.trainer.tiny import make_llama
from trainer.checkpoints.records import Record

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
"""PEFT asks transformers by an older name."""

PACKED: dict[str, Any] = {"batching": "pack", "losses": {"kl": 1, "feature": 0.1}}
EVALUATED: dict[str, Any] = {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 4}


@pytest.fixture
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Adapters of two ranks beside one base, with dropout; one that packs, one that packs and has adapters, and a plain
    one with the packing one's losses, whose batches hold the same rows."""
    base = make_llama(tmp_path_factory.mktemp("models") / "base", seed=1, tie_word_embeddings=True)
    adapters = {"student": base, "learning_rate": 0.01, "losses": {"kl": 1}}
    return {
        "four": {**adapters, "lora": ["r=4", "dropout=0.2"]},
        "two": {**adapters, "lora": ["r=2", "dropout=0.1", "targets=q_proj"], "seed": 3, "data_seed": 42},
        "both": {**adapters, "lora": ["r=4", "dropout=0.2"], "batching": "pack"},
        "packed": PACKED,
        "padded": {**PACKED, "batching": "bucket"},
    }


def alone(fan: Fan, name: str, own: dict[str, Any]) -> Path:
    """The student trained by itself, by a file without `students`."""
    apart = Fan(fan.cache, fan.folder / "apart")
    apart.folder.mkdir(exist_ok=True)
    file = apart.folder / f"{name}.yaml"
    keys = {"cache": fan.cache.storage.root, **COMMON, **EVALUATED, **apart.student(name, own)}
    file.write_text(yaml.safe_dump(keys, sort_keys=False))
    assert teachonce.main(["train", str(file)]) == 0
    return apart.folder / name


def told(folder: Path) -> list[dict[str, float]]:
    """A run's logs, without speeds."""
    speeds = ("runtime", "per_second")
    return [{k: v for k, v in log.items() if not k.endswith(speeds)} for log in logs(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, weight in load_file(path).items():
            found[f"{path.relative_to(folder)}: {name}"] = weight
    return found


def as_if_alone(one: Path, other: Path) -> None:
    """All that was saved at every checkpoint, the logs, the record and the adapter's config."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert {name.partition(":")[0].partition("/")[0] for name in theirs} > {"checkpoint-2", "checkpoint-10"}
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert told(one) == told(other)
    mine, its = Record.load(one), Record.load(other)
    assert mine is not None
    assert its is not None
    assert (mine.lora, mine.batching, mine.settings) == (its.lora, its.batching, its.settings)
    if mine.lora:
        assert json.loads((one / "adapter_config.json").read_text()) == json.loads(
            (other / "adapter_config.json").read_text()
        )


def test_adapters_and_packed_batches_are_what_they_would_be_alone(
    causal_cache: Cache, tmp_path: Path, students: dict[str, dict[str, Any]]
) -> None:
    fan = Fan(causal_cache, tmp_path)
    assert fan.together(students, **EVALUATED) == 0
    for name, own in students.items():
        as_if_alone(tmp_path / name, alone(fan, name, own))
    padding = {
        name: sum(log.get("padding", 0) for log in told(tmp_path / name))
        for name in ("packed", "padded", "both", "four")
    }
    assert padding["packed"] < padding["padded"], "one packs, and the other does not"
    assert padding["both"] < padding["four"]


def test_they_go_on_together(
    causal_cache: Cache, tmp_path: Path, students: dict[str, dict[str, Any]]
) -> None:
    """One from step 4, one from step 8, and one that was never begun."""
    fan = Fan(causal_cache, tmp_path)
    chosen = {name: students[name] for name in ("two", "both", "packed")}
    assert fan.together(chosen, **EVALUATED) == 0
    right = {name: weights(tmp_path / name) for name in chosen}
    for name, kept in (("two", 4), ("both", 8), ("packed", 0)):
        for path in (tmp_path / name).iterdir():
            if path.is_file():
                path.unlink()
            elif int(path.name.removeprefix("checkpoint-")) > kept:
                shutil.rmtree(path)
    assert fan.together(chosen, *AUTO, **EVALUATED) == 0
    for name, theirs in right.items():
        ours = weights(tmp_path / name)
        assert ours.keys() == theirs.keys()
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
