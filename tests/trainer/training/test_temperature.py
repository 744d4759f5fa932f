"""A temperature that changes by step: where a cache serves it, each batch and its loss are of their own step's."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.policies import KeepAll, KeepPolicy, Threshold, TopK, TopP
from tests.trainer.caches import causal_columns, causal_spec, finished_rows, write_cache
from tests.trainer.outputs import logs
from tests.trainer.tiny import VOCAB, llama_config, random_examples
from trainer.batches.collate import Collation
from trainer.losses.objective import Objective
from trainer.losses.schedules import Schedule
from trainer.losses.targets import SparseTargets
from trainer.stream.order import Order
from trainer.stream.replay import Address, Share, read_batches
from trainer.stream.side import Side
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.distiller import Distiller


@pytest.fixture(scope="module")
def every_score(teacher_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """40 texts with all of their scores."""
    spec = causal_spec(KeepAll(), temperatures=(1.0,))
    teacher = LlamaForCausalLM.from_pretrained(teacher_dir).eval()
    rows = finished_rows(spec, causal_columns(teacher, random_examples(40), spec))
    return write_cache(tmp_path_factory.mktemp("every") / "cache", rows, group_rows=8)


@pytest.mark.parametrize(
    ("told", "temperature", "losses", "named"),
    [
        ("bent:1:0", 2.0, ["kl"], "bent:1:0"),
        ("linear:2:0", 2.0, ["kl"], "factors are at most 1, but got linear:2:0"),
        ("linear:1:0", 1.0, ["kl"], "between 1 and another temperature, but got 1"),
        ("linear:1:1", 2.0, ["kl"], "from one to another, but got linear:1:1"),
        ("linear:1:0", 2.0, ["ce"], "no effect without a loss that softens"),
    ],
)
def test_nonsense_of_a_temperature_is_refused(
    told: str, temperature: float, losses: list[str], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        Objective.parse(losses, temperature, temperature_schedule=told)


@pytest.mark.parametrize("temperature", [4.0, 0.5])
@pytest.mark.parametrize("told", ["linear:1:0", "linear:0:1", "cosine:1:0", "hold:0.25:0.75"])
def test_a_temperature_goes_between_1_and_its_own(told: str, temperature: float) -> None:
    warmth = Objective.parse(["kl"], temperature, temperature_schedule=told).warmth(8)
    assert warmth is not None
    for step in range(9):
        factor = Schedule.parse(told).factor(step / 8)
        assert warmth.at(step) == pytest.approx(factor * temperature + (1 - factor))
    assert warmth.at(80) == warmth.at(8)


POLICIES = [KeepAll(), TopK(k=8), TopP(p=0.9, k=8), Threshold(tau=1 / 8)]


@pytest.mark.parametrize("keep", POLICIES, ids=str)
@pytest.mark.parametrize("losses", [["kl"], ["jsd"], ["nkd"], ["kl_kept"], ["kl_kept", "kl"]], ids=str)
def test_a_temperature_changes_where_every_score_is_kept(losses: list[str], keep: KeepPolicy) -> None:
    """Declared temperatures are single ones. What divides by the entries' own sum needs no other mass."""
    declared = causal_spec(keep, temperatures=(1.0, 2.0), own_logits=isinstance(keep, Threshold))
    objective = Objective.parse(losses, 2.0, temperature_schedule="linear:1:0")
    exact = keep == KeepAll()
    if exact or (losses == ["kl_kept"] and not isinstance(keep, Threshold)):
        objective.check(declared)
        return
    advised = "Precompute a cache with --keep all, or leave --temperature_schedule out|needs no division"
    with pytest.raises(StudentError, match=advised):
        objective.check(declared)


@pytest.mark.parametrize("first", [0, 3, 5])
def test_each_batch_is_of_its_steps_temperature(every_score: Cache, first: int) -> None:
    """Over two epochs, from any step on: what is read ahead is of its own step, and so are the loss and its square."""
    side = Side(cache=every_score, eval_fraction=0.0, is_eval=False)
    order = Order(counts=(side.counts(),), batch_size=8, row_groups=2, seed=5, lanes=2)
    assert order.num_steps == 5
    objective = Objective.parse(["kl"], 4.0, temperature_schedule="linear:1:0")
    share, warmth = Share(batch_size=4), objective.warmth(9)
    collation = Collation(student_vocab=VOCAB, pad_id=0, temperature=4.0, warmth=warmth)
    torch.manual_seed(0)
    student, task = LlamaForCausalLM(llama_config()), STUDENT_TASKS["causal-lm"]
    model = Distiller(student, objective, score="softmax", task=task)
    epoch, step = divmod(first, order.num_steps)
    stream = read_batches([side], order, collation, share, Address(epoch, 2 * step))
    for number, (_, batch) in enumerate(itertools.islice(stream, 2 * (9 - first))):
        expected = 4 - 3 * (first + number // 2) / 9
        assert batch.temperature == pytest.approx(expected)
        logits, targets = student(**batch.model_inputs).logits[batch.row, batch.token], batch.targets
        assert isinstance(targets, SparseTargets)
        teacher = targets.logprobs.new_zeros(logits.shape)
        teacher[targets.position, targets.ids] = targets.logprobs
        p, log_q = (teacher / expected).softmax(-1), (logits / expected).log_softmax(-1)
        dense = F.kl_div(log_q, p, reduction="batchmean") * expected**2
        torch.testing.assert_close(model(batch)["kl"], dense, rtol=1e-4, atol=1e-5)
    stream.close()  # type: ignore[attr-defined]


def test_what_a_temperature_takes_is_given_back(every_score: Cache) -> None:
    """Each step's is another, and memory that were kept for each would grow without end."""
    side = Side(cache=every_score, eval_fraction=0.0, is_eval=False)
    order = Order(counts=(side.counts(),), batch_size=8, row_groups=2, lanes=2)
    objective = Objective.parse(["kl"], 4.0, temperature_schedule="linear:1:0")
    collation = Collation(student_vocab=VOCAB, pad_id=0, temperature=4.0, warmth=objective.warmth(99))
    student, task = LlamaForCausalLM(llama_config()), STUDENT_TASKS["causal-lm"]
    model, alive = Distiller(student, objective, score="softmax", task=task), []
    stream = read_batches([side], order, collation, Share(batch_size=8), Address(0, 0))
    batches = [batch for _, batch in itertools.islice(stream, 9)]
    stream.close()  # type: ignore[attr-defined]
    for batch in batches:
        model(batch)["loss"].backward()
        gc.collect()
        alive.append(sum(type(one) is torch.Tensor for one in gc.get_objects()))
    assert len({batch.temperature for batch in batches}) == 9
    assert alive == alive[:1] * 9


def test_a_run_that_goes_on_has_its_temperatures(run: Callable[..., Path], every_score: Cache) -> None:
    """And evaluates at the whole temperature, as a run without a schedule does."""
    told = {
        "cache": every_score,
        "losses": ["kl=1"],
        "temperature": 4.0,
        "temperature_schedule": "cosine:1:0",
        "max_steps": 10,
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
    }
    whole = run("whole", **told)
    for step in (3, 6):
        again = run(f"again{step}", resume_from_checkpoint=str(whole / f"checkpoint-{step}"), **told)
        assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    plain = run("plain", **{**told, "temperature_schedule": None})
    assert (plain / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
    (ours,) = [log for log in logs(whole) if "eval_kl" in log][-1:]
    measured = run(
        "measured",
        **{
            **told,
            "temperature_schedule": None,
            "max_steps": 1,
            "learning_rate": 1e-30,
            "student": str(whole),
            "eval_steps": 1,
        },
    )
    (theirs,) = [log for log in logs(measured) if "eval_kl" in log][-1:]
    assert ours["eval_kl"] == pytest.approx(theirs["eval_kl"], rel=1e-4), "of the whole temperature"
    changed = {
        **told,
        "temperature_schedule": "linear:1:0",
        "resume_from_checkpoint": str(whole / "checkpoint-3"),
    }
    with pytest.raises(
        UsageError, match=r"another temperature schedule: .*expected cosine:1:0, got linear:1:0"
    ):
        run("other", **changed)
