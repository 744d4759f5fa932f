"""A run that is killed, asked to stop or started again gives the undisturbed run's weights, to the last bit."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import teachonce
from schemas.cache import Cache
from tests.trainer import children
from tests.trainer.commanding import AUTO, flags, train
from tests.trainer.outputs import logs, same, weights
from trainer.checkpoints.keeping import KeepingTrainer

STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130}
PLATEAU = '{"patience":0,"threshold":0.9}'
"""Hardly anything is good enough: the rate falls at nearly every evaluation."""
BEST: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "learning_rate": 0.03,
    "metric_for_best_model": "eval_kl",
}


@pytest.fixture(scope="module")
def whole(causal_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The undisturbed run of some settings."""
    folder = tmp_path_factory.mktemp("whole")
    made: dict[str, Path] = {}

    def build(**changes: Any) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            out = folder / f"out-{len(made)}"
            assert train(causal_cache, folder, out, **changes) == 0
            made[key] = out
        return made[key]

    return build


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, Callable[[], None]], None]:
    """Does something just before the n-th call of one of the loop's methods."""

    def arm(method: str, number: int, act: Callable[[], None]) -> None:
        real, seen = getattr(KeepingTrainer, method), [0]

        def counted(loop: Any, *arguments: Any, **keywords: Any) -> Any:
            seen[0] += 1
            if seen[0] == number:
                act()
            return real(loop, *arguments, **keywords)

        monkeypatch.setattr(KeepingTrainer, method, counted)

    return arm


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def evaluations(folder: Path) -> list[dict[str, float]]:
    speeds = ("runtime", "per_second")
    return [
        {name: value for name, value in log.items() if not name.endswith(speeds)}
        for log in logs(folder)
        if "eval_loss" in log
    ]


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGTERM, 1), (signal.SIGINT, 3), (signal.SIGTERM, 4), (signal.SIGTERM, 6)]
)
def test_a_signal_finishes_the_step_and_saves(
    causal_cache: Cache, tmp_path: Path, whole: Any, at: Any, capfd: Any, number: signal.Signals, step: int
) -> None:
    at("_get_grad_norm", step, send(number))
    status = train(causal_cache, tmp_path, "out", *AUTO)
    told = capfd.readouterr().err
    if step < 6:
        assert status == STOPS[number]
        assert f"{number.name}: stopped after step {step} of 6, which is saved in" in told
        assert "--resume_from_checkpoint auto" in told
        assert not (tmp_path / "out" / "model.safetensors").exists()
        status = train(causal_cache, tmp_path, "out", *AUTO)
    assert status == 0
    assert same(whole(), tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    assert not list((tmp_path / "out").glob("*lock*"))


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize("evaluation", [1, 2])
def test_an_evaluation_that_is_broken_off_is_made_up_for(
    causal_cache: Cache, tmp_path: Path, whole: Any, strategy: str, evaluation: int
) -> None:
    """What it decides (the best checkpoint, a plateau's learning rate) is decided all the same."""
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": PLATEAU}
    settings |= BEST | {"eval_strategy": strategy, "save_strategy": strategy}
    if strategy == "epoch":
        settings |= {
            "eval_steps": None,
            "save_steps": None,
            "per_device_train_batch_size": 40,
            "max_steps": 7,
        }
    undisturbed = whole(**settings)
    real = KeepingTrainer.evaluate
    calls = [0]

    def evaluate(loop: Any, *arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(loop, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepingTrainer, "evaluate", evaluate)
        assert train(causal_cache, tmp_path, "out", *AUTO, **settings) == 143
        assert train(causal_cache, tmp_path, "out", *AUTO, **settings) == 0
    assert same(undisturbed, tmp_path / "out")
    assert evaluations(undisturbed) == evaluations(tmp_path / "out")


def test_a_checkpoint_at_an_epochs_end_knows_what_that_decided(
    causal_cache: Cache, tmp_path: Path, whole: Any, at: Any
) -> None:
    """Saved by steps, evaluated by epochs: the plateau's rate is part of the checkpoint of the epoch's last step."""
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": PLATEAU}
    settings |= {"eval_strategy": "epoch", "save_steps": 1, "per_device_train_batch_size": 40}
    settings |= {"max_steps": 10, "logging_steps": 1}
    undisturbed = whole(**settings)
    rates = {log["learning_rate"] for log in logs(undisturbed) if "learning_rate" in log}
    assert len(rates) > 1, "the plateau's rate has to change"
    at("_get_grad_norm", 9, send(signal.SIGTERM))
    assert train(causal_cache, tmp_path, "out", *AUTO, **settings) == 143
    for step in (7, 8):
        argv = flags(causal_cache, tmp_path, f"again-{step}", **settings)
        checkpoint = tmp_path / "out" / f"checkpoint-{step}"
        assert teachonce.main([*argv, "--resume_from_checkpoint", str(checkpoint)]) == 0
        assert same(undisturbed, tmp_path / f"again-{step}")


def test_a_signal_while_an_evaluation_is_made_up_for(
    causal_cache: Cache, tmp_path: Path, whole: Any, at: Any, capfd: Any
) -> None:
    undisturbed = whole(**BEST)
    real, calls = KeepingTrainer.evaluate, [0]

    def evaluate(loop: Any, *arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] <= 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(loop, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepingTrainer, "evaluate", evaluate)
        assert [train(causal_cache, tmp_path, "out", *AUTO, **BEST) for _ in range(3)] == [143, 143, 0]
    assert "nothing is lost" in capfd.readouterr().err
    assert same(undisturbed, tmp_path / "out")
    assert evaluations(undisturbed) == evaluations(tmp_path / "out")


def test_a_signal_before_the_first_step_ends_at_once(
    causal_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from trainer.training import training

    real = training.open_student
    monkeypatch.setattr(training, "open_student", lambda *a, **k: (send(signal.SIGTERM)(), real(*a, **k))[1])
    before = signal.getsignal(signal.SIGTERM)
    assert train(causal_cache, tmp_path, "out") == 143
    assert "SIGTERM: stopped" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_kill_9_at_instants_of_saving_and_between(causal_cache: Cache, tmp_path: Path, whole: Any) -> None:
    undisturbed = whole()
    log = tmp_path / "log"
    assert children.run(flags(causal_cache, tmp_path, "counted", *AUTO), log) == 0, log.read_text()
    total = children.instants(log)
    assert total > 60
    for number, instant in enumerate((total // 7, total // 2, total - total // 8, total - 9)):
        argv = flags(causal_cache, tmp_path, f"out-{number}", *AUTO)
        assert children.run(argv, log, crash_at=instant) == -signal.SIGKILL
        assert children.run(argv, log) == 0, (instant, log.read_text())
        assert same(undisturbed, tmp_path / f"out-{number}"), instant
        assert not [path for path in (tmp_path / f"out-{number}").iterdir() if path.name.startswith(".")]


@pytest.mark.chaos
def test_kill_9_at_every_third_instant(causal_cache: Cache, tmp_path: Path, whole: Any) -> None:
    """Killed again while it goes on, and then once more left alone."""
    settings = {**BEST, "save_total_limit": 2}
    undisturbed, log = whole(**settings), tmp_path / "log"
    assert children.run(flags(causal_cache, tmp_path, "counted", *AUTO, **settings), log) == 0, (
        log.read_text()
    )
    for instant in range(1, children.instants(log) + 1, 3):
        argv = flags(causal_cache, tmp_path, f"out-{instant}", *AUTO, **settings)
        assert children.run(argv, log, crash_at=instant) == -signal.SIGKILL
        children.run(argv, log, crash_at=1 + instant // 2)
        assert children.run(argv, log) == 0, (instant, log.read_text())
        assert same(undisturbed, tmp_path / f"out-{instant}"), instant


def test_a_run_that_is_not_finite_ends_with_its_last_good_checkpoint(
    causal_cache: Cache, tmp_path: Path, capfd: Any
) -> None:
    assert train(causal_cache, tmp_path, "out", learning_rate="1e9", save_steps=1, warmup_steps=0) == 1
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce train:")]
    (line,) = told
    assert "no longer finite at step" in line
    assert "--learning_rate" in line
    assert not (tmp_path / "out" / "model.safetensors").exists()
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        assert all(bool(w.isfinite().all()) for w in weights(checkpoint).values())
        assert str(checkpoint.name) in line


def test_two_runs_in_one_folder(causal_cache: Cache, tmp_path: Path, at: Any, capfd: Any) -> None:
    argv, statuses = flags(causal_cache, tmp_path, "out", *AUTO), []
    log = tmp_path / "log"
    at("_get_grad_norm", 2, lambda: statuses.append(children.run(argv, log)))
    assert teachonce.main(argv) == 0
    assert statuses == [2]
    assert "another training writes into --output_dir" in log.read_text()
    assert f'"process": {os.getpid()}' in log.read_text()


def test_a_file_that_may_not_be_as_large_is_one_line(causal_cache: Cache, tmp_path: Path) -> None:
    """Known before the first step from the student's size."""
    log = tmp_path / "log"
    assert children.run(flags(causal_cache, tmp_path, "out"), log, file_bytes=60_000) == 2
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("teachonce train:")]
    assert "ulimit -f" in line


def test_a_disk_that_fills_is_one_line_and_what_was_whole_stands(
    causal_cache: Cache, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    import torch

    real, calls = torch.save, [0]

    def save(value: Any, path: Any, *others: Any) -> None:
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(28, "No space left on device", str(path))
        real(value, path, *others)

    monkeypatch.setattr(torch, "save", save)
    assert train(causal_cache, tmp_path, "out") == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce train:")]
    assert "No space left on device" in line
    monkeypatch.setattr(torch, "save", real)
    assert train(causal_cache, tmp_path, "out", *AUTO) == 0
    assert same(whole(), tmp_path / "out")
