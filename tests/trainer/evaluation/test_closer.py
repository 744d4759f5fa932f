"""What is seen position by position is what plain transformers give; it is kept beside the student, and only there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import teachonce
from schemas.cache import Cache
from schemas.errors import UsageError
from schemas.reports.evaluations import EVALUATION_NAME, Closer, Evaluation
from tests.trainer.commanding import flags
from tests.trainer.tiny import make_bert
from trainer import EvaluateConfig, evaluate
from trainer.checkpoints.records import Manifest
from trainer.checkpoints.resuming import check_finished
from trainer.evaluation.closer import CONFIDENCE_BINS, ENTROPY_BINS, confidence_bins, look_closer
from trainer.evaluation.held_out import HeldOut
from trainer.students.students import open_trained
from trainer.tasks.student_task import Measured
from trainer.tasks.tasks import STUDENT_TASKS

FRACTION = 0.3


def trained(cache: Cache, folder: Path, out: Path, *more: str) -> Path:
    assert teachonce.main(flags(cache, folder, out, *more, max_steps=3, eval_fraction=FRACTION)) == 0
    return out


def saved(cache: Cache, student: Path | str) -> Evaluation:
    found = evaluate(
        EvaluateConfig(
            cache=cache.storage.root,
            student=str(student),
            speed_seconds=0.0,
            device="cpu",
            batch_size=4,
            save=True,
        )
    )
    kept = Evaluation.load(student)
    assert kept is not None
    assert dict(kept.evaluated) == json.loads(json.dumps(found.to_json()))
    return kept


class Plain:
    """All positions of the held-out rows, by transformers alone, one text at a time."""

    def __init__(self, cache: Cache, student: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(student).eval()
        self.rows = [*HeldOut(cache=cache, eval_fraction=FRACTION, batch_size=4).rows()]
        top, sure, right, agree, loss, entropy = ([] for _ in range(6))
        self.means: dict[str, float] = {}
        for rows in self.rows:
            teacher = torch.from_numpy(rows.kept_logprobs().reshape(-1, 32).copy()).double()
            ids = torch.from_numpy(rows.kept_ids.reshape(-1, 32).copy()).long()
            for row in range(len(rows)):
                tokens = torch.from_numpy(rows.input_ids.row(row).copy()).long()
                with torch.no_grad():
                    logits = model(input_ids=tokens[None]).logits[0, :-1].double()
                own = slice(int(rows.position_offsets[row]), int(rows.position_offsets[row + 1]))
                student = logits.log_softmax(-1).gather(1, ids[own])
                kl = (teacher[own].exp() * (teacher[own] - student)).sum(-1)
                tail, other = (1 - teacher[own].exp().sum(-1)).clamp(min=0), 1 - student.exp().sum(-1)
                kl += torch.xlogy(tail, tail / other)  # what is not kept is one outcome
                best = logits.softmax(-1).max(-1)
                top += best.indices.tolist()
                sure += best.values.tolist()
                right += (best.indices == tokens[1:]).tolist()
                agree += (best.indices == ids[own, 0]).tolist()
                loss += kl.tolist()
                entropy += rows.entropy()[own].tolist()
                self.means[rows.example_ids[row].hex()] = float(kl.mean())
        self.sure, self.right, self.agree = np.array(sure), np.array(right), np.array(agree)
        self.loss, self.entropy = np.array(loss), np.array(entropy)


def test_a_closer_look_is_what_transformers_see(causal_cache: Cache, tmp_path: Path) -> None:
    student = trained(causal_cache, tmp_path, tmp_path / "out")
    closer = saved(causal_cache, student).closer[0]
    plain = Plain(causal_cache, student)
    assert (closer.positions, closer.is_whole, closer.right_is) == (len(plain.sure), True, "label")
    for n, own in _parts(plain.sure, 1 / CONFIDENCE_BINS):
        (found,) = [one for one in closer.student if int(one.confidence * CONFIDENCE_BINS) == n]
        assert found.positions == own.sum()
        assert found.confidence == pytest.approx(plain.sure[own].mean(), rel=1e-5)
        assert found.accuracy == pytest.approx(plain.right[own].mean())
    width = np.log(causal_cache.spec.vocab_size) / ENTROPY_BINS
    parts = _parts(plain.entropy, width)
    assert [one.positions for one in closer.by_entropy] == [int(own.sum()) for _, own in parts]
    for found, (n, own) in zip(closer.by_entropy, parts, strict=True):
        assert found.low_nats == pytest.approx(n * width)
        assert found.agreement == pytest.approx(plain.agree[own].mean())
        assert found.kl_nats == pytest.approx(plain.loss[own].mean(), abs=2e-3)
    assert sum(one.positions for one in closer.teacher) == len(plain.sure)


def _parts(values: np.ndarray, width: float) -> list[tuple[int, np.ndarray]]:
    places = np.floor(values / width).astype(int)
    return [(n, places == n) for n in sorted(set(places.tolist()))]


def test_the_worst_examples_are_the_worst(causal_cache: Cache, tmp_path: Path) -> None:
    student = trained(causal_cache, tmp_path, tmp_path / "out")
    worst = saved(causal_cache, student).closer[0].worst
    plain = Plain(causal_cache, student)
    ranked = sorted(plain.means, key=lambda name: -plain.means[name])
    assert [one.loss_nats for one in worst] == pytest.approx(
        [plain.means[name] for name in ranked[: len(worst)]], abs=2e-3
    )
    assert len(worst) == min(10, len(ranked)) > 2
    first = next(rows for rows in plain.rows if worst[0].example_id in [i.hex() for i in rows.example_ids])
    row = [i.hex() for i in first.example_ids].index(worst[0].example_id)
    tokens, place = first.input_ids.row(row), worst[0].places[0]
    tokenizer = AutoTokenizer.from_pretrained(student)
    assert place.gold == tokenizer.decode([int(tokens[place.index + 1])])
    at = int(first.position_offsets[row]) + place.index
    ids = first.kept_ids.reshape(-1, 32)[at, :5].tolist()
    assert [one.id for one in place.teacher] == ids
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(student).eval()
        logits = model(input_ids=torch.from_numpy(tokens.copy()).long()[None]).logits[0, place.index]
    best = logits.softmax(-1).topk(5)
    assert [one.id for one in place.student] == best.indices.tolist()
    assert [one.probability for one in place.student] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert [one.loss_nats for one in worst[0].places] == sorted(
        (one.loss_nats for one in worst[0].places), reverse=True
    )


def test_a_bound_on_rows_is_kept_and_told(causal_cache: Cache, tmp_path: Path) -> None:
    student = open_trained(str(trained(causal_cache, tmp_path, tmp_path / "out")), causal_cache, alone=False)
    held_out = HeldOut(cache=causal_cache, eval_fraction=FRACTION, batch_size=4)
    measured = Measured(
        model=student.model,
        tokenizer=student.tokenizer,
        spec=causal_cache.spec,
        held_out=held_out,
        collation=student.collation(),
        device=torch.device("cpu"),
    )
    found = look_closer(measured, STUDENT_TASKS[causal_cache.spec.task].run, 4, most_rows=3)
    assert isinstance(found, Closer)
    assert (found.rows, found.is_whole, len(found.worst)) == (3, False, 3)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_classifiers(class_cache_of: Callable[..., Cache], tmp_path: Path, score: str) -> None:
    cache = class_cache_of(score)
    base = make_bert(tmp_path / "base", seed=4)
    said = ["train", "--cache", cache.storage.root, "--student", base, "--output_dir", str(tmp_path / "out")]
    more = ["--max_steps", "2", "--eval_fraction", str(FRACTION), "--report_to", "none", "--use_cpu", "true"]
    assert teachonce.main([*said, *more]) == 0
    kept = saved(cache, tmp_path / "out")
    if score == "sigmoid":
        assert (kept.closer, "no distributions" in kept.no_closer) == ((), True)
        return
    names = {one.text for example in kept.closer[0].worst for one in example.places[0].student}
    assert names <= {*cache.spec.label_names, "0", "1", "2"}


def test_a_saved_evaluation_harms_no_resume(causal_cache: Cache, tmp_path: Path, capsys: Any) -> None:
    student = trained(causal_cache, tmp_path, tmp_path / "out")
    saved(causal_cache, student)
    manifest = Manifest.load(student)
    assert manifest is not None
    assert check_finished(student, manifest)
    capsys.readouterr()
    trained(causal_cache, tmp_path, student, "--resume_from_checkpoint", "auto")
    assert "already finished" in capsys.readouterr().err


def test_only_a_finished_student_takes_one(causal_cache: Cache, tmp_path: Path) -> None:
    student = trained(causal_cache, tmp_path, tmp_path / "out")
    checkpoint = student / "checkpoint-2"
    before = sorted(checkpoint.iterdir())
    with pytest.raises(UsageError, match="a checkpoint, which holds its own files alone"):
        saved(causal_cache, checkpoint)
    assert sorted(checkpoint.iterdir()) == before
    base = make_bert(tmp_path / "base")
    with pytest.raises(UsageError, match="no record of one"):
        saved(causal_cache, base)
    assert not (Path(base) / EVALUATION_NAME).exists()


def test_bins_hold_every_position() -> None:
    sure = np.array([0.0, 0.5, 0.999, 1.0])
    found = confidence_bins(sure, np.array([True, False, True, True]))
    assert sum(one.positions for one in found) == 4
    assert found[-1].positions == 2
    assert found[-1].accuracy == 1
