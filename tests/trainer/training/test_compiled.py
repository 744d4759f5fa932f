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
from schemas.errors import StudentError, TrainingError, UsageError
from tests.trainer import children
from tests.trainer.commanding import flags, train
from tests.trainer.fan import Fan
from tests.trainer.outputs import logs, weights
from trainer import StudentArguments
from trainer.students.compiling import Compiling, blocks
from trainer.training.preflight import told_errors

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
    told["losses"] = ["kl=1", "feature=0.1"]
    assert train(causal_cache, tmp_path, "plain", **told) == 0
    torch.compiler.reset()
    counters.clear()
    told["model"] = {"attention_dropout": 0.0}
    assert train(causal_cache, tmp_path, "compiled", "--torch_compile", **told) == 0
    assert 1 <= counters["stats"]["unique_graphs"] <= 12, "batches of all shapes share a few graphs"
    assert all("ContextVar" in reason for reason in counters["graph_break"]), "of transformers' states alone"
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


def test_a_block_is_one_graph_for_all_shapes(causal_cache: Cache, tmp_path: Path) -> None:
    """Where no hidden states are asked for: one in training and one in evaluation, and a shape may cost another."""
    torch.compiler.reset()
    counters.clear()
    told: dict[str, Any] = {"losses": "kl=1", "eval_strategy": "steps", "eval_steps": 5, "max_steps": 12}
    assert train(causal_cache, tmp_path, "out", "--torch_compile_backend", "aot_eager", **told) == 0
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= 4, "batches of all shapes share a graph"


def test_every_student_of_a_process_is_compiled(
    causal_cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each of another width, so that none shares a graph: more than torch compiles of one function."""
    told: dict[str, Any] = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    fan, compiled = Fan(causal_cache, tmp_path), {"torch_compile_backend": "aot_eager", "losses": "kl=1"}
    students = {
        name: {"model": {"hidden_size": 32 + 16 * number, "num_hidden_layers": 1}, **compiled}
        for number, name in enumerate("abc")
    }
    torch.compiler.reset()
    counters.clear()
    needed = 2 * len(students)  # of training, and of evaluation
    with torch._dynamo.config.patch(recompile_limit=needed - 1):
        assert fan.together(students, **told) == 0
    assert counters["stats"]["unique_graphs"] >= needed
    assert "recompile_limit" not in capfd.readouterr().err


@pytest.mark.parametrize("losses", ["kl=1", "kl=1 feature=0.1"])
def test_a_compiler_that_fails_is_one_line(
    causal_cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    losses: str,
) -> None:
    """Also where the student's hidden states are looked at first."""
    torch.compiler.reset()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)}):
        told: dict[str, Any] = {"max_steps": 2, "losses": losses.split()}
        assert train(causal_cache, tmp_path, "out", "--torch_compile", **told) == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert "the student's blocks cannot be compiled" in err.splitlines()[-1]


COMPILES_SECONDS = 600.0
"""Beyond which a process that compiles is said to hang: on a busy machine it takes minutes."""


def test_kernels_that_a_killed_process_left_half_written(causal_cache: Cache, tmp_path: Path) -> None:
    """Loaded by a process that has them from there alone."""
    told: dict[str, Any] = {"max_steps": 1, "losses": ["kl=1", "feature=0.1"]}
    argv = flags(causal_cache, tmp_path, "out", "--torch_compile", **told)
    assert children.run(argv, tmp_path / "log", seconds=COMPILES_SECONDS) == 0
    kernels = [*(tmp_path / "kernels").rglob("*.main.so")]
    assert kernels
    for path in kernels:
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[:50])
    argv = flags(causal_cache, tmp_path, "again", "--torch_compile", **told)
    assert children.run(argv, tmp_path / "log", seconds=COMPILES_SECONDS) == 1
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    for part in ("the student's blocks cannot be compiled", "TORCHINDUCTOR_CACHE_DIR"):
        assert part in said.splitlines()[-1]


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_whose_an_error_is(kind: type[Exception]) -> None:
    """The compiler's, where it came from there and one is used; else it is told as what it is."""
    told: dict[str, Any] = {"__name__": "torch._inductor.codecache"}
    exec("def load(kind):\n    raise kind('file too short')", told)

    def elsewhere() -> None:
        raise kind("no room")

    said = r"cannot be compiled: got file too short.*TORCHINDUCTOR_CACHE_DIR"
    with pytest.raises(TrainingError, match=said), told_errors(compiles=True):
        told["load"](kind)
    for compiles, load in ((False, lambda: told["load"](kind)), (True, elsewhere)):
        with pytest.raises(kind), told_errors(compiles=compiles):
            load()


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
