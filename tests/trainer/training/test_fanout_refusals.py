"""What students of one decode must have alike, and what a file of students may not say."""

import json
from pathlib import Path
from typing import Any

import pytest

import teachonce
from schemas.cache import Cache
from tests.trainer.fan import Fan
from trainer.training import arguments


@pytest.fixture
def fan(causal_cache: Cache, tmp_path: Path) -> Fan:
    return Fan(causal_cache, tmp_path)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"cache": "elsewhere"}, "--cache"),
        ({"seed": 3}, "--data_seed (without one, --seed)"),
        ({"data_seed": 3}, "--data_seed"),
        ({"gradient_accumulation_steps": 2}, "--per_device_train_batch_size times"),
        ({"per_device_train_batch_size": 8}, "--per_device_train_batch_size times"),
        ({"where": "length<=9"}, "--where"),
        ({"lanes": 4}, "--lanes"),
        ({"eval_fraction": 0.3}, "--eval_fraction"),
        ({"shuffle_row_groups": 9}, "--shuffle_row_groups"),
        ({"cache_version": 0}, "--cache_version"),
        ({"allow_new_data": True}, "--allow_new_data"),
        ({"full_determinism": True}, "--full_determinism"),
    ],
)
def test_what_shapes_the_order_is_one(fan: Fan, capfd: Any, own: dict[str, Any], named: str) -> None:
    assert fan.together({"a": {}, "b": own}) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce")]
    for part in (
        "students of one decode cannot differ in",
        named,
        str(fan.folder / "a"),
        str(fan.folder / "b"),
    ):
        assert part in line
    assert not (fan.folder / "a").exists()


def test_what_is_refused(fan: Fan, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(argv: list[str], *parts: str) -> None:
        assert teachonce.main(argv) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce")]
        for part in parts:
            assert part in line
        assert not (fan.folder / "a").exists()

    here = str(fan.folder / "students.yaml")
    refused(
        fan.argv({"a": {}, "b": {"output_dir": str(fan.folder / "a")}}), "two students have one --output_dir"
    )
    (fan.folder / "start").mkdir()
    students = {"a": {"student": str(fan.folder / "start")}, "b": {"output_dir": str(fan.folder / "start")}}
    refused(fan.argv(students), "--output_dir holds what this run begins with")
    monkeypatch.setitem(arguments._MODULES, "mlflow", "json")
    refused(fan.argv({"a": {}, "b": {"report_to": "mlflow"}}), "--report_to mlflow")
    refused(fan.argv({"a": {}, "b": {"lerning_rate": 1}}), f"{here}, student 2", "lerning_rate")
    refused(fan.argv({"a": {}, "b": {"learning_rate": -1}}), f"{here}, student 2", "--learning_rate")
    refused(fan.argv({"a": {}, "b": {"losses": "kk=1"}}), f"{here}, student 2", "kk")
    refused(fan.argv({"a": {}, "b": {"students": []}}), f"{here}, student 2", "students")
    refused(fan.argv({}), "has no list of students", here)
    argv = fan.argv({"a": {}})
    refused([*argv, *argv[1:]], "stands there twice")
    refused(["train", "run.yaml", *argv[1:]], "has no place beside --students", "run.yaml")
    refused(["train", "--students"], "names no file")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(argv, "--students", "2 ranks", "torchrun")


def test_flags_are_said_of_all(fan: Fan) -> None:
    assert fan.together({"a": {"max_steps": 8}, "b": {}}, "--max_steps", "2") == 0
    for name in ("a", "b"):
        assert json.loads((fan.folder / name / "trainer_state.json").read_text())["global_step"] == 2
