"""`evaluate --export onnx`: ONNX Runtime alone gives what plain transformers gives, at lengths it has not seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import teachonce
from schemas.cache import Cache
from tests.trainer.tiny import make_bert, make_llama
from trainer.evaluation import onnx_export


def call(cache: Cache, student: str, *more: str) -> int:
    flags = ["--cache", cache.storage.root, "--student", student, "--eval_fraction", "0.3", "--device", "cpu"]
    return teachonce.main(["evaluate", *flags, "--speed_seconds", "0", "--export", "onnx", *more])


def test_a_causal_student(causal_cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_llama(tmp_path / "student", seed=5)
    assert call(causal_cache, folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)["export"]
    assert told["path"] == f"{folder}/onnx/model.onnx"
    assert told["rows"] > 30
    assert 0 <= told["largest_difference"] < 1e-4 * told["largest_value"]
    assert [path.name for path in (tmp_path / "student" / "onnx").iterdir()] == ["model.onnx"]
    assert not (tmp_path / "student" / ".onnx.partial").exists()
    session = onnxruntime.InferenceSession(told["path"], providers=["CPUExecutionProvider"])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for rows, length in ((1, 1), (3, 5), (2, 61)):
        ids = torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[0, max(1, length // 2) :] = 0
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
        counted = mask.bool().numpy()
        np.testing.assert_allclose(found[counted], expected[counted], atol=1e-4)


def test_what_answers_otherwise_is_no_export(
    class_cache_of: Callable[..., Cache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An older export stays."""
    monkeypatch.setattr(onnx_export, "_TOLERANCE", -1.0)
    folder = Path(make_bert(tmp_path / "student", seed=5))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"older")
    assert call(class_cache_of(), str(folder)) == 2
    err = capsys.readouterr().err
    assert "BertForSequenceClassification answers otherwise when it is exported to ONNX" in err
    assert err.count("\n") == 1
    assert (folder / "onnx" / "model.onnx").read_bytes() == b"older"
    assert not (folder / ".onnx.partial").exists()


def test_a_class_that_cannot_be_followed_is_named(
    causal_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A forward that goes one way or the other by what it is given."""
    forward = LlamaForCausalLM.forward

    def branching(self: LlamaForCausalLM, input_ids: torch.Tensor, **others: object) -> object:
        others = others if int(input_ids.sum()) % 2 else dict(others)
        return forward(self, input_ids=input_ids, **others)

    monkeypatch.setattr(LlamaForCausalLM, "forward", branching)
    folder = make_llama(tmp_path / "student", seed=5)
    assert call(causal_cache, folder) == 2
    err = capsys.readouterr().err
    assert "LlamaForCausalLM cannot be exported to ONNX" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "student" / "onnx").exists()


def test_refused_before_anything_is_measured(
    causal_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(causal_cache, "some-org/some-model") == 2
    folder = make_llama(tmp_path / "student")
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("no_such_package",))
    assert call(causal_cache, folder) == 2
    assert "pip install 'teachonce[onnx]'" in capsys.readouterr().err
    flags = ["--cache", causal_cache.storage.root, "--students", folder, str(tmp_path), "--export", "onnx"]
    assert teachonce.main(["evaluate", *flags]) == 2
    assert "--export is of one student" in capsys.readouterr().err
