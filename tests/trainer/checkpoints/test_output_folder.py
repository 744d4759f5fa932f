"""A student goes into a folder of its run's own: never over a cache, a teacher, or another's work."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

import teachonce
from schemas.cache import Cache
from tests.trainer.commanding import AUTO, flags, train
from tests.trainer.tiny import make_llama

OVER = ("--overwrite_output_dir",)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(capfd: Any, argv: list[str], named: str, *kept: Path) -> None:
    """One line, status 2, and not a byte changed."""
    before = [contents(folder) for folder in kept]
    capfd.readouterr()
    assert teachonce.main(argv) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce train:")]
    assert len(lines) == 1
    assert named in lines[0]
    assert before == [contents(folder) for folder in kept]


@pytest.fixture
def teacher(teacher_dir: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher_dir, tmp_path / "teacher"))


@pytest.fixture
def own_cache(causal_cache: Cache, tmp_path: Path) -> Cache:
    return Cache.open(shutil.copytree(causal_cache.storage.root, tmp_path / "own-cache"))


@pytest.mark.parametrize("more", [(), OVER, AUTO])
def test_the_teachers_folder(
    causal_cache: Cache, tmp_path: Path, teacher: Path, more: Any, capfd: Any
) -> None:
    for student in ("shrink:layers=1", None):
        changes = {"student": student, "teacher": str(teacher)} if student else {}
        argv = flags(causal_cache, tmp_path, teacher, *more, **changes)
        if student or more != OVER:
            refused(capfd, argv, "--output_dir holds", teacher)


def test_the_start_of_the_student(causal_cache: Cache, tmp_path: Path, teacher: Path, capfd: Any) -> None:
    link = tmp_path / "link"
    link.symlink_to(teacher)
    for out in (teacher, link, tmp_path / "x" / ".." / "teacher"):
        for more in ((), OVER, AUTO):
            argv = flags(causal_cache, tmp_path, out, *more, student=str(teacher))
            refused(capfd, argv, "what this run begins with", teacher)
    assert train(causal_cache, tmp_path, "out", max_steps=2) == 0
    out = tmp_path / "out"
    for start in (out, out / "checkpoint-2"):
        argv = flags(causal_cache, tmp_path, out, *OVER, student=str(start))
        refused(capfd, argv, "what this run begins with", out)


@pytest.mark.parametrize("more", [(), OVER, AUTO])
def test_a_cache(causal_cache: Cache, own_cache: Cache, tmp_path: Path, more: Any, capfd: Any) -> None:
    """The run's own, another's, and a folder below one."""
    root = Path(own_cache.storage.root)
    for out in (root, root / "below"):
        for cache in (own_cache, causal_cache):
            refused(capfd, flags(cache, tmp_path, out, *more), "a cache", root)


def test_a_student_that_is_finished_and_its_checkpoints(
    causal_cache: Cache, tmp_path: Path, capfd: Any
) -> None:
    assert train(causal_cache, tmp_path, "out", max_steps=2) == 0
    out = tmp_path / "out"
    (out / "notes.md").write_text("mine")
    refused(capfd, flags(causal_cache, tmp_path, out, max_steps=2), "--resume_from_checkpoint auto", out)
    refused(capfd, flags(causal_cache, tmp_path, out, *AUTO, max_steps=2, seed=1), "another seed", out)
    for path in [path for path in out.iterdir() if path.is_file() and path.name != "notes.md"]:
        path.unlink()
    refused(capfd, flags(causal_cache, tmp_path, out, max_steps=2), "checkpoints", out)
    refused(
        capfd, flags(causal_cache, tmp_path, out, *OVER, *AUTO, max_steps=2), "--overwrite_output_dir", out
    )
    assert train(causal_cache, tmp_path, "out", *OVER, max_steps=1, save_steps=1) == 0
    assert (out / "notes.md").read_text() == "mine"
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1"}


def test_a_model_of_another_hand(causal_cache: Cache, tmp_path: Path, capfd: Any) -> None:
    other = Path(make_llama(tmp_path / "other", seed=5, hidden_size=16))
    for name in ("pytorch_model.bin", "adapter_config.json"):
        (other / name).write_text("{}")
    (other / "corpus.txt").write_text("mine")
    refused(capfd, flags(causal_cache, tmp_path, other), "a model that teachonce did not write", other)
    refused(capfd, flags(causal_cache, tmp_path, other, *AUTO), "a model that teachonce did not write", other)
    assert train(causal_cache, tmp_path, other, *OVER, max_steps=1, save_strategy="no") == 0
    assert (other / "corpus.txt").read_text() == "mine"
    assert not (other / "pytorch_model.bin").exists()
    assert not (other / "adapter_config.json").exists()
    for name in ("model.gguf", "model-00001-of-00002.safetensors", "weights.pt", "config.json"):
        folder = tmp_path / f"has-{name}"
        folder.mkdir()
        (folder / name).write_text("{}")
        refused(capfd, flags(causal_cache, tmp_path, folder), name, folder)


def test_places_that_cannot_be(causal_cache: Cache, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "file").write_text("mine")
    for out, named in (
        (tmp_path / "file", "a file"),
        (tmp_path / "file" / "below", "a file"),
        ("/proc/teachonce/out", "cannot be written to"),
        ("s3://bucket/out", "must be a local folder"),
        (tmp_path / ("x" * 300), "--output_dir"),
    ):
        argv = flags(causal_cache, tmp_path, "unused")
        argv[argv.index("--output_dir") + 1] = str(out)
        refused(capfd, argv, named)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_before_the_first_step_leaves_no_folder(
    causal_cache: Cache, tmp_path: Path, capfd: Any
) -> None:
    argv = flags(causal_cache, tmp_path, "a/b", student=str(tmp_path / "none"))
    refused(capfd, argv, "no such model folder")
    assert not (tmp_path / "a" / "b").exists()
    folder = tmp_path / "mine"
    folder.mkdir()
    refused(
        capfd, flags(causal_cache, tmp_path, folder, student=str(tmp_path / "none")), "no such model", folder
    )


def test_a_folder_with_other_things_is_no_trouble(causal_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.yaml").write_text("mine")
    (tmp_path / "out" / "teachonce-lock.json").write_text("left by kill -9")
    assert train(causal_cache, tmp_path, "out", max_steps=1, save_strategy="no") == 0
    assert (tmp_path / "out" / "run.yaml").read_text() == "mine"
