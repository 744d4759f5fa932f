"""Students without a backbone: trained by the same command, opened by plain classes, against numpy's own forward."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score

import teachonce
from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.rows.rows import Rows
from tests.trainer.tiny import make_bert
from trainer import EvaluateConfig, compare, evaluate
from trainer.evaluation.held_out import HeldOut
from trainer.models.feature_classifier import FeatureClassifier
from trainer.stream.side import Side
from trainer.students.lora import Lora
from trainer.students.on_features import parse_on_features
from trainer.students.students import open_student
from trainer.training.config import TrainConfig

FRACTION = 0.2


@pytest.fixture
def trained(
    run: Callable[..., Path], class_cache_of: Callable[..., Cache]
) -> Callable[..., tuple[Path, Cache]]:
    def start(student: str, score: str = "softmax", **changes: Any) -> tuple[Path, Cache]:
        cache = changes.pop("cache", None) or class_cache_of(score)
        losses = {"softmax": ["kl=1", "ce=0.5"], "sigmoid": ["kl=1"], "identity": ["mse_logits=1"]}[score]
        usual = {"losses": losses, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
        return run(cache=cache, student=student, **(usual | changes)), cache

    return start


def evaluated(cache: Cache, folder: Path, **changes: Any) -> dict[str, Any]:
    usual = {"eval_fraction": FRACTION, "speed_seconds": 0.0, "device": "cpu", "student": str(folder)}
    return evaluate(EvaluateConfig(cache=cache.storage.root, **(usual | changes))).metrics


def held_out(cache: Cache) -> Rows:
    return Rows.concatenate(list(HeldOut(cache=cache, eval_fraction=FRACTION, batch_size=8).rows()))


def by_hand(folder: Path, features: np.ndarray) -> np.ndarray:
    """The format as it is documented, read with safetensors and numpy alone."""
    weights, states = load_file(folder / "model.safetensors"), features.astype(np.float64)
    number = len(weights) // 2
    for place in range(number):
        states = states @ weights[f"layers.{place}.weight"].T + weights[f"layers.{place}.bias"]
        if place < number - 1:
            states = torch.nn.functional.gelu(torch.from_numpy(states)).numpy()
    return states


@pytest.mark.parametrize(("student", "hidden"), [("linear", []), ("mlp:16", [16]), ("mlp:16,8", [16, 8])])
def test_what_is_saved_is_what_is_documented(
    trained: Callable[..., tuple[Path, Cache]], student: str, hidden: list[int]
) -> None:
    folder, cache = trained(student)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "teachonce-features"
    assert (config["features"], config["feature_widths"]) == (["mean:2"], [32])
    assert config["hidden_sizes"] == hidden
    rows = held_out(cache)
    features = rows.feature(cache.spec.features[0])
    model = FeatureClassifier.from_pretrained(folder)
    with torch.no_grad():
        ours = model(features=torch.from_numpy(features.copy())).logits.numpy()
    assert ours == pytest.approx(by_hand(folder, features), abs=1e-5)
    found, labels = evaluated(cache, folder), rows.ragged("labels")
    best = by_hand(folder, features).argmax(1)[labels.validity]
    assert found["accuracy"] == pytest.approx(accuracy_score(labels.values, best))


def test_a_step_is_that_of_multinomial_regression(
    trained: Callable[..., tuple[Path, Cache]], class_cache_of: Callable[..., Cache]
) -> None:
    """One step of plain gradient descent on all rows: `(softmax - label) x` by hand."""
    cache = class_cache_of()
    side = Side(cache=cache, eval_fraction=FRACTION, is_eval=False)
    rows = Rows.concatenate([side.read(group) for group in range(len(cache.row_groups))])
    usual: dict[str, Any] = {
        "cache": cache,
        "losses": ["ce=1"],
        "max_steps": 1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
    }
    usual |= {"per_device_train_batch_size": len(rows), "weight_decay": 0.0, "save_strategy": "no"}
    begun, _ = trained("linear", name="begun", learning_rate=1e-12, **usual)
    stepped, _ = trained("linear", name="stepped", learning_rate=0.5, **usual)
    labels = rows.ragged("labels")
    features, truth = rows.feature(cache.spec.features[0])[labels.validity], labels.values
    logits = by_hand(begun, features)
    wrong = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[truth]
    before, after = (load_file(folder / "model.safetensors") for folder in (begun, stepped))
    moved = before["layers.0.weight"] - 0.5 * wrong.T @ features / len(truth)
    assert after["layers.0.weight"] == pytest.approx(moved, abs=1e-6)
    assert not np.allclose(after["layers.0.weight"], before["layers.0.weight"], atol=1e-3)
    assert after["layers.0.bias"] == pytest.approx(before["layers.0.bias"] - 0.5 * wrong.mean(0), abs=1e-6)


@pytest.mark.parametrize("score", ["sigmoid", "identity"])
def test_other_scores(trained: Callable[..., tuple[Path, Cache]], score: str) -> None:
    folder, cache = trained("linear", score)
    assert evaluated(cache, folder)["positions"] == len(held_out(cache))


def test_a_resumed_run_comes_to_the_same_weights(trained: Callable[..., tuple[Path, Cache]]) -> None:
    whole, cache = trained("mlp:16", name="whole")
    part, _ = trained("mlp:16", name="part", cache=cache)
    again, _ = trained(
        "mlp:16", name="again", cache=cache, resume_from_checkpoint=str(part / "checkpoint-12")
    )
    weights = [load_file(folder / "model.safetensors") for folder in (whole, again)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_it_begins_with_a_trained_one_and_may_lie_in_a_folder_of_its_name(
    trained: Callable[..., tuple[Path, Cache]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, cache = trained("linear", name="linear")
    further, _ = trained(str(folder), name="further", cache=cache, max_steps=1, learning_rate=1e-9)
    before, after = (load_file(one / "model.safetensors") for one in (folder, further))
    assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_it_stands_beside_others_in_a_comparison(
    trained: Callable[..., tuple[Path, Cache]], tmp_path: Path
) -> None:
    folder, cache = trained("linear")
    bert = make_bert(tmp_path / "bert", seed=5)
    config = {"speed_seconds": 0.0, "device": "cpu", "eval_fraction": FRACTION, "ensemble": "mean"}
    found = compare(EvaluateConfig(cache=cache.storage.root, students=[bert, str(folder)], **config))
    assert found.ensemble is not None
    assert found.students[1].metrics == evaluated(cache, folder)
    assert found.students[0].metrics == evaluated(cache, Path(bert))


def test_of_several_students_from_one_decode(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache = class_cache_of()
    usual = {"cache": cache.storage.root, "losses": "kl=1", "max_steps": 3, "use_cpu": True}
    students = [{"student": name, "output_dir": str(tmp_path / name[:3])} for name in ("linear", "mlp:8")]
    (tmp_path / "students.json").write_text(json.dumps({**usual, "students": students}))
    assert teachonce.main(["train", "--students", str(tmp_path / "students.json")]) == 0
    assert FeatureClassifier.from_pretrained(tmp_path / "mlp").config.hidden_sizes == [8]


def test_a_cache_without_features_is_refused_with_the_remedy(
    class_cache_of: Callable[..., Cache], causal_cache: Cache, run: Callable[..., Path]
) -> None:
    with pytest.raises(StudentError, match=r"holds none.*Precompute a cache with --features"):
        run(cache=class_cache_of(features=()), student="linear")
    with pytest.raises(StudentError, match=r"one answer a text.*got causal-lm"):
        run(cache=causal_cache, student="linear")


def test_what_it_has_not_is_refused(
    trained: Callable[..., tuple[Path, Cache]], class_cache_of: Callable[..., Cache]
) -> None:
    with pytest.raises(StudentError, match=r"neither states nor embeddings: got feature\."):
        trained("linear", losses=["kl=1", "feature=1"])
    with pytest.raises(StudentError, match="--adversarial"):
        trained("linear", adversarial="fgm=1.0", name="moved")
    folder, _ = trained("linear", name="right")
    with pytest.raises(StudentError, match=r"other features.*expected mean:2 of width 32, got last:1"):
        evaluated(class_cache_of(features=(1,)), folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="the student cannot be opened"):
        evaluated(class_cache_of(), folder)


@pytest.mark.parametrize("name", ["mlp:", "mlp:0", "mlp:a", "mlp:8,", "mlp:99999999", "mlp:-3"])
def test_widths_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="widths of its hidden layers"):
        TrainConfig(cache="c", student=name)


def test_names() -> None:
    assert [parse_on_features(name) for name in ("linear", "mlp:256", "mlp:4,2", "./linear", "bert")] == [
        (),
        (256,),
        (4, 2),
        None,
        None,
    ]
    with pytest.raises(UsageError, match="--lora needs a --student that can be opened again"):
        TrainConfig(cache="c", student="linear", lora=["r=2"])


def test_adapters_beside_no_backbone_are_refused(trained: Callable[..., tuple[Path, Cache]]) -> None:
    folder, cache = trained("linear")
    with pytest.raises(UsageError, match="--lora has no effect on a student without a backbone"):
        open_student(str(folder), cache, lora=Lora.parse(["r=4"]))
