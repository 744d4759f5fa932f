"""A checkpoint is whole and is this run's, or it is not trained on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import teachonce
from schemas.cache import Cache
from tests.trainer.caches import causal_columns, causal_spec, finished_rows, write_cache
from tests.trainer.commanding import AUTO, flags, train
from tests.trainer.outputs import same
from tests.trainer.tiny import random_examples
from trainer.checkpoints.records import RECORD_NAME, Manifest
from trainer.checkpoints.whole_folders import check_whole, finish, seal

LAST = ("--resume_from_checkpoint", "last")


@pytest.fixture(scope="module")
def trained(causal_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its end at step 4, with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("trained")
    assert train(causal_cache, folder, "out", max_steps=4, losses=["kl=1", "feature=0.1"]) == 0
    return folder / "out"


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    """The same, as if it had been killed before the student was written."""
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    for path in out.iterdir():
        if path.is_file():
            path.unlink()
    return out


def go_on(cache: Cache, out: Path, *more: str, **changes: Any) -> int:
    changes = {"max_steps": 4, "losses": ["kl=1", "feature=0.1"], **changes}
    return teachonce.main(flags(cache, out.parent, out.name, *(more or LAST), **changes))


def broken(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def names(trained: Path) -> list[str]:
    return sorted(path.name for path in (trained / "checkpoint-4").iterdir())


def test_what_a_checkpoint_holds(trained: Path) -> None:
    wanted = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"}
    assert {*wanted, "config.json", "tokenizer.json", "projections.safetensors", RECORD_NAME} <= set(
        names(trained)
    )
    assert "training_args.bin" not in names(trained)
    for folder in (trained / "checkpoint-2", trained / "checkpoint-4"):
        assert set(check_whole(folder).files) == {path.name for path in folder.iterdir()} - {RECORD_NAME}


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_no_part_that_is_broken_is_trusted(trained: Path, tmp_path: Path, how: str) -> None:
    """Every file of a checkpoint, the manifest among them."""
    for name in names(trained):
        copy = Path(shutil.copytree(trained / "checkpoint-4", tmp_path / name))
        broken(copy / name, how)
        with pytest.raises(Exception, match=name.replace(".", r"\.")):
            check_whole(copy)
    copy = Path(shutil.copytree(trained / "checkpoint-4", tmp_path / "more"))
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(Exception, match="not its own"):
        check_whole(copy)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("optimizer.pt", "gone"),
        ("rng_state.pth", "flipped"),
        ("model.safetensors", "cut"),
        (RECORD_NAME, "flipped"),
    ],
)
def test_the_newest_whole_one_is_taken_with_a_notice(
    causal_cache: Cache, trained: Path, stopped: Path, capfd: Any, name: str, how: str
) -> None:
    broken(stopped / "checkpoint-4" / name, how)
    assert go_on(causal_cache, stopped) == 0
    told = capfd.readouterr().err
    assert "left out: " in told
    assert f"checkpoint-4/{name}" in told
    assert "going on from" in told
    assert same(trained, stopped)


def test_a_damaged_one_that_was_named_or_is_the_only_one_is_an_error(
    causal_cache: Cache, stopped: Path, capfd: Any
) -> None:
    for step in (2, 4):
        broken(stopped / f"checkpoint-{step}" / "scheduler.pt", "flipped")
    named = ("--resume_from_checkpoint", str(stopped / "checkpoint-4"))
    for asked in (named, LAST, AUTO):
        assert go_on(causal_cache, stopped, *asked) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce")]
        assert "scheduler.pt" in line
    assert not (stopped / "model.safetensors").exists()


def test_one_of_an_earlier_release_is_refused_by_name(causal_cache: Cache, stopped: Path, capfd: Any) -> None:
    shutil.rmtree(stopped / "checkpoint-2")
    path = stopped / "checkpoint-4" / RECORD_NAME
    values = json.loads(path.read_text())
    for name in (
        "seal",
        "files",
        "step",
        "total",
        "saved",
        "finished",
        "evaluation_due",
        "run",
        "caches",
    ):
        del values[name]
    values |= {"cache": "c", "header_hash": "h", "version": 0, "batch_size": 8, "batches_a_step": 1}
    path.write_text(json.dumps(values))
    assert go_on(causal_cache, stopped, *AUTO) == 2
    assert "an earlier teachonce saved this" in capfd.readouterr().err


def test_newest_is_by_time_and_not_by_number(causal_cache: Cache, trained: Path, stopped: Path) -> None:
    """A run that went back to step 2 has its newest checkpoint there."""
    checkpoint = stopped / "checkpoint-2"
    manifest = check_whole(checkpoint)
    seal(checkpoint, replace(manifest, files={}))
    broken(stopped / "checkpoint-4" / "optimizer.pt", "flipped")
    assert go_on(causal_cache, stopped) == 0
    assert same(trained, stopped)


def test_checkpoints_of_another_run_are_refused(
    causal_cache: Cache, stopped: Path, tmp_path: Path, capfd: Any
) -> None:
    assert train(causal_cache, tmp_path, "other", max_steps=8, save_steps=8) == 0
    shutil.copytree(tmp_path / "other" / "checkpoint-8", stopped / "checkpoint-8")
    for asked in (LAST, AUTO):
        assert go_on(causal_cache, stopped, *asked) == 2
        assert "more than one run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type"),
        ({"seed": 7, "data_seed": 42}, "another seed"),
        ({"losses": ["kl=1", "feature=0.2"]}, "losses"),
        ({"temperature": 2}, "temperature"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"optim": "adamw_torch"}, "optim"),
        ({"bf16": True}, "bf16"),
        ({"model": {"intermediate_size": 32}}, "intermediate_size"),
        ({"model": {"hidden_act": "gelu"}}, "hidden_act"),
    ],
)
def test_what_decides_weights_is_the_checkpoints(
    causal_cache: Cache, stopped: Path, capfd: Any, changes: dict[str, Any], named: str
) -> None:
    assert go_on(causal_cache, stopped, *AUTO, **changes) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("teachonce")]
    assert "a run cannot be resumed with another" in line
    assert named in line


def test_another_cache_of_the_same_header(
    causal_cache: Cache, teacher_dir: str, stopped: Path, tmp_path: Path, capfd: Any
) -> None:
    from transformers import LlamaForCausalLM

    spec, examples = causal_spec(), random_examples(150, seed=8)
    model = LlamaForCausalLM.from_pretrained(teacher_dir).eval()
    other = write_cache(tmp_path / "other-cache", finished_rows(spec, causal_columns(model, examples, spec)))
    assert other.header.to_json()["hash"] == causal_cache.header.to_json()["hash"]
    assert go_on(other, stopped, *AUTO) == 2
    assert "another live_hash" in capfd.readouterr().err


def test_a_finished_run_has_nothing_left_to_do(
    causal_cache: Cache, trained: Path, tmp_path: Path, capfd: Any
) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    for asked in (LAST, AUTO):
        assert go_on(causal_cache, out, *asked) == 0
        assert "already finished, nothing to do: 4 steps" in capfd.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    broken(out / "model.safetensors", "flipped")
    assert go_on(causal_cache, out, *AUTO) == 0
    assert "written again" in capfd.readouterr().err
    assert same(trained, out)
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 4


def test_a_checkpoint_at_the_last_step_is_trained_no_further(
    causal_cache: Cache, trained: Path, stopped: Path
) -> None:
    assert go_on(causal_cache, stopped, "--resume_from_checkpoint", str(stopped / "checkpoint-4")) == 0
    assert same(trained, stopped)
    assert json.loads((stopped / "trainer_state.json").read_text())["global_step"] == 4


def test_a_run_may_be_made_longer_and_is_told_what_that_means(
    causal_cache: Cache, stopped: Path, capfd: Any
) -> None:
    assert go_on(causal_cache, stopped, *AUTO, max_steps=6, save_steps=3) == 0
    assert "was to take 4 steps and is now to take 6" in capfd.readouterr().err
    assert {path.name for path in stopped.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (2, 4, 6)}
    assert go_on(causal_cache, stopped, *AUTO, max_steps=3) == 2
    assert "beyond the last step" in capfd.readouterr().err


def test_auto_starts_and_last_does_not(causal_cache: Cache, tmp_path: Path, capfd: Any) -> None:
    assert train(causal_cache, tmp_path, "out", *LAST, max_steps=1) == 2
    assert "there is no checkpoint" in capfd.readouterr().err
    assert train(causal_cache, tmp_path, "out", *AUTO, max_steps=1) == 0


def test_a_student_is_no_checkpoint(causal_cache: Cache, trained: Path, tmp_path: Path, capfd: Any) -> None:
    assert train(causal_cache, tmp_path, "new", "--resume_from_checkpoint", str(trained)) == 2
    assert "finished student" in capfd.readouterr().err


def test_a_move_that_was_interrupted_is_completed(causal_cache: Cache, trained: Path, tmp_path: Path) -> None:
    """The finished student goes to its folder file by file: whatever is left of that, the next run completes."""
    whole = Path(shutil.copytree(trained, tmp_path / "out"))
    for number in (0, 1, 4, len(names(trained))):
        out = Path(shutil.copytree(whole, tmp_path / f"out-{number}"))
        temporary = out / ".teachonce-finished"
        temporary.mkdir()
        manifest = Manifest.load(out)
        assert manifest is not None
        for name in [*sorted(manifest.files)[number:], RECORD_NAME]:
            (out / name).rename(temporary / name)
        assert go_on(causal_cache, out, *AUTO) == 0
        assert same(trained, out)
        assert not temporary.exists()
    with pytest.raises(AssertionError):
        finish(tmp_path, tmp_path)


def test_names_in_a_record_stay_below_its_folder(trained: Path, tmp_path: Path) -> None:
    """Somebody else's record must not make us read or remove what is not the folder's."""
    copy = Path(shutil.copytree(trained / "checkpoint-4", tmp_path / "copy"))
    manifest = check_whole(copy)
    for name in ("../victim", "/etc/hostname"):
        replace(manifest, files={**manifest.files, name: "0" * 64}).save(copy)
        with pytest.raises(Exception, match="none of teachonce's"):
            check_whole(copy)


@pytest.mark.parametrize(("learning_rate", "best", "status"), [(1e-3, 4, 0), (3.0, 2, 2)])
def test_the_best_checkpoint_is_whole_too(
    causal_cache: Cache, tmp_path: Path, capfd: Any, learning_rate: float, best: int, status: int
) -> None:
    """The newest is trained again from the one before; an older one that is best is in no other place."""
    more = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    more |= {
        "max_steps": 4,
        "learning_rate": learning_rate,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    assert train(causal_cache, tmp_path, "out", **more) == 0
    out = tmp_path / "out"
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    state = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_global_step"] == best
    broken(out / f"checkpoint-{best}" / "model.safetensors", "flipped")
    for path in out.iterdir():
        if path.is_file():
            path.unlink()
    capfd.readouterr()
    assert train(causal_cache, tmp_path, "out", *AUTO, **more) == status
    told = capfd.readouterr().err
    assert f"checkpoint-{best}/model.safetensors" in told
    assert (out / "model.safetensors").exists() == (status == 0)
    assert status or same(whole, out)
