"""What is measured is what it is called: against plain transformers, and scikit-learn on whole logits."""

import io
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import teachonce
from schemas.cache import Cache
from schemas.errors import UsageError
from schemas.rows.rows import Rows
from tests.trainer.tiny import make_bert, make_llama
from trainer import EvaluateConfig, evaluate
from trainer.checkpoints.records import Manifest, Record
from trainer.evaluation.held_out import HeldOut
from trainer.evaluation.tables import show
from trainer.stream.side import Side

FRACTION = 0.3


def held_out(cache: Cache) -> Rows:
    found = HeldOut(cache=cache, eval_fraction=FRACTION, batch_size=8)
    return Rows.concatenate(list(found.rows()))


def measured(cache: Cache, student: str, **changes: Any) -> dict[str, Any]:
    config = {"eval_fraction": FRACTION, "batch_size": 8, "speed_seconds": 0.0, "device": "cpu"} | changes
    return evaluate(EvaluateConfig(cache=cache.storage.root, student=student, **config)).metrics


def test_a_causal_student(causal_cache: Cache, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "student", seed=5)
    found = measured(causal_cache, folder)
    model, rows = AutoModelForCausalLM.from_pretrained(folder).eval(), held_out(causal_cache)
    nats, agree, positions, top = 0.0, 0, 0, rows.kept_ids.reshape(-1, 32)[:, 0]
    for place in range(len(rows)):
        tokens = torch.from_numpy(rows.input_ids.row(place).copy()).long()[None]
        with torch.no_grad():
            output = model(input_ids=tokens, labels=tokens)
        count = tokens.shape[1] - 1
        nats += output.loss.item() * count
        best = output.logits[0, :-1].argmax(-1).numpy()
        agree += (best == top[positions : positions + count]).sum()
        positions += count
    assert found["positions"] == positions
    assert found["cross_entropy_nats"] == pytest.approx(nats / positions, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / positions), rel=1e-4)
    assert found["top1_agreement"] == pytest.approx(agree / positions)
    assert found["kl_nats"] > 0.5
    teacher = -rows.gold_logprob().values.mean()
    assert found["teacher_cross_entropy_nats"] == pytest.approx(teacher, rel=1e-5)


def test_the_teacher_as_its_own_student_differs_by_rounding_alone(
    causal_cache: Cache, teacher_dir: str
) -> None:
    found = measured(causal_cache, teacher_dir)
    assert abs(found["kl_nats"]) < 1e-3
    assert found["top1_agreement"] == 1
    half_a_step = causal_cache.spec.scalar_step_nats / 2
    assert found["cross_entropy_nats"] == pytest.approx(found["teacher_cross_entropy_nats"], abs=half_a_step)


def test_a_classifier(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache = class_cache_of()
    folder = make_bert(tmp_path / "student", seed=4)
    found = measured(cache, folder)
    rows = held_out(cache)
    scores = _scores(folder, rows)
    labels = rows.ragged("labels")
    truth, known = labels.values, labels.validity
    best = scores.argmax(1)
    assert found["positions"] == len(rows)
    assert found["labelled"] == known.sum()
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, best[known]))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, best[known], average="macro"))
    probabilities = torch.from_numpy(scores[known]).softmax(-1).numpy()
    assert found["roc_auc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"))
    assert np.sum(found["confusion_matrix"]) == known.sum()
    assert found["agreement"] == pytest.approx((best == rows.kept_ids.reshape(-1, 3)[:, 0]).mean())


def test_a_binary_classifier_without_labels(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "student", num_labels=2)
    labelled = measured(class_cache_of(num_labels=2), folder)
    assert 0 <= labelled["roc_auc"] <= 1
    found = measured(class_cache_of(num_labels=2, labelled=False), folder)
    assert found["labelled"] == 0
    assert "accuracy" not in found
    assert found["kl_nats"] >= 0


def test_a_missing_class_leaves_the_auc_out(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache = class_cache_of(num_labels=30)
    found = measured(cache, make_bert(tmp_path / "student", num_labels=30))
    assert found["roc_auc"] is None


def test_a_multi_label_student(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache = class_cache_of("sigmoid")
    found = measured(cache, make_bert(tmp_path / "student", seed=4))
    assert np.shape(found["confusion_matrix"]) == (3, 2, 2)
    assert 0 <= found["agreement"] <= 1
    assert found["kl_nats"] > 0
    bare = measured(class_cache_of("sigmoid", labelled=False), make_bert(tmp_path / "other", seed=4))
    assert "accuracy" not in bare


def test_a_regression_student(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache = class_cache_of("identity", num_labels=1)
    folder = make_bert(tmp_path / "student", seed=4, num_labels=1)
    found, rows = measured(cache, folder), held_out(cache)
    scores = _scores(folder, rows)
    teacher = rows.ragged("logits").values.reshape(-1, 1)
    assert found["mse_with_teacher"] == pytest.approx(((scores - teacher) ** 2).mean(), rel=1e-4)
    assert found["mse"] > 0
    bare = measured(class_cache_of("identity", num_labels=1, labelled=False), folder)
    assert "mse" not in bare


def _scores(folder: str, rows: Rows) -> np.ndarray:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        each = [
            model(input_ids=torch.from_numpy(rows.input_ids.row(i).copy()).long()[None]).logits
            for i in range(len(rows))
        ]
    return torch.cat(each).numpy()


def test_sizes_and_speeds_of_student_and_teacher(
    causal_cache: Cache, teacher_dir: str, tmp_path: Path
) -> None:
    student = make_llama(tmp_path / "student", num_hidden_layers=1, tie_word_embeddings=True)
    found = evaluate(
        EvaluateConfig(
            cache=causal_cache.storage.root,
            student=student,
            teacher=teacher_dir,
            eval_fraction=FRACTION,
            speed_seconds=0.05,
            device="cpu",
        )
    )
    ours, theirs = found.models
    assert (ours.name, theirs.name) == ("student", "teacher")
    assert ours.parameters == AutoModelForCausalLM.from_pretrained(student).num_parameters()
    assert ours.megabytes == ours.parameters * 4 / 1e6
    assert ours.parameters < theirs.parameters
    assert ours.tokens_per_second
    assert theirs.tokens_per_second
    assert "cpu" in found.device
    json.dumps(found.to_json())
    text = io.StringIO()
    show(found, Console(file=text, width=120))
    for word in ("perplexity", "kl_nats", "tokens/s", "teacher", "batches of 16", f"{ours.parameters:,}"):
        assert word in text.getvalue()


def test_a_table_of_a_classifier(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    found = evaluate(
        EvaluateConfig(
            cache=class_cache_of().storage.root,
            student=make_bert(tmp_path / "student"),
            eval_fraction=FRACTION,
            speed_seconds=0.0,
            device="cpu",
        )
    )
    text = io.StringIO()
    show(found, Console(file=text, width=120))
    assert "confusion matrix" in text.getvalue()
    assert "macro_f1" in text.getvalue()


def record(fraction: float) -> Record:
    return Record(
        caches=[],
        seed=0,
        global_batch=8,
        lanes=8,
        where=[],
        eval_fraction=fraction,
        shuffle_row_groups=8,
        student="s",
    )


def test_the_split_is_the_one_of_the_training(causal_cache: Cache, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "student")
    Manifest(record=record(0.5), step=1, total=1).save(folder)
    config = EvaluateConfig(cache=causal_cache.storage.root, student=folder, speed_seconds=0.0, device="cpu")
    assert evaluate(config).eval_fraction == 0.5
    Manifest(record=record(0.0), step=1, total=1).save(folder)
    with pytest.raises(UsageError, match="nothing is held out"):
        evaluate(config)


def test_a_teacher_that_cannot_be_opened_is_told_before_the_student_is_measured(
    causal_cache: Cache, teacher_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluation.evaluation.STUDENT_TASKS", {})
    torn = make_llama(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"the model's weights cannot be opened: .*torn"):
        measured(causal_cache, teacher_dir, teacher=torn)


def test_nothing_held_out(causal_cache: Cache, tmp_path: Path) -> None:
    told = (
        r"no document is held out: .*eval_fraction 1e-09 of 150 rows.*larger --eval_fraction.*more documents"
    )
    with pytest.raises(UsageError, match=told):
        measured(causal_cache, make_llama(tmp_path / "student"), eval_fraction=1e-9)


@pytest.mark.parametrize(
    ("name", "value"), [("eval_fraction", 1.0), ("batch_size", 0), ("speed_seconds", -1.0)]
)
def test_nonsense_is_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{name}.*{value}"):
        EvaluateConfig(cache="c", student="s", **{name: value})  # type: ignore[arg-type]


def test_the_verb_tells_how_far_it_is(causal_cache: Cache, tmp_path: Path, capsys, monkeypatch) -> None:
    """Where there is no terminal a line a minute, here a hundredth of a second."""
    counted = Side.counted
    monkeypatch.setattr("schemas.cli.progress._PLAIN_SECONDS", 0.01)
    monkeypatch.setattr(Side, "counted", lambda *a: time.sleep(0.1) or counted(*a))
    folder = make_llama(tmp_path / "student", seed=5)
    flags = ["--cache", causal_cache.storage.root, "--student", folder, "--eval_fraction", "0.3"]
    assert teachonce.main(["evaluate", *flags, "--device", "cpu", "--speed_seconds", "0", "--json"]) == 0
    assert re.fullmatch(r"(\S+ evaluate: \d+ of \d+ rows \(\d+%\)\n)+", capsys.readouterr().err)
