"""Stages of a run: each has its own losses, learning rate and frozen parameters, and one line of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, get_scheduler

from schemas.errors import StudentError, UsageError
from tests.trainer.tiny import llama_config
from trainer.cli.parsing import Parser
from trainer.losses.objective import Objective
from trainer.losses.stages import Stage, first_steps, parse_stages, stage_at
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.staged import frozen_names, staged_scheduler
from trainer.training.training import check_settings

FEATURES_FIRST = ["share=0.5 pkd=1 freeze=lm_head.* learning_rate=2e-3", "kl=1 ce=0.5"]
TOLD: dict[str, Any] = {"stages": FEATURES_FIRST, "losses": None, "max_steps": 10, "save_steps": 1}


def parsed(words: list[str]) -> TrainConfig:
    found: TrainConfig = Parser(
        [TrainConfig, StudentArguments], description="train tests", examples=""
    ).values(words)[0]
    return found


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_what_is_written_is_what_is_meant() -> None:
    first, second = parse_stages(
        ["losses=pkd=1 feature=0.5,distance=cosine share=0.25 freeze=a.*,b freeze=c", "kl"]
    )
    assert first == Stage(
        share=0.25,
        weights={"pkd": 1.0, "feature": 0.5},
        settings={"feature": {"distance": "cosine"}},
        freeze=("a.*", "b", "c"),
    )
    assert (second.share, second.weights, second.learning_rate) == (0.75, {"kl": 1.0}, None)
    assert parse_stages([str(first), str(second)])[1] == second
    objective = Objective.parse([], stages=["share=0.5 jsd=2,beta=0.3 ce=0.1", "kl=1 jsd=1,beta=0.3"])
    assert objective.weights == {"jsd": 1.0, "ce": 0.0, "kl": 1.0}
    assert [objective.weight("jsd", share) for share in (0.0, 0.49, 0.5, None)] == [2.0, 2.0, 1.0, 1.0]
    assert objective.settings == {"jsd": {"beta": 0.3}}


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        (["kl=1"], "one stage is a run without stages"),
        (["kl=1", "ce=1"], "stage 1: 'kl=1' has no share"),
        (["share=1 kl=1", "ce=1"], "stage 2: 'ce=1' has no share of the steps, and none is left"),
        (["share=0.5 kl=1", "share=0.4 ce=1"], "must sum to 1, but got 0.5, 0.4"),
        (["share=1.5 kl=1", "ce=1"], "above 0 and at most 1, but got 1.5"),
        (["share=nan kl=1", "ce=1"], "above 0 and at most 1, but got nan"),
        (["share=half kl=1", "ce=1"], "share must be a number, but got 'half'"),
        (["share=0.5 share=0.2 kl=1", "ce=1"], "share stands twice"),
        (["share=0.5", "ce=1"], "needs a loss"),
        (["share=0.5 kl=0", "ce=1"], "weight above 0"),
        (["share=0.5 kl=1 ce=-1", "ce=1"], "not negative, but got -1"),
        (["share=0.5 kll=1", "ce=1"], "no such loss: 'kll'"),
        (["share=0.5 kl=1 freeze=", "ce=1"], "a name that is empty"),
        (["share=0.5 kl=1 learning_rate=0", "ce=1"], "learning_rate is above 0, but got 0"),
        (
            ["share=0.5 jsd=1,beta=0.3", "jsd=1,beta=0.4"],
            "jsd's beta is told twice, and not alike: 0.3 and 0.4",
        ),
    ],
)
def test_nonsense_is_refused(stages: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Objective.parse([], stages=stages)


def test_flags_that_say_it_too_are_refused() -> None:
    told: dict[str, Any] = {"cache": "c", "student": "s.json", "stages": FEATURES_FIRST}
    with pytest.raises(UsageError, match="--stages say the losses already: got kl=1"):
        TrainConfig(**told, losses=["kl=1"])
    with pytest.raises(UsageError, match="stages say the losses already"):
        Objective.parse(["kl=1"], stages=FEATURES_FIRST)
    with pytest.raises(UsageError, match="stages have no schedules beside them"):
        TrainConfig(**told, loss_schedule=["kl=linear:1:0"])


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 1000])
@pytest.mark.parametrize("shares", [(0.1, 0.2, 0.7), (0.3, 0.3, 0.4), (1 / 3, 1 / 3, 1 / 3)], ids=str)
def test_a_step_is_in_the_stage_whose_first_step_it_has_reached(
    shares: tuple[float, ...], total: int
) -> None:
    stages = [Stage(share=share, weights={"kl": 1.0}) for share in shares]
    firsts = first_steps(stages, total)
    assert firsts[0] == 0
    for step in range(total):
        assert stage_at(stages, step / total) == sum(step >= first for first in firsts[1:])
    for first, share in zip(firsts[1:], (shares[0], shares[0] + shares[1]), strict=True):
        assert 0 <= first - share * total < 1 or first == pytest.approx(share * total)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup", "cosine_with_min_lr"])
def test_a_stage_has_the_learning_rate_of_a_run_of_its_own(kind: str, tmp_path: Path) -> None:
    kwargs = {"min_lr": 1e-5} if kind == "cosine_with_min_lr" else None
    arguments = StudentArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=kwargs,
        warmup_steps=0.25,
    )
    stages, total, expected = parse_stages(["share=0.4 kl=1 learning_rate=3e-3", "ce=1"]), 20, []
    for peak, steps in ((3e-3, 8), (arguments.learning_rate, 12)):
        alone = torch.optim.SGD([torch.zeros(1)], lr=peak)
        schedule = get_scheduler(kind, alone, arguments.get_warmup_steps(steps), steps, kwargs)
        for _ in range(steps):
            expected.append(schedule.get_last_lr()[0])
            alone.step()
            schedule.step()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    schedule, found = staged_scheduler(stages, optimizer, arguments, total), []
    for _ in range(total):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected)


def test_features_with_the_head_frozen_then_everything(run: Callable[..., Path]) -> None:
    """The first stage comes to the weights of a run of its own; nothing frozen moves, decay of weights or not."""
    whole = run("staged", **TOLD, weight_decay=0.1)
    begun, first, last = (weights_of(whole / f"checkpoint-{step}") for step in (1, 5, 10))
    assert torch.equal(first["lm_head.weight"], begun["lm_head.weight"])
    assert not torch.equal(last["lm_head.weight"], first["lm_head.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first[name], begun[name])
    stages = ["share=0.5 pkd=1 freeze=lm_head.*", "kl=1 ce=0.5 learning_rate=1e-4"]
    same = {
        "learning_rate": 2e-3,
        "max_grad_norm": 0.0,
    }  # a norm's sum over fewer weights is rounded otherwise
    plain = run("plain", **{**TOLD, "stages": stages}, **same)
    alone = run("alone", losses=["pkd=1", "kl=0", "ce=0"], max_steps=5, **same)
    ours, theirs = weights_of(plain / "checkpoint-5"), weights_of(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_goes_on_inside_any_stage_to_the_same_bits(run: Callable[..., Path]) -> None:
    told = {**TOLD, "eval_strategy": "steps", "eval_steps": 4}
    whole = run("whole", **told)
    for step in (3, 5, 8):
        again = run(f"from{step}", resume_from_checkpoint=str(whole / f"checkpoint-{step}"), **told)
        for name in ("model.safetensors", "projections.safetensors"):
            assert (again / name).read_bytes() == (whole / name).read_bytes()
    other = [FEATURES_FIRST[0], "kl=1 ce=0.4"]
    with pytest.raises(UsageError, match=r"another (losses|stage 2)"):
        run("other", resume_from_checkpoint=str(whole / "checkpoint-3"), **{**told, "stages": other})
    with pytest.raises(UsageError, match=r"a run of another length has others: expected 10 steps, got 12\."):
        run("longer", resume_from_checkpoint=str(whole / "checkpoint-3"), **{**told, "max_steps": 12})
    other = ["share=0.5 pkd=1 freeze=lm_head.* learning_rate=1e-3", FEATURES_FIRST[1]]
    with pytest.raises(UsageError, match="another stage 1"):
        run("other", resume_from_checkpoint=str(whole / "checkpoint-3"), **{**told, "stages": other})


@pytest.mark.parametrize(
    ("stages", "changes", "named"),
    [
        (
            ["share=0.5 kl=1 freeze=lm_heat.weight", "kl=1"],
            {},
            r"a name as lm_head.weight.*got lm_heat.weight",
        ),
        (["share=0.5 kl=1 freeze=*", "kl=1"], {}, "stage 1 of --stages freezes all that is trained"),
        (["share=0.5 kl=1", "share=0.499 ce=1", "ce=1"], {"max_steps": 4}, "stage 3 of --stages has no step"),
        (
            FEATURES_FIRST,
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
            "goes by the step: got --lr_scheduler_type reduce_lr_on_plateau",
        ),
    ],
)
def test_what_cannot_be_is_said_before_any_step(
    run: Callable[..., Path], tmp_path: Path, stages: list[str], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises((UsageError, StudentError), match=named):
        run(stages=stages, losses=None, **changes)
    assert not list(tmp_path.glob("out/checkpoint-*"))


def test_features_alone_may_be_trained_beside_a_frozen_student(run: Callable[..., Path]) -> None:
    folder = run(**{**TOLD, "stages": ["share=0.5 feature=1 freeze=*", "kl=1"]})
    one, five = (weights_of(folder / f"checkpoint-{step}") for step in (1, 5))
    assert all(torch.equal(one[name], five[name]) for name in one)
    maps = [load_file(folder / f"checkpoint-{step}" / "projections.safetensors") for step in (1, 5)]
    assert all(not torch.equal(maps[0][name], maps[1][name]) for name in maps[0])


def test_in_shards_nothing_is_frozen(tmp_path: Path) -> None:
    arguments = StudentArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments.fsdp = True  # type: ignore[assignment]  # several ranks are not here
    stages = TrainConfig(cache="c", student="s.json", stages=FEATURES_FIRST)
    with pytest.raises(UsageError, match="--fsdp does not go with stages that freeze"):
        check_settings(stages, arguments)


def test_a_shared_parameter_is_frozen_by_either_name() -> None:
    student = LlamaForCausalLM(llama_config(tie_word_embeddings=True))
    for pattern in ("lm_head.weight", "model.embed_tokens.*"):
        (name,) = frozen_names(Stage(share=1.0, weights={"kl": 1.0}, freeze=(pattern,)), student)
        assert student.get_parameter(name) is student.model.embed_tokens.weight


def test_a_block_of_a_file_says_what_the_flag_says(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "cache: c\nstudent: s.json\noutput_dir: o\nuse_cpu: true\nstages:\n"
        "  - {share: 0.5, losses: {pkd: 1, jsd: {weight: 2, beta: 0.3}}, freeze: [lm_head.*, 'model.norm.*']}\n"
        "  - {losses: kl=1 ce=0.5, learning_rate: 1.0e-4}\n"
    )
    told = ["share=0.5 pkd=1 jsd=2,beta=0.3 freeze=lm_head.*,model.norm.*", "kl=1 ce=0.5 learning_rate=1e-4"]
    flags = ["--cache", "c", "--student", "s.json", "--output_dir", "o", "--use_cpu", "--stages", *told]
    files, words = parsed([str(path)]), parsed(flags)
    assert files.objective == words.objective
    path.write_text(
        "cache: c\nstudent: s.json\noutput_dir: o\nstages: [{share: {a: b}, losses: {kl: 1}}, {losses: {kl: 1}}]\n"
    )
    with pytest.raises(UsageError, match="share must be a number, but got 'a=b'"):
        parsed([str(path)])
