"""What a step holds does not depend on how it is cut: ranks, batches and accumulation may change, also in mid-run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import teachonce
from schemas.cache import Cache
from schemas.errors import UsageError
from schemas.policies import TopK
from schemas.storage.storage import Storage
from schemas.versions.commits import base_version, commit, record_after
from tests.trainer.caches import causal_columns, causal_spec, finished_rows, write_cache
from tests.trainer.outputs import same, weights
from tests.trainer.tiny import random_examples
from trainer import StudentArguments, TrainConfig, train
from trainer.checkpoints.records import Record

SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 16, "max_steps": 10, "save_steps": 1}
CUTS = [(16, 1), (8, 2), (2, 8)]


def close(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-3)


def test_a_run_goes_on_at_every_step_however_its_steps_are_cut(run: Callable[..., Path]) -> None:
    """Steps 8 and 16 begin epochs. The same cut gives the same weights to the last bit."""
    whole = run("whole", **SETTINGS)
    for step in range(1, 10):
        size, accumulation = CUTS[step % len(CUTS)]
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        checkpoint = str(whole / f"checkpoint-{step}")
        again = run(f"again{step}", resume_from_checkpoint=checkpoint, **(SETTINGS | cut))
        close(again, whole)
        assert same(again, whole) == (accumulation == 1)


@pytest.fixture(scope="module")
def other_cache(tmp_path_factory: pytest.TempPathFactory, teacher_dir: str) -> Cache:
    """60 other examples, of the same spec."""
    model = LlamaForCausalLM.from_pretrained(teacher_dir).eval()
    spec = causal_spec()
    rows = finished_rows(spec, causal_columns(model, random_examples(60, seed=9), spec))
    return write_cache(tmp_path_factory.mktemp("caches") / "other one", rows)


def together(tmp_path: Path, name: str, *caches: str, **changes: Any) -> Path:
    student = tmp_path / "student.json"
    config: dict[str, Any] = {"cache": list(caches), "student": str(student), "eval_fraction": 0.2}
    names = set(TrainConfig.__dataclass_fields__)
    arguments: dict[str, Any] = {
        "output_dir": str(tmp_path / name),
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_steps": 4.0,
        "max_steps": 12,
        "eval_strategy": "no",
    }
    config |= {key: value for key, value in changes.items() if key in names}
    arguments |= {key: value for key, value in changes.items() if key not in names}
    return Path(train(TrainConfig(**config), StudentArguments(**arguments)).output_dir)


@pytest.fixture
def both(run: Callable[..., Path], causal_cache: Cache, other_cache: Cache) -> tuple[str, str]:
    run("first", max_steps=1)  # writes student.json
    return causal_cache.storage.root, other_cache.storage.root


def test_two_caches_are_one_stream_that_resumes(both: tuple[str, str], tmp_path: Path) -> None:
    weighted = [f"{path}={weight}" for path, weight in zip(both, (0.7, 0.3), strict=True)]
    for caches in (both, weighted):
        for folder in ("whole", "again", "other"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        whole = together(tmp_path, "whole", *caches)
        again = together(tmp_path, "again", *caches, resume_from_checkpoint=str(whole / "checkpoint-4"))
        assert same(whole, again)
        record = Record.load(whole)
        assert record is not None
        assert [cache["path"] for cache in record.caches] == list(both)
        assert [cache["weight"] for cache in record.caches] == (
            [0.7, 0.3] if caches is weighted else [None] * 2
        )
        alone = together(tmp_path, "other", both[0])
        assert not same(whole, alone)
        with pytest.raises(UsageError, match=r"number of caches.*expected 2, got 1"):
            together(tmp_path, "third", both[0], resume_from_checkpoint=str(whole / "checkpoint-4"))
    changed = [f"{both[0]}=0.8", f"{both[1]}=0.2"]
    with pytest.raises(UsageError, match=r"another weight.*expected 0\.7, got 0\.8"):
        together(tmp_path, "third", *changed, resume_from_checkpoint=str(whole / "checkpoint-4"))


def test_the_command_takes_several_caches(both: tuple[str, str], tmp_path: Path, capfd: Any) -> None:
    told = [
        "--student",
        str(tmp_path / "student.json"),
        "--use_cpu",
        "--disable_tqdm",
        "true",
        "--max_steps",
        "2",
    ]
    first, second = (f"{path}={weight}" for path, weight in zip(both, (3, 1), strict=True))
    apart = [*told, "--output_dir", str(tmp_path / "apart"), "--cache", first, "--cache", second]
    assert teachonce.main(["train", *apart]) == 0
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"cache": {both[0]: 3, both[1]: 1}}))
    assert teachonce.main(["train", str(file), *told, "--output_dir", str(tmp_path / "file")]) == 0
    assert same(tmp_path / "apart", tmp_path / "file")
    file.write_text(json.dumps({"cache": both[1]}))
    assert teachonce.main(["train", str(file), *told, "--output_dir", str(tmp_path / "one")]) == 0
    capfd.readouterr()


@pytest.mark.parametrize(
    ("told", "named"),
    [
        (["a=1", "b"], "for all alike"),
        (["a=0", "b=1"], "weights above 0"),
        (["a=inf", "b=1"], "weights above 0"),
        (["a", "a"], "twice"),
        ([], "nothing"),
    ],
)
def test_caches_that_cannot_be_read(told: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        TrainConfig(cache=told, student="s")


def test_a_path_may_hold_an_equals_sign() -> None:
    assert TrainConfig(cache="caches/date=2024", student="s").sources == {"caches/date=2024": None}
    assert TrainConfig(cache=["x=y", "z"], student="s").sources == {"x=y": None, "z": None}


def test_caches_of_another_policy_are_no_stream(
    both: tuple[str, str], tmp_path: Path, teacher_dir: str
) -> None:
    model = LlamaForCausalLM.from_pretrained(teacher_dir).eval()
    spec = causal_spec(keep=TopK(k=8))
    rows = finished_rows(spec, causal_columns(model, random_examples(20, seed=2), spec))
    other = write_cache(tmp_path / "eight", rows)
    with pytest.raises(UsageError, match=r"cannot be one stream.*--keep"):
        together(tmp_path, "out", both[0], other.storage.root)


def test_lanes_that_the_ranks_cannot_share(both: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--lanes must be at least 1"):
        TrainConfig(cache="c", student="s", lanes=0)
    with pytest.raises(UsageError, match="cache_version is that of one cache"):
        TrainConfig(cache=list(both), student="s", cache_version=0)


def test_new_data_only_on_request(both: tuple[str, str], tmp_path: Path) -> None:
    grown, other = shutil.copytree(both[0], tmp_path / "grown"), Cache.open(both[1])
    settings: dict[str, Any] = {"max_steps": 8, "save_steps": 4.0}
    first = together(tmp_path, "first_run", str(grown), **settings)
    storage = Storage.at(grown)
    base = base_version(storage)
    for shard in other.shards:
        storage.put(shard.name, other.storage.read(shard.name))
    record = record_after(
        base,
        list(other.shards),
        other.totals,
        run="more",
        header_hash=base.record.header_hash if base else "",
    )
    commit(storage, other.spec, base, list(other.shards), record)
    resume = {"resume_from_checkpoint": str(first / "checkpoint-4")}
    assert same(first, together(tmp_path, "second", str(grown), **settings, **resume))
    with pytest.raises(UsageError, match=r"another version.*expected 0, got 1"):
        together(tmp_path, "third", str(grown), cache_version=1, **settings, **resume)
    more = together(tmp_path, "fourth", str(grown), allow_new_data=True, **settings, **resume)
    record_of = Record.load(more)
    assert record_of is not None
    assert record_of.caches[0]["version"] == 1
    assert not same(first, more)
    assert np.isfinite(sum(float(value.sum()) for value in weights(more).values()))
