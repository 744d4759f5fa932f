"""Students with LoRA adapters: bases, and a run that trains them."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import teachonce
from schemas.cache import Cache
from trainer.students.adapters import save_adapter
from trainer.students.lora import Lora
from trainer.students.student import Student
from trainer.students.students import open_student, open_trained

LORA = ["r=4", "alpha=16", "dropout=0.1", "targets=q_proj,v_proj,down_proj"]


def words(cache: Cache, base: str, out: Path, **changes: Any) -> list[str]:
    """`teachonce train --lora` of six steps."""
    told: dict[str, Any] = {
        "cache": cache.storage.root,
        "student": base,
        "output_dir": out,
        "lora": LORA,
        "losses": ["kl=1", "feature=0.1"],
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "eval_fraction": 0.2,
        "learning_rate": 0.01,
        "logging_steps": 2,
        "save_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    } | changes
    found = ["train"]
    for name, value in told.items():
        if value is not None:
            found += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return found


def train(cache: Cache, base: str, out: Path, **changes: Any) -> int:
    return teachonce.main(words(cache, base, out, **changes))


def opened(base: str, cache: Cache, *told: str, **more: Any) -> Student:
    return open_student(base, cache, lora=Lora.parse(told or LORA), **more)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = saved(a), saved(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def written(student: Student, place: Path) -> Path:
    place.mkdir()
    save_adapter(student.adapter, place)
    student.tokenizer.save_pretrained(place)
    return place


def changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a)
    )


def opens_as_peft_does(cache: Cache, base: str, out: Path) -> None:
    """Asserts that a classifier with adapters answers as plain transformers and PEFT make it of the same folder."""
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(plain, str(out)).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours = open_trained(str(out), cache).model(input_ids=ids).logits
        torch.testing.assert_close(ours, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
