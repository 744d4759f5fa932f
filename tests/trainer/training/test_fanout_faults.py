"""Students of one process where the process itself fails: nobody hangs, and nobody's failure is a success."""

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.cache import Cache
from schemas.errors import UsageError
from tests.trainer.fan import Fan
from trainer import StudentArguments, TrainConfig, train_students
from trainer.checkpoints.keeping import KeepingTrainer
from trainer.training.training import check_settings
from trainer.training.turns import Turns


@pytest.fixture
def fan(causal_cache: Cache, tmp_path: Path) -> Fan:
    return Fan(causal_cache, tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [(SystemExit(0), "SystemExit"), (GeneratorExit("gone"), "GeneratorExit: gone")],
)
def test_whatever_ends_a_student_is_a_failure(
    fan: Fan, monkeypatch: pytest.MonkeyPatch, capfd: Any, error: BaseException, told: str
) -> None:
    """A library may end its thread by what is no `Exception`."""
    real = KeepingTrainer._get_grad_norm

    def ended(loop: Any, *arguments: Any, **keywords: Any) -> Any:
        if Path(loop.args.output_dir).name == "b" and loop.state.global_step == 1:
            raise error
        return real(loop, *arguments, **keywords)

    monkeypatch.setattr(KeepingTrainer, "_get_grad_norm", ended)
    assert fan.together({"a": {}, "b": {}}, max_steps=2) == 1
    err = capfd.readouterr().err
    assert "1 of 2 students failed" in err
    assert f"{fan.folder / 'b'}: failed: " in err
    assert told in err.rpartition(f"{fan.folder / 'b'}: failed: ")[2]
    assert (fan.folder / "a" / "model.safetensors").exists()
    assert not (fan.folder / "b" / "model.safetensors").exists()


@pytest.mark.parametrize("refused", ["a", "b", "c"])
def test_a_system_that_gives_no_thread(
    fan: Fan, monkeypatch: pytest.MonkeyPatch, capfd: Any, refused: str
) -> None:
    """That student has failed; the others are trained, whoever's turn it was."""
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == f"student {fan.folder / refused}":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert fan.together({"a": {}, "b": {}, "c": {}}, max_steps=2) == 1
    assert f"{fan.folder / refused}: failed: " in capfd.readouterr().err
    for name in "abc":
        assert (fan.folder / name / "model.safetensors").exists() == (name != refused)


def test_shards_have_no_place_in_one_process(fan: Fan, tmp_path: Path, capfd: Any) -> None:
    assert fan.together({"a": {}, "b": {"fsdp": True}}) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce")]
    for part in (f"{fan.folder / 'students.yaml'}, student 2", "--fsdp", "several ranks of one student"):
        assert part in line
    config = TrainConfig(cache=fan.cache.storage.root, student="student.json")
    ours = [StudentArguments(output_dir=str(tmp_path / name), use_cpu=True) for name in "ab"]
    ours[1].fsdp = True
    with pytest.raises(UsageError, match=r"--fsdp is for several ranks, and --students .*got --fsdp of .*b"):
        train_students([(config, one) for one in ours])


@pytest.mark.parametrize("changes", [{"lora": ["r=4"]}, {"torch_compile": True}], ids=["lora", "compile"])
def test_shards_go_with_neither_adapters_nor_compiling(tmp_path: Path, changes: dict[str, Any]) -> None:
    lora = {"lora": changes["lora"]} if "lora" in changes else {}
    config = TrainConfig(cache="c", student="some/model", **lora)
    told: dict[str, Any] = {key: value for key, value in changes.items() if key not in lora}
    arguments = StudentArguments(output_dir=str(tmp_path), use_cpu=True, **told)
    check_settings(config, arguments)
    arguments.fsdp = True
    with pytest.raises(UsageError, match="--fsdp goes neither with --lora nor with --torch_compile"):
        check_settings(config, arguments)


@pytest.mark.parametrize("launcher", [{}, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}])
def test_shards_need_several_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str]
) -> None:
    """Under torchrun too, where it starts one: there would be no shards, without a word."""
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--fsdp has no effect without several ranks"):
        StudentArguments(output_dir=str(tmp_path), use_cpu=True, fsdp="true")


class Device:
    """An accelerator's module, as torch has one for each kind: its random numbers, and whether it is in use."""

    def __init__(self, *, is_used: bool) -> None:
        self.generator, self.is_used = torch.Generator().manual_seed(1), is_used

    def is_initialized(self) -> bool:
        return self.is_used

    def get_rng_state(self) -> torch.Tensor:
        assert self.is_used, "asking would begin to use it"
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.generator.set_state(state)


def numbers(device: Device) -> list[float]:
    drawn = torch.rand(2, generator=device.generator).tolist() if device.is_used else []
    return [random.random(), float(np.random.rand()), *torch.rand(2).tolist(), *drawn]


@pytest.mark.parametrize("is_used", [True, False])
def test_each_draws_what_it_would_draw_alone(monkeypatch: pytest.MonkeyPatch, is_used: bool) -> None:
    """Also on an accelerator that is not CUDA."""
    device = Device(is_used=is_used)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda device_of=None: device)
    drawn: dict[int, list[list[float]]] = {0: [], 1: []}
    turns = Turns(2)

    def train(number: int) -> None:
        turn = turns.turn(number)
        turn.take()
        for step in range(3):
            turn.before_step(step)
            drawn[number].append(numbers(device))
        turn.leave()

    threads = [threading.Thread(target=train, args=(number,)) for number in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn[0]}) == 3
