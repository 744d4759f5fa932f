"""`--torch_compile`: the student's blocks are compiled, for any shape; it learns the same, and is saved plain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from tests.trainer.commanding import train
from tests.trainer.outputs import logs, weights
from trainer import StudentArguments
from trainer.students.compiling import Compiling, blocks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
"""Both are torch's own, of its compiler."""


@pytest.fixture(autouse=True)
def _own_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process left half written is nobody's."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))


def test_a_compiled_student_is_the_same_student(causal_cache: Cache, tmp_path: Path) -> None:
    """By inductor, whose kernels round otherwise; without dropout, whose numbers they draw otherwise."""
    told: dict[str, Any] = {"max_steps": 6, "logging_steps": 1, "model": {"attention_dropout": 0.0}}
    told["eval_strategy"], told["losses"] = "epoch", ["kl=1", "feature=0.1"]
    assert train(causal_cache, tmp_path, "plain", **told) == 0
    torch.compiler.reset()
    counters.clear()
    told["model"] = {"attention_dropout": 0.0}
    assert train(causal_cache, tmp_path, "compiled", "--torch_compile", **told) == 0
    assert 1 <= counters["stats"]["unique_graphs"] <= 12, "batches of all shapes share a few graphs"
    plain, compiled = (logs(tmp_path / name) for name in ("plain", "compiled"))
    compared = 0
    for ours, theirs in zip(compiled, plain, strict=True):
        for name in {"loss", "kl", "feature", "grad_norm"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
            compared += 1
    assert compared >= 24
    for name, weight in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "compiled")[name], weight, atol=2e-4, rtol=1e-2)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "compiled", output_loading_info=True)
    assert not any(report.values())


def test_a_compiler_that_fails_is_one_line(
    causal_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.compiler.reset()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/c++",))
    assert train(causal_cache, tmp_path, "out", "--torch_compile", max_steps=2) == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert "the student's blocks cannot be compiled" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"torch_compile_backend": "inducktor"}, "--torch_compile_backend names none"),
        ({"torch_compile_mode": "fast"}, "--torch_compile_mode names none"),
        ({"torch_compile_backend": "aot_eager", "torch_compile_mode": "default"}, "no effect but with"),
    ],
)
def test_a_compiler_that_there_is_not(run: Callable[..., Path], told: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        run(**told)


def test_a_backend_or_a_mode_asks_for_it_too(tmp_path: Path) -> None:
    told: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True}
    assert StudentArguments(**told).compiling is None
    assert StudentArguments(**told, torch_compile=True).compiling == Compiling()
    found = StudentArguments(**told, torch_compile_backend="aot_eager")
    assert found.compiling == Compiling(backend="aot_eager")
    assert not found.torch_compile, "transformers would compile head and losses"
    assert StudentArguments(**told, torch_compile_mode="max-autotune").compiling == Compiling(
        mode="max-autotune"
    )


def test_a_student_without_blocks(teacher_dir: str) -> None:
    student = AutoModelForCausalLM.from_pretrained(teacher_dir)
    assert [type(block).__name__ for block in blocks(student)] == ["LlamaDecoderLayer"] * 2
    with pytest.raises(StudentError, match="which of its modules are blocks"):
        Compiling().apply(torch.nn.Linear(2, 2))
