"""Several students from one decode: each is what it would be alone, and none of them is another's misfortune."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import teachonce
from schemas.cache import Cache
from tests.trainer import children
from tests.trainer.commanding import AUTO
from tests.trainer.fan import COMMON, Fan
from tests.trainer.outputs import logs, same
from trainer.checkpoints.keeping import KeepingTrainer
from trainer.checkpoints.records import Record
from trainer.checkpoints.whole_folders import check_whole
from trainer.stream import shared

SMALL = {"losses": {"kl": 1}, "eval_strategy": "steps", "eval_steps": 4}
WIDE = {
    "model": {"hidden_size": 48, "intermediate_size": 96},
    "losses": {"kl": 1, "ce": 0.5, "feature": 0.1},
    "learning_rate": 0.003,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "bf16": True,
    "eval_strategy": "steps",
    "eval_steps": 4,
}
DEEP = {
    "seed": 7,
    "data_seed": 42,
    "model": {"num_hidden_layers": 3, "attention_dropout": 0.2},
    "losses": ["kl=1", "mse_logits=0.1"],
    "temperature": 2,
    "lr_scheduler_type": "linear",
    "max_steps": 9,
}
THREE = {"small": SMALL, "wide": WIDE, "deep": DEEP}


@pytest.fixture
def fan(causal_cache: Cache, tmp_path: Path) -> Fan:
    return Fan(causal_cache, tmp_path)


@pytest.fixture(scope="module")
def apart(causal_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A student trained by itself, by a file without `students`."""
    made: dict[str, Path] = {}

    def train(name: str, own: dict[str, Any]) -> Path:
        key = json.dumps([name, own], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("apart")
            told = Fan(causal_cache, folder).student(name, own)
            file = folder / "run.yaml"
            keys = {"cache": causal_cache.storage.root, **COMMON, **told}
            file.write_text(yaml.safe_dump(keys, sort_keys=False))
            assert teachonce.main(["train", str(file)]) == 0
            made[key] = folder / name
        return made[key]

    return train


def told(folder: Path) -> list[dict[str, float]]:
    """A run's logs, without speeds."""
    speeds = ("runtime", "per_second")
    return [{k: v for k, v in log.items() if not k.endswith(speeds)} for log in logs(folder)]


def as_if_alone(one: Path, other: Path) -> bool:
    """Weights, projections, logs, every checkpoint's weights, and what is written down of the run."""
    checkpoints = sorted(path.name for path in other.glob("checkpoint-*"))
    assert sorted(path.name for path in one.glob("checkpoint-*")) == checkpoints
    for name in checkpoints:
        check_whole(one / name)
        assert same(one / name, other / name)
        ours, theirs = (torch.load(f / name / "optimizer.pt", weights_only=True) for f in (one, other))
        assert str(ours["state"]) == str(theirs["state"])
    ours, theirs = Record.load(one), Record.load(other)
    assert ours is not None
    assert theirs is not None
    for name in ("settings", "losses", "global_batch", "caches", "lanes", "seed", "temperature"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    assert told(one) == told(other)
    return same(one, other)


def test_each_is_what_it_would_be_alone(fan: Fan, apart: Any, capfd: Any) -> None:
    """Model, losses, rate, accumulation, precision, temperature, schedule and number of steps differ."""
    assert fan.together(THREE) == 0
    for name, own in THREE.items():
        assert as_if_alone(fan.folder / name, apart(name, own))
    out, err = capfd.readouterr()
    for name in THREE:
        assert f"{fan.folder / name}: step " in out
        assert f"{fan.folder / name}: {THREE[name].get('max_steps', 14)} steps; the student is in" in err


def test_the_caches_are_decoded_once(fan: Fan, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, and in each evaluation, whatever the students' batches and losses are."""
    begun: list[tuple[bool, int, int]] = []
    real = shared.read_runs

    def counted(sides: Any, order: Any, lanes: Any, epoch: int, run: int) -> Any:
        begun.append((sides[0].is_eval, epoch, run))
        return real(sides, order, lanes, epoch, run)

    monkeypatch.setattr(shared, "read_runs", counted)
    settings: dict[str, Any] = {"max_steps": 11, "eval_strategy": "steps", "eval_steps": 3}
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    features = {"losses": {"kl": 1, "feature": 1}}
    students = {"a": {}, "b": cut | features, "c": {"learning_rate": 0.1}, "d": features}
    assert fan.together(students, **settings) == 0
    assert begun == [(False, 0, 0), *[(True, 0, 0)] * 4]


def bad_alone(folder: Path, name: str) -> None:
    """Its folder was not written to in the end, and what stands there is whole."""
    assert not (folder / name / "model.safetensors").exists()
    for path in (folder / name).glob("checkpoint-*"):
        check_whole(path)


def test_one_that_diverges_leaves_the_others(fan: Fan, apart: Any, capfd: Any) -> None:
    wild = {"learning_rate": 1e30, "warmup_steps": 0, "losses": {"kl": 1}}
    assert fan.together({"small": SMALL, "wild": wild, "deep": DEEP}) == 1
    for name in ("small", "deep"):
        assert as_if_alone(fan.folder / name, apart(name, THREE[name]))
    err = capfd.readouterr().err
    assert (
        f"{fan.folder / 'wild'}: failed, and leaves the others: training is no longer finite at step" in err
    )
    assert "1 of 3 students failed" in err
    bad_alone(fan.folder, "wild")


def test_students_as_one_object(fan: Fan, capsys: pytest.CaptureFixture[str]) -> None:
    """What is logged meanwhile is on stderr; one that fails is told with its reason, and by the status."""
    gone = str(fan.folder / "nowhere")
    assert fan.together({"small": SMALL, "gone": {"student": gone}}, "--json") != 0
    out, err = capsys.readouterr()
    small, lost = json.loads(out)["students"]
    assert (small["output_dir"], small["reason"]) == (str(fan.folder / "small"), None)
    assert small["steps"] > 0
    assert small["metrics"]["train_loss"] > 0
    assert lost.keys() == {"output_dir", "reason"}
    assert gone in lost["reason"]
    assert "train_loss" in err


def test_one_that_cannot_start_leaves_the_others(fan: Fan, apart: Any, capfd: Any) -> None:
    """Its folder is another's; its model is not there; its features are not what it has."""
    (fan.folder / "taken").mkdir()
    (fan.folder / "taken" / "model.safetensors").write_bytes(b"mine")
    students = {
        "taken": {},
        "small": SMALL,
        "gone": {"student": str(fan.folder / "nowhere")},
        "hot": {"temperature": 3},
    }
    assert fan.together(students) == 2
    assert as_if_alone(fan.folder / "small", apart("small", SMALL))
    err = capfd.readouterr().err
    assert f"{fan.folder / 'taken'}: failed, and leaves the others: --output_dir holds a model" in err
    assert f"{fan.folder / 'gone'}: failed, and leaves the others: " in err
    assert f"{fan.folder / 'hot'}: failed, and leaves the others: " in err
    assert "3 of 4 students failed" in err
    assert (fan.folder / "taken" / "model.safetensors").read_bytes() == b"mine"
    assert not (fan.folder / "gone").exists()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, Callable[[Path], None]], None]:
    """Does something in the middle of one student's n-th step."""

    def arm(name: str, step: int, act: Callable[[Path], None]) -> None:
        real = KeepingTrainer._get_grad_norm

        def counted(loop: Any, *arguments: Any, **keywords: Any) -> Any:
            folder = Path(loop.args.output_dir)
            if folder.name == name and loop.state.global_step + 1 == step:
                act(folder)
            return real(loop, *arguments, **keywords)

        monkeypatch.setattr(KeepingTrainer, "_get_grad_norm", counted)

    return arm


def test_one_whose_folder_is_lost_leaves_the_others(fan: Fan, apart: Any, at: Any, capfd: Any) -> None:
    def lose(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.write_text("a file in its place")

    at("wide", 4, lose)
    assert fan.together(THREE) == 1
    for name in ("small", "deep"):
        assert as_if_alone(fan.folder / name, apart(name, THREE[name]))
    err = capfd.readouterr().err
    assert f"{fan.folder / 'wide'}: failed, and leaves the others: what was trained cannot be saved" in err
    (fan.folder / "wide").unlink()


@pytest.mark.parametrize(("name", "step"), [("small", 1), ("wide", 4), ("deep", 9)])
def test_a_signal_saves_all(fan: Fan, apart: Any, at: Any, capfd: Any, name: str, step: int) -> None:
    """Whoever takes a step finishes it; the others are saved where they stand."""
    with pytest.MonkeyPatch.context() as patch:
        real = KeepingTrainer._get_grad_norm
        at(name, step, lambda folder: os.kill(os.getpid(), signal.SIGTERM))
        assert fan.together(THREE, *AUTO) == 143
        patch.setattr(KeepingTrainer, "_get_grad_norm", real)
        err = capfd.readouterr().err
        assert "students are stopped, and saved" in err
        stands = {}
        for each in THREE:
            folder = fan.folder / each
            assert not (folder / "model.safetensors").exists() or (each, step) == ("deep", 9)
            stands[each] = max((int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")), default=0)
        assert stands[name] == step
        assert max(stands.values()) - min(stands.values()) <= 1
        assert fan.together(THREE, *AUTO) == 0
        for each, own in THREE.items():  # which may be trained apart only now, without the signal
            assert same(fan.folder / each, apart(each, own))
            assert told(fan.folder / each)[-2]["step"] == told(apart(each, own))[-2]["step"]


def test_killed_anywhere_one_command_goes_on(fan: Fan, apart: Any) -> None:
    argv = fan.argv(THREE, *AUTO)
    assert children.run(argv, fan.folder / "whole") == 0
    number = children.instants(fan.folder / "whole")
    for part in (0.02, 0.5, 0.97):
        for name in THREE:
            shutil.rmtree(fan.folder / name, ignore_errors=True)
        assert children.run(argv, fan.folder / "log", crash_at=int(part * number)) == -signal.SIGKILL
        assert children.run(argv, fan.folder / "log") == 0
        for name, own in THREE.items():
            assert same(fan.folder / name, apart(name, own))
            assert Record.load(fan.folder / name) is not None


def test_finished_unfinished_and_not_begun_go_on_together(fan: Fan, apart: Any, capfd: Any) -> None:
    for name in ("small", "wide"):
        shutil.copytree(apart(name, THREE[name]), fan.folder / name)
    for path in (fan.folder / "wide").iterdir():
        if path.is_file():
            path.unlink()
        elif int(path.name.split("-")[1]) > 4:
            shutil.rmtree(path)
    before = {path: path.stat().st_mtime_ns for path in (fan.folder / "small").rglob("*")}
    assert fan.together(THREE, *AUTO) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (fan.folder / "small").rglob("*")}
    for name, own in THREE.items():
        assert same(fan.folder / name, apart(name, own))
    assert as_if_alone(fan.folder / "deep", apart("deep", DEEP))
    err = capfd.readouterr().err
    assert f"{fan.folder / 'small'}: already finished, nothing to do: 14 steps" in err
    capfd.readouterr()
    assert fan.together(THREE, *AUTO) == 0
    assert capfd.readouterr().err.count("already finished") == 3
