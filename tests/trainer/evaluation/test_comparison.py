"""Several students on the same rows, and joined: against plain transformers, scipy's and textbook forms in numpy."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.optimize import minimize_scalar
from sklearn.metrics import accuracy_score
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

import teachonce
from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.rows.rows import Rows
from tests.specs import SPECS
from tests.trainer.tiny import bert_config, make_bert, make_llama, save, tiny_tokenizer
from trainer import Compared, EvaluateConfig, compare, evaluate
from trainer.checkpoints.records import Manifest, Record
from trainer.evaluation.ensembles import check_ensemble, votes
from trainer.evaluation.held_out import HeldOut
from trainer.evaluation.tables import show, show_compared

FRACTION = 0.5


def config(cache: Cache, **changes: Any) -> EvaluateConfig:
    usual = {"eval_fraction": FRACTION, "batch_size": 8, "speed_seconds": 0.0, "device": "cpu"}
    return EvaluateConfig(cache=cache.storage.root, **(usual | changes))


def three(tmp_path: Path, **changes: Any) -> list[str]:
    return [make_bert(tmp_path / name, seed=seed, **changes) for seed, name in enumerate("abc", 4)]


def rows_of(cache: Cache, half: int | None = None) -> Rows:
    found = HeldOut(cache=cache, eval_fraction=FRACTION, batch_size=8, half=half)
    return Rows.concatenate(list(found.rows()))


def logits_of(folder: str, rows: Rows) -> np.ndarray:
    """A row at a time, by plain transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        each = [
            model(input_ids=torch.from_numpy(rows.input_ids.row(i).copy()).long()[None]).logits
            for i in range(len(rows))
        ]
    return torch.cat(each).double().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_each_student_is_measured_as_alone(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache, students = class_cache_of(), three(tmp_path)
    found = compare(config(cache, students=students))
    assert found.ensemble is None
    for student, one in zip(students, found.students, strict=True):
        alone = evaluate(config(cache, student=student))
        assert one.metrics == alone.metrics
        assert (one.student, one.cache, one.cache_version) == (student, cache.storage.root, cache.version)
    assert [one.models[0].name for one in found.students] == ["a", "b", "c"]


def test_the_mean_is_that_of_the_distributions(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache, students = class_cache_of(), three(tmp_path)
    ensemble = compare(config(cache, students=students, ensemble="mean")).ensemble
    assert ensemble is not None
    rows = rows_of(cache)
    mean = np.mean([softmax(logits_of(student, rows)) for student in students], 0)
    labels = rows.ragged("labels")
    known, truth = labels.validity, labels.values
    assert ensemble.metrics["accuracy"] == pytest.approx(accuracy_score(truth, mean[known].argmax(1)))
    nats = -np.log(mean[known][np.arange(len(truth)), truth]).mean()
    assert ensemble.metrics["cross_entropy_nats"] == pytest.approx(nats, rel=1e-5)
    assert ensemble.model.parameters == 3 * evaluate(config(cache, student=students[0])).models[0].parameters


def test_two_of_one_student_are_that_student(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache = class_cache_of()
    twins = [make_bert(tmp_path / name, seed=4) for name in "ab"]
    found = compare(config(cache, students=twins, ensemble="mean"))
    assert found.ensemble is not None
    ours, alone = found.ensemble.metrics, found.students[0].metrics
    assert ours.pop("confusion_matrix") == alone.pop("confusion_matrix")
    assert ours == pytest.approx(alone, rel=1e-5)


def test_votes(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache, students = class_cache_of(), three(tmp_path)
    ensemble = compare(config(cache, students=students, ensemble="vote")).ensemble
    assert ensemble is not None
    rows = rows_of(cache)
    each = np.stack([logits_of(student, rows) for student in students])
    counts = (each.argmax(-1)[..., None] == np.arange(3)).sum(0)
    mean = np.mean([softmax(one) for one in each], 0)
    best = [max(range(3), key=lambda c: (counts[row, c], mean[row, c])) for row in range(len(rows))]
    known = rows.ragged("labels").validity
    truth = rows.ragged("labels").values
    assert ensemble.metrics["accuracy"] == accuracy_score(truth, np.array(best)[known])
    assert ensemble.weights is None
    assert not {"kl_nats", "cross_entropy_nats", "roc_auc"} & set(ensemble.metrics)


def test_a_tie_goes_by_the_mean() -> None:
    logits = torch.tensor([[[3.0, 0.0, 0.0]], [[0.0, 2.0, 1.9]]])
    assert votes(logits, "softmax").argmax(-1).tolist() == [0]
    assert (votes(torch.tensor([[[4.0]], [[-1.0]], [[-1.0]]]), "sigmoid") > 0).tolist() == [[False]]
    assert (votes(torch.tensor([[[4.0]], [[-1.0]]]), "sigmoid") > 0).tolist() == [[True]]


def test_fitted_weights_are_the_likeliest_on_the_half_that_is_not_measured(
    class_cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    cache, students = class_cache_of(), three(tmp_path)[:2]
    found = compare(config(cache, students=students, ensemble="fitted"))
    assert found.ensemble is not None
    fitted, measured = rows_of(cache, 0), rows_of(cache, 1)
    assert len(fitted) + len(measured) == len(rows_of(cache))
    assert not set(fitted.example_ids) & set(measured.example_ids)
    assert found.ensemble.fitted_rows == len(fitted)
    assert [one.metrics["positions"] for one in found.students] == [len(measured)] * 2
    assert found.ensemble.metrics["positions"] == len(measured)
    labels = fitted.ragged("labels")
    known, truth = labels.validity, labels.values
    each = [softmax(logits_of(student, fitted))[known][np.arange(len(truth)), truth] for student in students]
    best = minimize_scalar(
        lambda w: -np.log(w * each[0] + (1 - w) * each[1]).mean(), bounds=(0, 1), method="bounded"
    ).x
    assert found.ensemble.weights is not None
    assert found.ensemble.weights["a"] == pytest.approx(best, abs=5e-3)
    assert sum(found.ensemble.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(("score", "labelled"), [("sigmoid", True), ("sigmoid", False), ("identity", True)])
def test_classes_apart_and_values(
    class_cache_of: Callable[..., Cache], tmp_path: Path, score: str, labelled: bool
) -> None:
    cache, students = class_cache_of(score, labelled=labelled), three(tmp_path)
    rows = rows_of(cache)
    each = np.stack([logits_of(student, rows) for student in students])
    ensemble = compare(config(cache, students=students, ensemble="mean")).ensemble
    fitted = compare(config(cache, students=students, ensemble="fitted")).ensemble
    assert ensemble is not None
    assert fitted is not None
    teacher = rows.ragged("logits").values.reshape(-1, 3)
    if score == "identity":
        wanted = ((each.mean(0) - teacher) ** 2).mean()
        assert ensemble.metrics["mse_with_teacher"] == pytest.approx(wanted, rel=1e-5)
        with pytest.raises(StudentError, match="cannot be voted for"):
            compare(config(cache, students=students, ensemble="vote"))
    else:
        mean = (1 / (1 + np.exp(-each))).mean(0)
        assert ensemble.metrics["agreement"] == pytest.approx(((mean > 0.5) == (teacher > 0)).mean())
        assert compare(config(cache, students=students, ensemble="vote")).ensemble is not None
    assert sum((fitted.weights or {}).values()) == pytest.approx(1)


def test_students_of_other_kinds_are_each_fed_as_they_are_alone(
    class_cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    """One takes token types and another pads with another id: the mean is still theirs."""
    cache = class_cache_of()
    torch.manual_seed(9)
    other = BertForSequenceClassification(bert_config(pad_token_id=1, type_vocab_size=1))
    students = [make_bert(tmp_path / "a", seed=4), save(other, tmp_path / "b", tiny_tokenizer())]
    ensemble = compare(config(cache, students=students, ensemble="mean")).ensemble
    assert ensemble is not None
    rows = rows_of(cache)
    mean = np.mean([softmax(logits_of(student, rows)) for student in students], 0)
    known, truth = rows.ragged("labels").validity, rows.ragged("labels").values
    nats = -np.log(mean[known][np.arange(len(truth)), truth]).mean()
    assert ensemble.metrics["cross_entropy_nats"] == pytest.approx(nats, rel=1e-5)


def test_language_models_are_compared_and_not_joined(causal_cache: Cache, tmp_path: Path) -> None:
    students = [make_llama(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    found = compare(config(causal_cache, students=students))
    assert [one.metrics["perplexity"] > 1 for one in found.students] == [True, True]
    with pytest.raises(StudentError, match="no ensemble is made of them"):
        compare(config(causal_cache, students=students, ensemble="mean"))


def test_the_rows_are_those_that_no_student_saw(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache, students = class_cache_of(), three(tmp_path)[:2]
    for folder, fraction in zip(students, (0.4, 0.2), strict=True):
        record = Record(caches=[], seed=0, global_batch=8, lanes=8, where=[], eval_fraction=fraction,
                        shuffle_row_groups=8, student="s")  # fmt: skip
        Manifest(record=record, step=1, total=1).save(folder)
    found = compare(config(cache, students=students, eval_fraction=None))
    assert [one.eval_fraction for one in found.students] == [0.2, 0.2]


def test_one_table_and_its_json(
    class_cache_of: Callable[..., Cache], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, students = class_cache_of(), three(tmp_path)
    words = ["evaluate", "--cache", cache.storage.root, "--students", *students, "--ensemble", "fitted"]
    words += ["--eval_fraction", "0.5", "--speed_seconds", "0", "--device", "cpu"]
    assert teachonce.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["student"] for one in told["students"]] == students
    assert {(one["cache"], one["cache_version"]) for one in told["students"]} == {(cache.storage.root, 0)}
    assert told["ensemble"]["how"] == "fitted"
    text = io.StringIO()
    found: Compared = compare(config(cache, students=students, ensemble="fitted"))
    show_compared(found, Console(file=text, width=160))
    for word in (
        "metric",
        " a ",
        " b ",
        " c ",
        "ensemble (fitted)",
        "macro_f1",
        "weights of the ensemble: a ",
    ):
        assert word in text.getvalue()


def test_classes_have_their_names(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    """The tiny cache names none: numbers stand in; a cache with names is told by them."""
    cache = class_cache_of()
    found = evaluate(config(cache, student=make_bert(tmp_path / "a")))
    text = io.StringIO()
    show(found, Console(file=text, width=120))
    matrix = found.metrics["confusion_matrix"]
    assert "0  " + "  ".join(map(str, matrix[0])) in text.getvalue()
    named = type(found)(**{**vars(found), "classes": ("bad", "fair", "good")})
    text = io.StringIO()
    show(named, Console(file=text, width=120))
    assert "fair  " + "  ".join(map(str, matrix[1])) in text.getvalue()
    several = evaluate(config(class_cache_of("sigmoid"), student=make_bert(tmp_path / "b")))
    text = io.StringIO()
    show(several, Console(file=text, width=120))
    assert "confusion matrix of each class" in text.getvalue()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "one --student is measured"),
        ({"student": "a", "students": ["b", "c"]}, "got both"),
        ({"students": ["a"]}, "two or more"),
        ({"students": ["a", "a"]}, "each once"),
        ({"students": ["a", "b"], "ensemble": "median"}, "mean, vote, fitted.*median"),
        ({"student": "a", "ensemble": "mean"}, "no effect without --students"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        EvaluateConfig(cache="c", **changes)


def test_too_few_rows_to_fit_on(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    """One document alone is held out: one half is empty."""
    cache, students = class_cache_of(), three(tmp_path)[:2]
    hashes = np.concatenate([rows.array("document_hash") for rows in cache.read_all()])
    first, second, *_ = sorted(int.from_bytes(row[8:16].tobytes(), "little") / 2**64 for row in hashes)
    with pytest.raises(UsageError, match="too few documents are held out to fit"):
        compare(config(cache, students=students, ensemble="fitted", eval_fraction=(first + second) / 2))


def test_students_of_images_are_no_ensemble() -> None:
    with pytest.raises(StudentError, match="students of image-classification are compared"):
        check_ensemble("mean", SPECS["images"])
