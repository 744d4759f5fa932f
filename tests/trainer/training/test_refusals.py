"""What cannot go well is said before any work, in one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.cache import Cache
from schemas.errors import NoCacheError, StudentError, UsageError
from tests.trainer.outputs import same
from trainer import StudentArguments, TrainConfig, train
from trainer.checkpoints.records import Manifest, Record


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data_seed": 5}, "another seed.*expected 42, got 5"),
        ({"per_device_train_batch_size": 4}, "another global_batch.*expected 8, got 4"),
        ({"gradient_accumulation_steps": 2}, "another global_batch.*expected 8, got 16"),
        ({"lanes": 4}, "another lanes.*expected 8, got 4"),
        ({"eval_fraction": 0.3}, "another eval_fraction"),
        ({"shuffle_row_groups": 2}, "another shuffle_row_groups"),
    ],
)
def test_a_resume_onto_another_stream(run: Callable[..., Path], changes: dict[str, Any], named: str) -> None:
    checkpoint = run(max_steps=2, save_steps=2) / "checkpoint-2"
    with pytest.raises(UsageError, match=named):
        run("again", resume_from_checkpoint=str(checkpoint), **changes)


def test_a_resume_on_another_cache(run: Callable[..., Path], class_cache_of: Callable[..., Cache]) -> None:
    checkpoint = run(max_steps=2, save_steps=2) / "checkpoint-2"
    with pytest.raises(UsageError, match="another header_hash"):
        run("again", cache=class_cache_of(), resume_from_checkpoint=str(checkpoint))


def test_a_resume_takes_the_version_of_its_checkpoint(run: Callable[..., Path]) -> None:
    folder = run(max_steps=2, save_steps=2)
    checkpoint = folder / "checkpoint-2"
    manifest = Manifest.load(checkpoint)
    assert manifest is not None
    replace(
        manifest, record=replace(manifest.record, caches=[manifest.record.caches[0] | {"version": 7}])
    ).save(checkpoint)
    with pytest.raises(NoCacheError, match="7"):
        run("again", resume_from_checkpoint=str(checkpoint))
    with pytest.raises(UsageError, match="another version"):
        run("again", resume_from_checkpoint=str(checkpoint), cache_version=0)


def test_a_checkpoint_of_a_release_without_row_counts(run: Callable[..., Path]) -> None:
    checkpoint = run(max_steps=2, save_steps=2) / "checkpoint-2"
    manifest = Manifest.load(checkpoint)
    assert manifest is not None
    (cache,) = manifest.record.caches
    old = {name: value for name, value in cache.items() if name != "row_counts"}
    replace(manifest, record=replace(manifest.record, caches=[old])).save(checkpoint)
    told = r"an earlier teachonce saved this.*row counts.*checkpoint-2\. Start a new run.*--student.*--allow_new_data"
    with pytest.raises(UsageError, match=told):
        run("again", resume_from_checkpoint=str(checkpoint))
    again = run("new", resume_from_checkpoint=str(checkpoint), allow_new_data=True, max_steps=3)
    record = Record.load(again)
    assert record is not None
    assert record.caches[0]["row_counts"] == cache["row_counts"], "from now on it is known"


@pytest.mark.parametrize("where", ["last", "/nowhere/checkpoint-3"])
def test_a_resume_from_nothing(run: Callable[..., Path], where: str) -> None:
    with pytest.raises(UsageError, match=r"no.*checkpoint"):
        run(resume_from_checkpoint=where)


def test_a_resume_from_what_is_not_ours(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"teachonce\.json"):
        run(resume_from_checkpoint=str(tmp_path))
    (tmp_path / "teachonce.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        run(resume_from_checkpoint=str(tmp_path))


def test_last_is_the_newest_checkpoint(run: Callable[..., Path]) -> None:
    settings: dict[str, Any] = {"save_steps": 2, "lr_scheduler_type": "constant", "warmup_steps": 0.0}
    run(max_steps=4, **settings)
    again = run(max_steps=6, resume_from_checkpoint="last", **settings)
    assert same(again, run("whole", max_steps=6, **settings))


def test_no_cache(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(NoCacheError, match="no cache"):
        train(
            TrainConfig(cache=str(tmp_path / "none"), student="x.json"),
            StudentArguments(output_dir=str(tmp_path / "out"), use_cpu=True),
        )


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("dataloader_num_workers", 2),
        ("label_smoothing_factor", 0.1),
        ("auto_find_batch_size", True),
    ],
)
def test_flags_without_a_meaning_here(run: Callable[..., Path], flag: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{flag} has no place here"):
        run(**{flag: value})


def test_two_gpus_in_one_process(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StudentArguments, "n_gpu", 2)
    with pytest.raises(UsageError, match="torchrun --nproc_per_node 2 -m teachonce train"):
        run()


def test_labels_that_are_not_there(run: Callable[..., Path], class_cache_of: Callable[..., Cache]) -> None:
    with pytest.raises(StudentError, match="labels"):
        run(cache=class_cache_of(labelled=False), model={"model_type": "bert"}, losses=["ce=1"])


def test_nothing_held_out_to_evaluate_on(run: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="--eval_fraction"):
        run(eval_fraction=0.0, eval_strategy="epoch")


def test_nothing_left_to_train_on(run: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="no row is left"):
        run(eval_fraction=1 - 2**-53)


@pytest.mark.parametrize(("name", "value"), [("eval_fraction", 1.0), ("shuffle_row_groups", 0)])
def test_settings_of_nonsense(run: Callable[..., Path], name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{name}.*got {value}"):
        run(**{name: value})
