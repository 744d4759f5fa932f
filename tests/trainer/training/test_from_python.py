"""What Python alone can tell a training, as transformers' Trainer is told: a model, callbacks, metrics, losses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    LlamaForCausalLM,
    TrainerCallback,
)

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.identity import held_out
from tests.trainer.outputs import logs, same, weights
from tests.trainer.tiny import STUDENT, bert_config, llama_config, make_llama
from trainer import Loss, StudentArguments, TrainConfig, train
from trainer.losses.serving import FEATURES, LABELS, LINEAR
from trainer.losses.targets import segment_sum

USUAL = {
    "max_steps": 6,
    "per_device_train_batch_size": 8,
    "logging_steps": 2.0,
    "save_steps": 2.0,
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "learning_rate": 3e-3,
}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2.0}


@pytest.fixture
def go(tmp_path: Path, causal_cache: Cache) -> Callable[..., Path]:
    """Trains as a caller would; returns the student's folder."""
    path = tmp_path / "student.json"
    path.write_text(json.dumps(STUDENT))

    def start(
        name: str, student: Any = str(path), losses: Any = None, own: Any = None, **arguments: Any
    ) -> Path:
        config = TrainConfig(
            cache=causal_cache.storage.root, student=student, losses=losses, eval_fraction=0.2
        )
        own = own or {}
        trained = train(config, StudentArguments(output_dir=str(tmp_path / name), **USUAL | arguments), **own)
        return Path(trained.output_dir)

    return start


def a_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(llama_config(**changes))


def test_a_model_is_trained_as_the_folder_would_be_that_it_is_saved_as(go, tmp_path: Path) -> None:
    model = a_llama()
    folder = make_llama(tmp_path / "begun")
    model.save_pretrained(folder)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    named, given = go("named", folder), go("given", model)
    assert same(named, given)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in weights(given).items())
    assert not all(torch.equal(weight, before[name]) for name, weight in weights(given).items())
    assert "a LlamaForCausalLM in memory" in (given / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(given).num_parameters() == model.num_parameters()


def test_a_model_that_does_not_fit_the_cache_is_refused_as_its_folder_is(go) -> None:
    with pytest.raises(StudentError, match="none that AutoModelForCausalLM opens"):
        go("a", BertForSequenceClassification(bert_config()))
    with pytest.raises(StudentError, match=r"held in float32.*bfloat16.*model\.float\(\)"):
        go("b", a_llama().bfloat16())
    with pytest.raises(StudentError, match="vocabulary is too small"):
        go("c", a_llama(vocab_size=100))
    with pytest.raises(StudentError, match="too short"):
        go("d", a_llama(max_position_embeddings=8))
    with pytest.raises(UsageError, match=r"neither a name nor a model.*got Linear"):
        go("e", torch.nn.Linear(2, 2))


class Watching(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[tuple[str, type, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.seen.append(("step", type(model), state.global_step))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any
    ):
        assert metrics["eval_half"] == 0.5
        self.seen.append(("evaluated", type(model), state.global_step))


def test_callbacks_see_the_student_and_what_is_computed(go) -> None:
    watching = Watching()
    own = {"callbacks": [watching], "compute_metrics": lambda told: {"half": np.float32(0.5)}}
    go("out", own=own, **EVALUATED)
    expected = [("step", step) for step in range(1, 7)] + [("evaluated", step) for step in (2, 4, 6)]
    assert sorted((what, step) for what, _, step in watching.seen) == sorted(expected)
    assert {kind for _, kind, _ in watching.seen} == {LlamaForCausalLM}


def test_metrics_are_those_of_plain_transformers(go, causal_cache: Cache) -> None:
    """Every held-out text by itself, with the finished student; labels and likeliest ids of the teacher as cached."""
    seen: dict[str, Any] = {}

    def compute(told: Any) -> dict[str, float]:
        predictions, labels = told
        seen.update(predictions=predictions, labels=labels, teacher=told.teacher_ids)
        return {"right": float((predictions.argmax(-1) == labels).mean())}

    folder = go("out", own={"compute_metrics": compute}, **EVALUATED)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected: dict[tuple[int, ...], Any] = {}
    for rows in causal_cache.read_all():
        held = np.flatnonzero(held_out(rows.array("document_hash"), 0.2))
        for index in held.tolist():
            row = rows.ragged("input_ids").row(index)
            ids = torch.tensor(row.tolist())[None]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            expected |= {tuple(row[: at + 2].tolist()): logits[at] for at in range(len(logits))}
    wanted = torch.stack([*expected.values()])
    gold = torch.tensor([key[-1] for key in expected])
    right = float((wanted.argmax(-1) == gold).double().mean())
    (last,) = [log for log in logs(folder) if log["step"] == 6 and "eval_right" in log]
    assert last["eval_right"] == pytest.approx(right, abs=1e-9)
    found = seen["predictions"].astype(np.float64).sum(-1)
    np.testing.assert_allclose(np.sort(found), np.sort(wanted.double().sum(-1).numpy()), atol=1e-3)
    assert sorted(seen["labels"].tolist()) == sorted(gold.tolist())
    assert last["eval_agreement"] == pytest.approx(
        float((seen["predictions"].argmax(-1) == seen["teacher"]).mean()), abs=1e-6
    )
    assert "right" in (folder / "README.md").read_text()


def test_less_may_be_kept_of_each_batch(go) -> None:
    def compute(told: Any) -> dict[str, float]:
        assert told.predictions.shape == told.label_ids.shape
        return {"eval_right": float((told.predictions == told.label_ids).mean())}

    whole = go("whole", own={"compute_metrics": lambda told: {"right": _right(told)}}, **EVALUATED)
    own = {
        "compute_metrics": compute,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
    }
    less = go("less", own=own, **EVALUATED)
    assert [log.get("eval_right") for log in logs(whole)] == [log.get("eval_right") for log in logs(less)]


def _right(told: Any) -> float:
    return float((told.predictions.argmax(-1) == told.label_ids).mean())


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "worse", "greater_is_better": True}


def test_early_stopping_stops_is_finished_and_remembers_its_patience(go, tmp_path: Path) -> None:
    """Metrics that fall from the first evaluation on: patience 2 stops at step 6 of 20, in one go or resumed at 4."""

    def told(steps: list[int]) -> dict[str, Any]:
        count = iter(steps)
        return {
            "compute_metrics": lambda _: {"worse": 1 / next(count)},
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=2)],
        }

    settings = {**EVALUATED, **BEST, "max_steps": 20}
    whole = go("out", own=told([1, 2, 3]), **settings)
    assert logs(whole)[-1]["step"] == 6
    again = go("out", own=told([]), resume_from_checkpoint="auto", **settings)
    assert again == whole  # nothing was computed: it is finished
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(whole / name, tmp_path / "out2" / name)
    resumed = go("out2", own=told([3]), resume_from_checkpoint="auto", **settings)
    assert logs(resumed)[-1]["step"] == 6
    assert same(whole, resumed)


def squares(name: str = "gap", **changes: Any) -> Loss:
    """Sum over a position's kept ids of (p - q)^2, as a caller would write it."""

    def gap(scores: Any, settings: Any) -> Any:
        difference = scores.weights - scores.plain.kept.exp()
        return segment_sum(difference.square(), scores.targets.position, len(scores.logits))

    values = {"formula": "sum (p - q)^2", "paper": "", "kind": LINEAR, "softmax": gap}
    return Loss(name=name, **values | changes)


def test_a_loss_of_ones_own_is_trained_by_and_logged(go, causal_cache: Cache) -> None:
    """The same formula as a named loss gives the same weights; the log and the record have its name."""
    mine = squares(
        "mine", formula="-log q_gold", kind=LABELS, softmax=lambda s, _: -s.plain.gold, per="labelled"
    )
    named = go("named", losses=["kl=1", "ce=0.5"], **EVALUATED)
    own = go("own", losses=["kl=1"], own={"losses": [(mine, 0.5)]}, **EVALUATED)
    assert same(named, own)
    assert [log["ce"] for log in logs(named) if "ce" in log] == [
        log["mine"] for log in logs(own) if "mine" in log
    ]
    assert [log["eval_ce"] for log in logs(named) if "eval_ce" in log] == [
        log["eval_mine"] for log in logs(own) if "eval_mine" in log
    ]
    assert json.loads((own / "teachonce.json").read_text())["losses"] == {"kl": 1.0, "mine": 0.5}
    assert "the loss mine" in (own / "README.md").read_text()


def test_ones_own_losses_may_be_all(go) -> None:
    found = logs(go("out", losses=[], own={"losses": [(squares(), 1.0)]}, max_steps=40, learning_rate=1e-2))
    values = [log["gap"] for log in found if "gap" in log]
    assert values[-1] < 0.9 * values[0]
    assert [log["loss"] for log in found if "gap" in log] == pytest.approx(values, rel=1e-4)
    with pytest.raises(UsageError, match="at least one loss"):
        go("none", losses=[])


def test_a_pooled_loss_of_ones_own(go) -> None:
    pooled = Loss(
        name="far",
        formula="mean |a - b|",
        paper="",
        kind=FEATURES,
        pooled=lambda told, _: (told.projected[0] - told.theirs[0]).abs().mean(-1),
        per="examples",
    )
    found = logs(go("out", own={"losses": [(pooled, 0.1)]}))
    assert all(log["far"] > 0 for log in found if "kl" in log)


def test_a_run_with_another_formula_is_another_run(go) -> None:
    go("out", own={"losses": [(squares(), 1.0)]})
    with pytest.raises(UsageError, match="own loss gap"):
        go(
            "out",
            own={"losses": [(squares(formula="other"), 1.0)]},
            resume_from_checkpoint="auto",
            max_steps=8,
        )


REFUSED = [
    ({"callbacks": [print]}, {}, r"no TrainerCallback.*got builtin_function_or_method"),
    ({"compute_metrics": lambda told: {}}, {}, r"no effect without evaluations"),
    ({"preprocess_logits_for_metrics": lambda a, b: a}, {}, r"no effect without compute_metrics"),
    ({"processing_class": object()}, {}, r"processing_class is of a student that is a model"),
    ({"losses": ["kl=1"]}, {}, r"stands with its weight.*got str"),
    ({"losses": [(squares(), 1.0, "falls:1:0")]}, {}, r"none of linear:A:B"),
    ({"losses": [(squares("kl"), 1.0)]}, {}, r"name of its own.*got kl"),
    ({"losses": [(squares("loss"), 1.0)]}, {}, r"name of its own.*got loss"),
    ({"losses": [(squares(), 1.0), (squares(), 1.0)]}, {}, r"two losses have one name"),
    ({"losses": [(squares(), -1.0)]}, {}, r"weight of gap"),
    ({"compute_metrics": lambda told: [1]}, EVALUATED, r"numbers by name.*got list"),
    ({"compute_metrics": lambda told: {"kl": 1}}, EVALUATED, r"measured already.*got kl"),
    ({"compute_metrics": lambda told: {"x": "y"}}, EVALUATED, r"no number.*x: 'y'"),
    ({"compute_metrics": lambda told: {"x": 1}}, EVALUATED | BEST, r"none that an evaluation gives.*eval_x"),
    (
        {"compute_metrics": lambda told: {"worse": 1}},
        EVALUATED | BEST | {"greater_is_better": None},
        r"its caller knows",
    ),
]


@pytest.mark.parametrize(("own", "settings", "expected"), REFUSED)
def test_refused(go, own: dict[str, Any], settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        go("out", own=own, **settings)


def test_too_much_to_hold_is_refused_with_the_remedy(go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.training.own_metrics.MOST_BYTES", 1000)
    with pytest.raises(UsageError, match=r"more than is held in memory.*preprocess_logits_for_metrics"):
        go("out", own={"compute_metrics": lambda told: {}}, **EVALUATED)


def test_a_model_takes_no_adapters(causal_cache: Cache) -> None:
    with pytest.raises(UsageError, match="opened again"):
        TrainConfig(cache=causal_cache.storage.root, student=a_llama(), lora=["r=4"])
