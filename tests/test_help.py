"""Help and refusals come at once: no library that takes seconds to import is imported for them."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

import pipelines
import teachonce
import trainer
from schemas.errors import UsageError, nearest
from trainer.cli.flags import train_parser
from trainer.cli.parsing import Parser, truth
from trainer.cli.transformers_settings import settings_of_transformers
from trainer.evaluation.evaluation import EvaluateConfig
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.flags import TrainFlags

ROOT = Path(teachonce.__file__).parent
HEAVY = "torch transformers apache_beam accelerate sklearn scipy huggingface_hub tokenizers numba pandas"
LINES = [
    *([verb, *more] for verb in teachonce.VERBS for more in (["--help"], ["--no_such_flag"])),
    ["verify", "--teacher", "t", "--help"],
    ["inspect", "--corpus", "c", "--help"],
    ["train", "--help_all"],
    ["train", "--students", "s.yaml", "--help"],
    ["train", "--tasks", "t.yaml", "--help"],
    ["train", "--cache", "c", "--student", "s", "--max_steps", "many"],
    ["precompute", "--corpus", "c", "--teacher", "t", "--task", "causal_lm", "--cache", "c"],
    ["trian"],
    ["--help"],
    ["--version"],
]
ASK = """
import contextlib, io, sys, teachonce
for line in {lines!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = teachonce.main(line)
        except SystemExit as left:
            status = left.code
    assert status == (0 if line[-1] in ("--help", "--help_all", "--version") else 2), (line, status)
    loaded = [name for name in {heavy!r} if name in sys.modules]
    assert not loaded, (line, loaded)
print("all")
"""


def test_no_help_and_no_wrong_flag_imports_what_takes_seconds():
    asked = ASK.format(lines=LINES, heavy=HEAVY.split())
    done = subprocess.run(
        [sys.executable, "-c", asked], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "all", done.stderr


def seen(action):
    """What of a flag decides how a line is read."""
    kind = action.type
    if getattr(kind, "__name__", "") in ("string_to_bool", "truth"):
        kind = bool
    kind = str if kind is Any else kind  # in Python a model may be the student
    kind = getattr(kind, "__origin__", kind)  # dict[str, bool] is asked as dict
    if action.choices is not None:
        kind = None  # a function of its own
    default = action.default.value if hasattr(action.default, "value") else action.default
    return (
        sorted(action.option_strings),
        action.nargs,
        action.const,
        kind,
        action.choices and list(action.choices),
        action.required,
        default,
        type(action).__name__,
    )


def by_flag(parser, names):
    actions = {tuple(a.option_strings): a for a in parser._actions if a.dest in names}
    return {flags: seen(action) for flags, action in actions.items()}


@pytest.mark.parametrize("kinds", [[TrainConfig, StudentArguments], [EvaluateConfig]])
def test_flags_are_those_that_transformers_would_make(kinds):
    names = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    ours = by_flag(Parser(kinds, description="train It.", examples=""), names)
    assert ours == by_flag(HfArgumentParser(kinds), names)
    assert len(ours) == len(names) + sum("--no_" in flags[0] for flags in ours)


def test_flags_read_in_the_source_are_those_of_the_class():
    """Types, choices and spellings; a default that is no literal there is None."""
    real, read = ([TrainConfig, StudentArguments], [TrainFlags, settings_of_transformers()])
    names = {field.name for kind in real for field in dataclasses.fields(kind) if field.init}
    assert names == {field.name for kind in read for field in dataclasses.fields(kind)}
    theirs, ours = (by_flag(train_parser(kinds), names) for kinds in (real, read))
    assert theirs.keys() == ours.keys()
    other = {flags[0] for flags in theirs if theirs[flags] != ours[flags]}
    assert other == {
        *("--optim", "--log_level", "--log_level_replica", "--include_for_metrics", "--parallelism_config"),
        "--debug",
    }
    for flags in theirs:  # what is not known is not refused
        read_as, made = ours[flags], theirs[flags]
        assert (read_as[:3], read_as[5], read_as[7]) == (made[:3], made[5], made[7])
        assert read_as[4] in (None, made[4])
        assert read_as[3] in (str, made[3])


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("True", True), ("0", False), ("n", False)])
def test_truth(text, value):
    assert truth(text) is value


@pytest.mark.parametrize("package", [pipelines, trainer], ids=lambda package: package.__name__)
def test_each_exported_name_is_opened_where_the_types_say(package):
    (block,) = (n for n in ast.parse(Path(package.__file__).read_text()).body if isinstance(n, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    opened = {name: module for module, names in package._HOMES.items() for name in names}
    assert opened == typed
    assert set(opened) == set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing_here'"):
        _ = package.nothing_here


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("trian", "train"),
        ("precompute --corpsu x", "--corpus"),
        ("precompute --max-lenght=3", "--max_length"),
        ("precompute --corpus x --teacher t --task causal_lm --cache c", "causal-lm"),
        ("train --learning_rat 3", "--learning_rate"),
        ("train --cache c --student s --eval_strategy step", "steps"),
        ("train --cache c --student ./s --output_dir o --losses kl=1 skew_kll=1", "skew_kl"),
        ("train --cache c --student ./s --output_dir o --preset hintom", "hinton"),
        ("thin c --keep treshold:1/8 --out o", "threshold"),
        ("evaluate --cach c", "--cache"),
        ("vacuum c --older_then 7d", "--older_than"),
    ],
)
def test_what_is_misspelt_is_told_with_what_was_meant(capsys, line, meant):
    assert teachonce.main(line.split()) == 2
    assert f"Did you mean {meant}? " in f"{capsys.readouterr().err.strip()} "


def test_what_is_near_to_nothing_gets_no_hint():
    assert nearest("--zebra", ["--cache", "--corpus"]) == ""
    assert (
        nearest("--max", ["--cache", "--max_length", "--max_length_of_all"]) == "Did you mean --max_length? "
    )


def test_a_misspelt_key_of_a_file_is_told_too(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(UsageError, match="Did you mean learning_rate"):
        train_parser([TrainConfig, StudentArguments]).values([str(tmp_path / "run.yaml")])


def test_versions_are_told(capsys):
    assert teachonce.main(["--version"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"teachonce", "torch", "transformers", "apache-beam", "python"} <= told.keys()
    import torch

    assert torch.__version__.startswith(told["torch"].partition("+")[0])
