"""End to end: train, checkpoint, resume, and open the student where this project does not exist."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from schemas.cache import Cache
from tests.outside import modules_named_in
from tests.trainer.outputs import logs, same, weights
from tests.trainer.tiny import make_llama
from trainer.checkpoints.records import Record


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_resumes_as_if_never_interrupted(run: Callable[..., Path], tied: bool) -> None:
    """Tied or not, in the first epoch or the second, with projections, to the last bit."""
    settings: dict[str, Any] = {
        "model": {"tie_word_embeddings": tied},
        "losses": ["kl=1", "ce=0.5", "feature=0.1"],
    }
    whole = run(**settings)
    assert Record.load(whole) == Record.load(whole / "checkpoint-6")
    for step in (6, 18):
        resumed = run(f"again-{step}", resume_from_checkpoint=str(whole / f"checkpoint-{step}"), **settings)
        assert same(whole, resumed)
        projections = "projections.safetensors"
        ours, theirs = load_file(whole / projections), load_file(resumed / projections)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        terms = ("loss", "kl", "ce", "feature", "grad_norm")
        after = [{k: log[k] for k in terms} for log in logs(whole) if log["step"] > step + 4 and "kl" in log]
        again = [
            {k: log[k] for k in terms} for log in logs(resumed) if log["step"] > step + 4 and "kl" in log
        ]
        assert after == again
        assert logs(whole)[-1]["epoch"] == logs(resumed)[-1]["epoch"]


def test_resume_with_accumulation_across_the_end_of_an_epoch(run: Callable[..., Path]) -> None:
    """17 batches an epoch, 4 a step: the last step of an epoch has 1."""
    settings: dict[str, Any] = {"gradient_accumulation_steps": 4, "max_steps": 10, "save_steps": 2}
    whole = run(**settings)
    resumed = run("again", resume_from_checkpoint=str(whole / "checkpoint-2"), **settings)
    assert same(whole, resumed)


def test_accumulation_is_a_larger_batch(run: Callable[..., Path]) -> None:
    """The mean goes over the positions of all micro-batches, whatever their lengths: no mean of means."""
    settings: dict[str, Any] = {
        "max_steps": 3,
        "save_strategy": "no",
        "shuffle_row_groups": 100,
        "logging_steps": 1,
    }
    many = run("many", per_device_train_batch_size=8, gradient_accumulation_steps=20, **settings)
    one = run("one", per_device_train_batch_size=200, **settings)
    for a, b in zip(logs(many)[:3], logs(one)[:3], strict=True):
        assert a["kl"] == pytest.approx(b["kl"], rel=1e-4)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_two_runs_are_one(run: Callable[..., Path]) -> None:
    assert same(run("a", max_steps=4), run("b", max_steps=4))
    assert not same(run("c", max_steps=4), run("d", max_steps=4, seed=1))


def test_the_student_learns(run: Callable[..., Path]) -> None:
    found = logs(run(max_steps=60, learning_rate=5e-3, save_strategy="no"))
    kl = [log["kl"] for log in found if "kl" in log]
    assert kl[-1] < 0.9 * kl[0]


def test_the_student_opens_where_this_project_does_not_exist(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run(model={"tie_word_embeddings": True}, losses=["kl=1", "feature=1"], max_steps=6)
    code = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    tokens = AutoTokenizer.from_pretrained(folder)("t5 t6 t7", return_tensors="pt")
    print(model.generate(**tokens, max_new_tokens=3, do_sample=False).tolist())
assert not {"schemas", "trainer", "pipelines"} & set(sys.modules)
try:
    import schemas
except ModuleNotFoundError:
    print("alone")
"""
    # -I: neither this folder nor PYTHONPATH; the finder of an editable install is taken out as well.
    blocked = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
    sites = f"sys.path = [p for p in sys.path if p.rstrip('/') != {str(Path(__file__).parents[3])!r}]\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + sites + code, str(folder), str(folder / "checkpoint-6")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, other, alone = done.stdout.splitlines()
    assert one == other
    assert alone == "alone"


def test_nothing_in_a_students_folder_is_executable(run: Callable[..., Path]) -> None:
    folder = run(max_steps=1, save_strategy="no")
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".txt", ".jinja", ".md"}


def test_no_file_of_a_run_names_a_module_of_ours(run: Callable[..., Path]) -> None:
    """So that files of this project may move without a student, or a checkpoint, being lost."""
    folder = run(max_steps=2, save_steps=1)
    assert (folder / "checkpoint-2" / "optimizer.pt").exists()
    assert modules_named_in(folder) == {}


def test_evaluation_while_training_and_the_best_at_the_end(run: Callable[..., Path]) -> None:
    folder = run(
        eval_strategy="steps",
        eval_steps=6,
        load_best_model_at_end=True,
        metric_for_best_model="eval_kl",
        greater_is_better=False,
        losses=["kl=1", "ce=0.5", "feature=0.1"],
        max_steps=18,
        learning_rate=3e-2,
    )
    found = [log for log in logs(folder) if "eval_kl" in log]
    assert len(found) == 3
    for log in found:
        assert log["eval_loss"] == pytest.approx(
            log["eval_kl"] + 0.5 * log["eval_ce"] + 0.1 * log["eval_feature"], rel=1e-5
        )
    best = json.loads((folder / "trainer_state.json").read_text())["best_global_step"]
    assert best == min(found, key=lambda log: log["eval_kl"])["step"]
    assert same(folder, folder / f"checkpoint-{best}")


def test_shrink_trains_from_the_teachers_own_layers(
    run: Callable[..., Path], teacher_dir: str, causal_cache: Cache
) -> None:
    folder = run(student="shrink:layers=1", teacher=teacher_dir, max_steps=1, learning_rate=1e-9)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_dir)
    found = weights(folder)["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(found, teacher.model.layers[0].mlp.up_proj.weight, atol=1e-6, rtol=0)


def test_bfloat16_computes_in_it_and_saves_float32(run: Callable[..., Path]) -> None:
    folder = run(max_steps=3, bf16=True, save_strategy="no")
    assert all(w.dtype == torch.float32 for w in weights(folder).values())
    assert all(log["loss"] == log["loss"] for log in logs(folder) if "loss" in log)


def test_activation_checkpointing_reaches_the_student(run: Callable[..., Path]) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1}
    plain, checkpointed = run("a", **settings), run("b", activation_checkpointing=True, **settings)
    assert logs(plain)[1]["loss"] == pytest.approx(logs(checkpointed)[1]["loss"], rel=1e-5)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "identity"])
def test_classifiers_train(
    run: Callable[..., Path], class_cache_of: Callable[..., Cache], score: str
) -> None:
    losses = ["mse_logits=1", "ce=0.5", "feature=0.1", *([] if score == "identity" else ["kl=1"])]
    folder = run(
        cache=class_cache_of(score),
        model={"model_type": "bert"},
        losses=losses,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=4,
    )
    assert json.loads((folder / "config.json").read_text())["id2label"].keys() == {"0", "1", "2"}
    (log,) = [log for log in logs(folder) if "eval_loss" in log]
    assert log["eval_ce"] > 0


def test_a_deeper_teacher_without_a_header_is_as_deep_as_its_features(causal_cache: Cache) -> None:
    from trainer.training.training import teacher_layers

    assert teacher_layers(causal_cache) == 2


def test_a_teacher_of_another_seed_is_another_student(run: Callable[..., Path], tmp_path: Path) -> None:
    """A folder is opened with its weights: a step of almost no size leaves them."""
    folder = make_llama(tmp_path / "start", seed=9)
    out = run(student=folder, max_steps=1, learning_rate=1e-9, save_strategy="no")
    ours, theirs = weights(out), weights(Path(folder))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0)


def test_the_block_of_the_documents_runs(causal_cache: Cache, teacher_dir: str, tmp_path: Path) -> None:
    """As it stands, where `cache` and `teacher` are."""
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    block = re.search(r"## From Python.*?```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "cache").symlink_to(causal_cache.storage.root)
    (tmp_path / "teacher").symlink_to(teacher_dir)
    done = subprocess.run(
        [sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [log["eval_right"] for log in logs(tmp_path / "from-python") if "eval_right" in log]
    assert [log["eval_gap"] for log in logs(tmp_path / "from-python") if "eval_gap" in log]
