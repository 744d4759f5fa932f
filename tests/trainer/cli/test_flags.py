"""Every flag that `--help_all` names, once with a value that works and once with one that is refused in one line.

A flag that is missing here fails the law below: a release of transformers that brings one must be looked at first.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import teachonce
from schemas.cache import Cache
from schemas.errors import UsageError
from tests.trainer.commanding import flags
from tests.trainer.flag_tables import BEST, EVAL, EVALUATE, HARMFUL, NEEDED, NO_TEXT, SERVICE, TRAIN
from tests.trainer.outputs import logs
from trainer.cli import commands
from trainer.cli.parsing import Parser
from trainer.evaluation.config import EvaluateConfig
from trainer.training.arguments import StudentArguments
from trainer.training.settings import REFUSED, WORKS
from trainer.training.training import TrainConfig


def parsed(kinds: list[type], words: list[str]) -> list[Any]:
    return Parser(kinds, description="train Is a test.", examples="").values(words)


def words_for(name: str, value: str, beside: str, needed: Mapping[str, str]) -> list[str]:
    found = [word for key, text in needed.items() if key != name for word in (f"--{key}", text)]
    usual = [] if name == "use_cpu" or "output_dir" not in needed else ["--use_cpu"]
    return [
        *found,
        *usual,
        *shlex.split(beside),
        f"--{name}",
        *(value.split() if name in ("losses", "lora", "students") else [value]),
    ]


def test_every_setting_is_looked_at() -> None:
    """The law: transformers' fields, and our own, are all in one of the tables; and only they."""
    kinds = (TrainConfig, StudentArguments)
    ours = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    told = {*TRAIN, *SERVICE, *HARMFUL}
    assert ours == told
    settings = {field.name for field in dataclasses.fields(StudentArguments)}
    assert settings <= {*REFUSED, *WORKS}
    assert set(HARMFUL) == set(REFUSED) & settings
    assert not set(REFUSED) & WORKS
    assert {field.name for field in dataclasses.fields(EvaluateConfig)} == set(EVALUATE)


@pytest.mark.parametrize("name", [name for name in TRAIN if name not in ("teacher", "feature_loss")])
def test_a_flag_with_a_value_that_works(name: str) -> None:
    case = TRAIN[name]
    words = words_for(name, case.good, case.beside, NEEDED)
    config, arguments = parsed([TrainConfig, StudentArguments], words)
    assert str(getattr(config, name, getattr(arguments, name, None))) not in ("", "MISSING")


BESIDE_BAD = {
    "load_in_4bit": "",
    "overwrite_output_dir": "--resume_from_checkpoint auto",
    "metric_for_best_model": BEST,
}


@pytest.mark.parametrize("name", [name for name, case in TRAIN.items() if case.bad])
def test_a_flag_with_a_value_that_does_not(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = TRAIN[name]
    monkeypatch.chdir(tmp_path)
    beside = BESIDE_BAD.get(name, "" if name == "optim_target_modules" else case.beside)
    assert teachonce.main(["train", *words_for(name, case.bad, beside, NEEDED)]) == 2
    line = told_once(capsys)
    assert case.bad.split("=")[0] in line or name.partition("_")[2] in line
    assert not list(tmp_path.iterdir()), "nothing was done"


def told_once(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line


@pytest.mark.parametrize("name", [*HARMFUL, *SERVICE])
def test_a_flag_that_has_no_effect_here(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = {**HARMFUL, **SERVICE}[name]
    assert teachonce.main(["train", *words_for(name, value, "", NEEDED)]) == 2
    line = told_once(capsys)
    assert f"--{name} has no" in line or (name in NO_TEXT and f"argument --{name}" in line)


def test_a_setting_that_nobody_looked_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.training import settings

    monkeypatch.setattr(settings, "WORKS", WORKS - {"weight_decay"})
    StudentArguments(output_dir="o", use_cpu=True)
    with pytest.raises(UsageError, match="does not know what --weight_decay"):
        StudentArguments(output_dir="o", use_cpu=True, weight_decay=0.1)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--eval_steps 5", "--eval_strategy steps"),
        ("--eval_delay 5", "an --eval_strategy"),
        ("--eval_on_start", "an --eval_strategy"),
        ("--save_strategy epoch --save_steps 5", "--save_strategy steps"),
        ("--logging_strategy epoch --logging_steps 5", "--logging_strategy steps"),
        ("--activation_checkpointing_kwargs {}", "--activation_checkpointing"),
        ("--optim sgd --adam_beta1 0.5", "--adam_beta1 has no effect with --optim sgd"),
        ("--optim_args momentum=0.9", "--optim_args has no effect with --optim adamw_torch_fused"),
        ("--metric_for_best_model eval_kl", "--load_best_model_at_end"),
        ("--greater_is_better false", "--load_best_model_at_end"),
        ("--save_strategy best", "--eval_strategy"),
        ("--load_best_model_at_end", "--eval_strategy"),
        ("--lr_scheduler_type reduce_lr_on_plateau", "--eval_strategy"),
        ("--eval_strategy steps --eval_steps 3 --save_steps 5 --load_best_model_at_end", "multiple"),
        ("--eval_strategy epoch --load_best_model_at_end", "match"),
        ("--optim paged_adamw_8bit_layerwise", "optim"),
        ("--optim galore_adamw_layerwise", "state is in no checkpoint"),
        ("--optim schedule_free_adamw", "apart"),
        ("--report_to tensorboard", r"pip install 'teachonce\[tensorboard\]'|^$"),
        ("--report_to wandb", "pip install wandb"),
        ("--report_to mlflow", "pip install mlflow"),
        ("--report_to nonsense", "tensorboard"),
        ("--temperature 2 --losses ce=1", "--temperature has no effect"),
        ("--feature_loss cosine", "--feature_loss has no effect"),
        ("--teacher ./t", "--teacher has no effect"),
        ("--local_cache_gb 5 --cache s3://b/c", "--local_cache_gb has no effect without"),
        ("--local_cache copies", "--local_cache has no effect on a cache in a folder"),
        ("--local_cache copies --cache file:///c", "--local_cache has no effect on a cache in a folder"),
        ("--gradient_checkpointing true --activation_checkpointing false", "one setting"),
    ],
)
def test_settings_that_do_nothing_together(
    words: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "tensorboard" in words and has_tensorboard():
        pytest.skip("it is installed")
    assert teachonce.main(["train", *words_for("", "", words, NEEDED)[:-2]]) == 2
    assert re.search(named, told_once(capsys))


def has_tensorboard() -> bool:
    import importlib.util

    return importlib.util.find_spec("tensorboard") is not None


RUNS = [
    f"--losses kl=1 feature=0.1 --feature_loss cosine --temperature 2 --seed 3 --data_seed 4 {EVAL} --eval_delay 1",
    "--optim sgd --optim_args momentum=0.9,nesterov=true --max_grad_norm 0 --lr_scheduler_type constant_with_warmup "
    "--logging_first_step --include_num_input_tokens_seen true --skip_memory_metrics false --eval_on_start "
    "--eval_strategy epoch --save_strategy epoch --save_total_limit 1",
    "--adam_beta1 0.8 --adam_beta2 0.9 --adam_epsilon 1e-6 --weight_decay 0.1 --optim adamw_torch "
    "--lr_scheduler_type cosine_with_min_lr --torch_empty_cache_steps 1 --gradient_accumulation_steps 2 "
    '--gradient_checkpointing --gradient_checkpointing_kwargs {"use_reentrant":false} --log_level error',
    f"{EVAL} --save_strategy best --metric_for_best_model kl --load_best_model_at_end --optim adafactor --bf16 "
    "--logging_strategy epoch --lr_scheduler_type greedy",
    "--optim rmsprop --lr_scheduler_type warmup_stable_decay --shuffle_row_groups 2 --cache_version 0 "
    "--ddp_timeout 60 --eval_fraction 0 --warmup_steps 1 --save_strategy no",
]
KWARGS = {2: '{"min_lr":1e-5}', 4: '{"num_decay_steps":1}'}


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_flags_that_change_training_train(
    causal_cache: Cache, tmp_path: Path, number: int, capfd: Any
) -> None:
    own = {
        "max_steps": 2,
        "save_steps": None,
        "logging_steps": None,
        "save_total_limit": None,
        "eval_fraction": None,
    }
    if "--eval_fraction" not in RUNS[number]:
        own["eval_fraction"] = 0.2  # type: ignore[assignment]
    words = RUNS[number].split()
    if number in KWARGS:
        words += ["--lr_scheduler_kwargs", KWARGS[number]]
    assert teachonce.main(flags(causal_cache, tmp_path, "out", *words, **own)) == 0, capfd.readouterr().err
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2
    if "include_num" in RUNS[number]:
        assert logs(tmp_path / "out")[-1]["num_input_tokens_seen"] > 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--optim paged_adamw_8bit", "bitsandbytes"),
        ("--optim galore_adamw --optim_target_modules attn", "galore"),
        ("--optim adamw_anyprecision", "torchdistx"),
        ("--optim sgd --optim_args momentum=fast", "fast"),
        ("--lr_scheduler_type cosine_with_min_lr", "min_lr"),
        ('--lr_scheduler_kwargs {"bogus":1}', "bogus"),
        (
            f'{EVAL} --lr_scheduler_type reduce_lr_on_plateau --lr_scheduler_kwargs {{"mode":"max"}}',
            "lower is better",
        ),
        (f"{BEST} --metric_for_best_model accuracy", "expected eval_loss, eval_kl, got accuracy"),
        (f"{BEST} --metric_for_best_model eval_runtime", "eval_loss, eval_kl"),
        (f"{BEST} --metric_for_best_model kl --greater_is_better true", "lower is better"),
    ],
)
def test_what_cannot_be_made_is_said_before_the_first_step(
    causal_cache: Cache, tmp_path: Path, words: str, named: str, capfd: Any
) -> None:
    own = {"save_steps": None}
    assert teachonce.main(flags(causal_cache, tmp_path, "out", *words.split(), **own)) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce train:")]
    assert named in line
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", EVALUATE)
def test_flags_of_evaluate(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case, needed = EVALUATE[name], {"cache": "c", "student": "./s"}
    if "students" in (name, *case.beside.removeprefix("--").split()[:1]):
        del needed["student"]
    (config,) = parsed([EvaluateConfig], words_for(name, case.good, case.beside, needed))
    assert getattr(config, name) is not None
    if case.bad:
        assert teachonce.main(["evaluate", *words_for(name, case.bad, case.beside, needed)]) == 2
        assert case.bad in told_once(capsys)


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.train(["--help_all"])
    text = capsys.readouterr().out
    for name in {*TRAIN, *SERVICE, *HARMFUL}:
        assert f"--{name}" in text, name


@pytest.mark.parametrize("name", ["dataloader_pin_memory", "skip_memory_metrics", "ddp_broadcast_buffers"])
@pytest.mark.parametrize("value", [True, False])
def test_yes_and_no_reach_a_setting_from_flags_and_files(tmp_path: Path, name: str, value: bool) -> None:
    """Also where the default is yes and transformers' parser has a second flag, `--no_...`."""
    usual = ["--cache", "c", "--student", "s.json", "--output_dir", "o"]
    told = [*usual, f"--{name}", str(value)]
    (tmp_path / "run.yaml").write_text(f"{name}: {str(value).lower()}\n")
    for words in (told, [str(tmp_path / "run.yaml"), *usual]):
        _, arguments = parsed([TrainConfig, StudentArguments], words)
        assert getattr(arguments, name) is value


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("losses: kl=1 ce=0.5", None),
        ("losses: kl", None),
        ("losses: null", "a value, or no such line"),
        ("losses: [null]", "losses"),
        ("losses: {kl: null}", "losses"),
        ("losses: {kl: 1, jsd: {weight: 0.5, beta: 0.3}}", None),
        ("losses: {jsd: {beta: 0.3}}", "losses"),
        ("losses: {jsd: {weight: 1, beta: 2}}", "beta must be between 0 and 1"),
        ("losses: [[kl]]", "losses"),
        ("losses: []", "at least one value"),
        ("temperature: null", "temperature"),
        ("max_steps: null", "max_steps"),
        ("learning_rate: [1]", "one value"),
        ("learning_rate: {a: 1}", "one value"),
        ("save_strategy: no", None),
        ("eval_strategy: off", None),
        ("save_total_limit: null", None),
        ("report_to: null", None),
        ("lr_scheduler_kwargs: {num_cycles: 1}", None),
        ("cache: d", "twice"),
        ("seed: true", "True"),
        ("? [a]\n: 1", "file of flags"),
        ("5: 1", "no such key"),
    ],
)
def test_values_of_a_file(tmp_path: Path, text: str, named: str | None) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"cache: c\nstudent: s.json\noutput_dir: o\nuse_cpu: true\n{text}\n")
    if named is None:
        config, _ = parsed([TrainConfig, StudentArguments], [str(path)])
        assert config.losses in (["kl=1", "ce=0.5"], ["kl"], ["kl=1.0"], ["kl=1", "jsd=0.5,beta=0.3"])
        return
    with pytest.raises(UsageError, match=named):
        parsed([TrainConfig, StudentArguments], [str(path)])
