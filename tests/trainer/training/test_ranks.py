"""Two ranks are one: the same stream, the same loss, the same student as one rank that accumulates two batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from schemas.cache import Cache
from tests.trainer.tiny import STUDENT

ROOT = Path(__file__).parents[3]


def port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        found: int = listening.getsockname()[1]
        return found


def start(
    folder: Path,
    cache: Cache,
    out: str,
    accumulate: int,
    environment: dict[str, str],
    **changes: Any,
) -> subprocess.Popen[str]:
    flags = {
        "cache": changes.pop("caches", cache.storage.root),
        "student": str(folder / "student.json"),
        "output_dir": str(folder / out),
        "losses": ["kl=1.0", "feature=0.1"],
        "eval_fraction": 0.2,
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": accumulate,
        "logging_steps": 3,
        "eval_strategy": "epoch",
        "save_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        **changes,
    }
    if accumulate == 1:
        flags["ddp_backend"] = "gloo"
    path = folder / f"{out}.json"
    path.write_text(json.dumps({name: value for name, value in flags.items() if value is not None}))
    return subprocess.Popen(
        [sys.executable, "-m", "teachonce", "train", str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_ranks_are_one(causal_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "student.json").write_text(json.dumps(STUDENT | {"tie_word_embeddings": True}))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    runs = [
        start(tmp_path, causal_cache, "two", 1, shared | {"RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    runs.append(start(tmp_path, causal_cache, "one", 2, {}))
    ended = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], ended
    ours, theirs = (load_file(tmp_path / out / "model.safetensors") for out in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-3)
    logs = [
        json.loads((tmp_path / out / "trainer_state.json").read_text())["log_history"]
        for out in ("two", "one")
    ]
    compared = 0
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "kl", "feature", "eval_loss", "eval_kl"):
            if name in b:
                assert abs(a[name] - b[name]) <= 1e-4 * abs(b[name]), (name, a, b)
                compared += 1
    assert compared > 10


def test_a_run_of_two_ranks_goes_on_with_one_and_back(causal_cache: Cache, tmp_path: Path) -> None:
    """Steps 3 and 6 are saved; each part takes the steps that the other topology would have taken."""
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))

    def two(out: str, **changes: Any) -> None:
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
        ranks = [
            start(tmp_path, causal_cache, out, 1, shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, **changes)
            for r in range(2)
        ]
        ended = [rank.communicate(timeout=300) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], ended

    def one(out: str, **changes: Any) -> None:
        alone = start(tmp_path, causal_cache, out, 2, {}, **changes)
        assert (alone.communicate(timeout=300), alone.returncode)[1] == 0

    one("whole", num_train_epochs=2.0)
    two("first", max_steps=3)
    one("second", max_steps=6, resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-3"))
    two("third", num_train_epochs=2.0, resume_from_checkpoint=str(tmp_path / "second" / "checkpoint-6"))
    ours, theirs = (load_file(tmp_path / out / "model.safetensors") for out in ("third", "whole"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("tied", [False, True], ids=["two embeddings", "one embedding"])
def test_a_run_in_shards_is_a_run(causal_cache: Cache, tmp_path: Path, tied: bool) -> None:
    """FSDP2 over gloo, by the flag alone: the losses and weights of one rank; what is saved is the plain student.
    From a checkpoint in shards it goes on, to the last bit."""
    (tmp_path / "student.json").write_text(json.dumps(STUDENT | {"tie_word_embeddings": tied}))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    ranks = [
        start(tmp_path, causal_cache, "shards", 1, shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, fsdp=True)
        for r in range(2)
    ]
    alone = start(tmp_path, causal_cache, "one", 2, {})
    ended = [run.communicate(timeout=300) for run in (*ranks, alone)]
    assert [run.returncode for run in (*ranks, alone)] == [0, 0, 0], ended
    for name in ("model.safetensors", "projections.safetensors"):
        ours, theirs = (load_file(tmp_path / out / name) for out in ("shards", "one"))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, atol=1e-5, rtol=1e-3)
    sizes = [(tmp_path / out / "model.safetensors").stat().st_size for out in ("shards", "one")]
    assert sizes[0] == sizes[1], "the head of a tied student is not written beside its embedding"
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "shards", output_loading_info=True)
    assert not any(report.values())
    assert (tmp_path / "shards" / "checkpoint-3" / "optimizer.bin").exists(), "of FSDP, and not of DDP"
    shared["MASTER_PORT"] = str(port())
    told = {"fsdp": True, "resume_from_checkpoint": str(tmp_path / "shards" / "checkpoint-6")}
    ranks = [
        start(tmp_path, causal_cache, "again", 1, shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, **told)
        for r in range(2)
    ]
    ended = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], ended
    ours, theirs = (load_file(tmp_path / out / "model.safetensors") for out in ("again", "shards"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("fsdp", [None, True], ids=["DDP", "FSDP2"])
def test_stages_of_two_ranks_are_those_of_one(causal_cache: Cache, tmp_path: Path, fsdp: bool | None) -> None:
    """What a stage freezes has a gradient on every rank until each takes it away; in shards none may freeze."""
    (tmp_path / "student.json").write_text(json.dumps(STUDENT | {"tie_word_embeddings": False}))
    freezes = "" if fsdp else " freeze=lm_head.* freeze=model.layers.1.*"
    stages = [f"share=0.5 feature=1{freezes} learning_rate=2e-3", "kl=1"]
    told = {"losses": None, "stages": stages, "num_train_epochs": None, "max_steps": 6, "weight_decay": 0.1}
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    ranks = [
        start(
            tmp_path,
            causal_cache,
            "two",
            1,
            shared | {"RANK": str(r), "LOCAL_RANK": str(r)},
            fsdp=fsdp,
            **told,
        )
        for r in range(2)
    ]
    alone = start(tmp_path, causal_cache, "one", 2, {}, **told)
    ended = [run.communicate(timeout=300) for run in (*ranks, alone)]
    assert [run.returncode for run in (*ranks, alone)] == [0, 0, 0], ended
    for place in ("checkpoint-3", "."):
        for name in ("model.safetensors", "projections.safetensors"):
            ours, theirs = (load_file(tmp_path / out / place / name) for out in ("two", "one"))
            for key, value in theirs.items():
                torch.testing.assert_close(ours[key], value, atol=1e-5, rtol=1e-3)
