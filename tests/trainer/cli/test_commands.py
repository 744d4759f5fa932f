"""The verbs: flags, files, help, and errors of one line with status 2."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

import teachonce
from schemas.cache import Cache
from schemas.errors import UsageError
from tests.trainer.tiny import STUDENT, make_llama
from trainer.cli import commands
from trainer.training.training import Trained


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `train` would be called with."""
    calls: list[Any] = []

    def remember(config: Any, arguments: Any) -> Trained:
        calls.extend([config, arguments])
        return Trained("out", 0, {})

    monkeypatch.setattr(commands, "run_train", remember)
    return calls


FLAGS = ["--cache", "c", "--student", "s", "--output_dir", "o", "--use_cpu"]


def test_flags_become_values(asked: list[Any]) -> None:
    losses = ["--losses", "kl=1.0", "ce=0.5"]
    assert commands.train([*FLAGS, *losses, "--temperature", "2", "--learning_rate", "1e-4"]) == 0
    config, arguments = asked
    assert (config.cache, config.losses, config.temperature) == (["c"], ["kl=1.0", "ce=0.5"], 2.0)
    assert (arguments.output_dir, arguments.learning_rate, arguments.report_to) == ("o", 1e-4, [])


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_a_file_of_flags_and_flags_win(asked: list[Any], tmp_path: Path, kind: str) -> None:
    values = {
        "cache": "c",
        "student": "s",
        "losses": {"kl": 1.0, "feature": 0.1},
        "output_dir": "o",
        "max_steps": 7,
        "bf16": False,
        "use_cpu": True,
        "cache_version": None,
        "learning_rate": "1e-3" if kind == "yaml" else 1e-3,
    }
    path = tmp_path / f"run.{kind}"
    path.write_text(yaml.safe_dump(values, sort_keys=False) if kind == "yaml" else json.dumps(values))
    assert commands.train([str(path), "--max_steps", "9"]) == 0
    config, arguments = asked
    assert config.losses == ["kl=1.0", "feature=0.1"]
    assert config.cache_version is None
    assert (arguments.max_steps, arguments.learning_rate, arguments.use_cpu) == (9, 1e-3, True)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([*FLAGS, "--bogus", "1"], "--bogus 1"),
        ([*FLAGS, "--temp", "2"], "--temp"),
        ([*FLAGS, "--losses", "kll=1"], "kll"),
        ([*FLAGS, "--max_steps", "many"], "many"),
        ([*FLAGS, "--eval_fraction", "1.5"], "1.5"),
        ([*FLAGS, "--eval_strategy", "sometimes"], "sometimes"),
        (["--student", "s", "--output_dir", "o"], "--cache"),
        (["--cache", "c", "--student", "s"], "--output_dir"),
        (["none.yaml"], r"none\.yaml"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        commands.train(flags)
    assert teachonce.main(["train", *flags]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cash: c", "cash"),
        ("- c", "list"),
        ("a: [", "cannot be read"),
        ("help: 1", "help"),
        ("json: true", "json"),
    ],
)
def test_a_file_of_nonsense(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=named):
        commands.train([str(tmp_path / "run.yaml")])


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_help_teaches_with_two_examples(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as caught:
        teachonce.main([verb, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.count(f"teachonce {verb} ") >= 3
    assert "--eval_fraction" in text
    assert "--adam_beta1" not in text
    assert len(text.splitlines()) < 170


def test_help_all_shows_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.train(["--help_all"])
    assert "--adam_beta1" in capsys.readouterr().out


def test_from_flags_to_a_student_to_its_numbers(
    causal_cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # as the command's own process has it: what reaches the root logger is shown too
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    shared = ["--cache", causal_cache.storage.root]
    out = str(tmp_path / "student")
    flags = ["--student", str(tmp_path / "student.json"), "--output_dir", out, "--max_steps", "3"]
    quiet = ["--disable_tqdm", "true", "--use_cpu", "--dataloader_pin_memory", "false"]
    floats = ["--logging_steps", "1.0", "--save_strategy", "no", "--eval_fraction", "0.25"]
    assert teachonce.main(["train", *shared, *flags, *quiet, *floats, "--json"]) == 0
    printed, told = capsys.readouterr()
    trained = json.loads(printed)
    assert (trained["output_dir"], trained["steps"], trained["was_finished"]) == (out, 3, False)
    assert trained["metrics"]["train_loss"] > 0
    assert " train_loss " in told, "what is logged left stdout to the object"
    assert "3 steps" in told
    assert told.count("kl from") == 1
    measure = ["evaluate", *shared, "--student", out, "--speed_seconds", "0", "--device", "cpu"]
    assert teachonce.main([*measure, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["eval_fraction"] == 0.25
    assert found["metrics"]["perplexity"] > 1
    assert teachonce.main(measure) == 0
    assert "perplexity" in capsys.readouterr().out


def test_a_student_that_does_not_fit_is_one_line(
    causal_cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = make_llama(tmp_path / "short", max_position_embeddings=16)
    flags = ["--cache", causal_cache.storage.root, "--student", student]
    capsys.readouterr()
    status = teachonce.main(["train", *flags, "--output_dir", str(tmp_path / "out"), "--use_cpu"])
    assert status != 0
    assert "max_position_embeddings" in capsys.readouterr().err
