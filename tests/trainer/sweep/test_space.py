"""The space's file: what its values mean, and that what is wrong in it is one line naming its place."""

from pathlib import Path
from typing import Any

import pytest

import teachonce
from schemas.errors import TrainingError, UsageError
from tests.trainer.sweep.sweeping import Sweeping
from trainer.cli.sweep import build, read_space
from trainer.sweep.draws import draw, grid_points, grid_size
from trainer.sweep.space import Space
from trainer.sweep.trials import is_foreign
from trainer.tasks.student_task import LOSS_ON_TEXT

TEXT = """\
student: [a.json, {student: shrink:layers=2, teacher: ./t}]
losses:
  kl: {uniform: [0.5, 1], step: 0.25}
  jsd: {weight: 1, beta: [0.1, 0.3]}
learning_rate: {log: [1e-5, 1e-3]}
per_device_train_batch_size: {uniform: [4, 16], step: 4}
max_steps: 5
use_cpu: true
"""


def space_of(folder: Path, text: str) -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return read_space(str(path))


def test_what_trials_are_told(tmp_path: Path) -> None:
    space = space_of(tmp_path, TEXT)
    assert [p.name for p in space.parameters] == [
        *("student", "losses.kl", "losses.jsd.beta", "learning_rate", "per_device_train_batch_size")
    ]
    values = {"student": "a.json", "losses.kl": 0.75, "losses.jsd.beta": "0.1"}
    values |= {"learning_rate": 1e-4, "per_device_train_batch_size": 8}
    flags = space.flags(values)
    assert flags == {
        "student": "a.json",
        "losses": {"kl": 0.75, "jsd": {"weight": 1, "beta": 0.1}},
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 8,
        "max_steps": 5,
        "use_cpu": True,
    }
    brought = space.flags(values | {"student": "shrink:layers=2 teacher=./t"})
    assert brought == flags | {"student": "shrink:layers=2", "teacher": "./t"}
    config, arguments = space.built(values | {"student": "shrink:layers=2 teacher=./t"}, build)
    assert (config.student, config.teacher, config.losses) == (
        "shrink:layers=2",
        "./t",
        ["kl=0.75", "jsd=1,beta=0.1"],
    )
    assert arguments.per_device_train_batch_size == 8
    assert space.check(build)["student"] == "a.json"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_draw_is_within_its_space_and_a_function_of_seed_and_number(tmp_path: Path, sampler: str) -> None:
    space = space_of(tmp_path, TEXT)
    drawn = [draw(space, [], sampler=sampler, seed=1, number=n, goal=LOSS_ON_TEXT) for n in range(60)]
    assert drawn == [draw(space, [], sampler=sampler, seed=1, number=n, goal=LOSS_ON_TEXT) for n in range(60)]
    assert drawn != [draw(space, [], sampler=sampler, seed=2, number=n, goal=LOSS_ON_TEXT) for n in range(60)]
    assert {one["losses.kl"] for one in drawn} == {0.5, 0.75, 1.0}
    assert {one["per_device_train_batch_size"] for one in drawn} == {4, 8, 12, 16}
    assert {one["student"] for one in drawn} == {"a.json", "shrink:layers=2 teacher=./t"}
    rates = sorted(float(one["learning_rate"]) for one in drawn)
    assert 1e-5 <= rates[0] < 3e-5 < 5e-5 < rates[30] < 2.5e-4 < 4e-4 < rates[-1] <= 1e-3
    assert all(float(f"{rate:.4g}") == rate for rate in rates)


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    space = space_of(tmp_path, TEXT.replace("[1e-5, 1e-3]", "[1e-5, 1e-3], points: 3"))
    assert grid_points(space)["learning_rate"] == (1e-5, 1e-4, 1e-3)
    assert grid_size(space) == 2 * 3 * 2 * 3 * 4
    every = [draw(space, [], sampler="grid", seed=1, number=n, goal=LOSS_ON_TEXT) for n in range(144)]
    assert len({tuple(one.values()) for one in every}) == 144
    other = [draw(space, [], sampler="grid", seed=2, number=n, goal=LOSS_ON_TEXT) for n in range(144)]
    assert other != every
    assert sorted(map(str, other)) == sorted(map(str, every))


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such flag": ({"learning_rat": [1, 2]}, "learning_rat", "there is no such key"),
    "its own flag": ({"output_dir": ["a"]}, "output_dir", "the study names each trial's folder"),
    "one value of many": ({"losses": ["kl=1", "kll=1"]}, "losses", "no trial can have this losses"),
    "an end of a range": ({"learning_rate": {"uniform": [0, 1]}}, "learning_rate", "got 0.0"),
    "inside a flag": ({"losses": {"kl": {"uniform": [-1, 1]}}}, "kl", "no trial can have this losses.kl"),
    "a parameter of a loss": ({"losses": ["kl=1,ce=0.5", "kl=1"]}, "losses", "kl has no parameter 'ce'"),
    "a constant": ({"max_steps": 0, "seed": [1, 2]}, "max_steps", "--max_steps cannot be this"),
    "a word for a number": ({"max_steps": ["many", 2]}, "max_steps", "many"),
    "a range that falls": ({"learning_rate": {"log": [1e-3, 1e-5]}}, "learning_rate", "to a larger one"),
    "a range of log from 0": ({"learning_rate": {"log": [0, 1e-5]}}, "learning_rate", "begins above 0"),
    "a range without an end": ({"learning_rate": {"log": [1e-3]}}, "learning_rate", "[LOW, HIGH]"),
    "a range of words": ({"learning_rate": {"log": ["a", "b"]}}, "learning_rate", "a is no number"),
    "a range of what": (
        {"learning_rate": {"log": [1, 2], "q": 1}},
        "learning_rate",
        "{uniform: [LOW, HIGH]}",
    ),
    "halves of a whole": ({"max_steps": {"uniform": [1.5, 3]}}, "max_steps", "whole numbers"),
    "an empty list": ({"learning_rate": []}, "learning_rate", "at least one"),
    "twice": ({"learning_rate": [0.1, 0.1]}, "learning_rate", "stands twice"),
    "a range in a list": ({"losses": [{"kl": {"uniform": [0, 1]}}]}, "losses", "cannot stand in a list"),
    "no parameter": ({"learning_rate": 0.1}, "", "every trial would be the same"),
    "what compares": ({"eval_fraction": [0.1, 0.2]}, "eval_fraction", "by which they are compared"),
    "nothing held out": ({"eval_fraction": 0, "seed": [1, 2]}, "", "held-out documents"),
    "brought and drawn": (
        {"losses": [{"losses": "kl=1", "seed": 1}], "seed": [1, 2]},
        "losses",
        "cannot bring seed along",
    ),
    "points without a grid": ({"learning_rate": {"log": [1e-5, 1e-3], "points": 2}}, "learning_rate", "grid"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_naming_its_place(sweeping: Sweeping, capsys: Any, name: str) -> None:
    space, key, reason = WRONG[name]
    assert sweeping.run("study", **space) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert reason in err
    lines = sweeping.file.read_text().splitlines()
    numbers = [n for n, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:")] if key else []
    assert not numbers or f"space.yaml, line {numbers[0]}" in err
    assert bool(numbers) == bool(key)
    assert not (sweeping.folder / "study").exists()


def test_a_grid_needs_points(sweeping: Sweeping, capsys: Any) -> None:
    assert sweeping.run("study", "--sampler", "grid", learning_rate={"log": [1e-5, 1e-3]}) == 2
    assert "add `points: N`" in capsys.readouterr().err


def test_a_file_that_is_none(sweeping: Sweeping, capsys: Any) -> None:
    argv = sweeping.argv("study", learning_rate=[1, 2])
    for text in ("- a\n", "a: [1\n", "seed: [1, 2]\nseed: [3]\n"):
        sweeping.file.write_text(text)
        assert teachonce.main(argv) == 2
        assert "space.yaml" in capsys.readouterr().err


def test_the_objective(sweeping: Sweeping, capsys: Any) -> None:
    """A metric of `evaluate`, whose direction must be told unless it is the task's own."""
    rates = {"learning_rate": [1e-3, 1e-2], "max_steps": 2}
    for flags, reason in (
        (("--objective", "kl_nats"), "--minimise or --maximise"),
        (
            ("--objective", "klnats", "--minimise"),
            "expected positions, cross_entropy_nats, perplexity, kl_nats",
        ),
        (("--objective", "cross_entropy_nats", "--maximise"), "is minimised"),
        (("--maximise",), "has its direction"),
        (("--prune_at", "0.5", "0.2"), "rise between 0 and 1"),
        (("--prune_at", "0.5", "--pruner", "none"), "no effect"),
    ):
        assert sweeping.run("study", *flags, **rates) == 2
        assert reason in capsys.readouterr().err
    flags = ("--objective", "top1_accuracy", "--maximise", "--sampler", "grid")
    found = sweeping.found(capsys, "study", *flags, **rates)
    assert found["direction"] == "maximize"
    best = found["trials"][found["best"]]
    assert best["value"] == max(t["value"] for t in found["trials"]) == best["metrics"]["top1_accuracy"]


def test_a_student_that_cannot_be_opened_is_its_trials_own_fault() -> None:
    """Whatever lies beneath; a full disk is nobody's."""
    for error, expected in ((UsageError("no such model"), False), (TrainingError("cannot be written"), True)):
        error.__cause__ = OSError("of the system")
        assert is_foreign(error) is expected
