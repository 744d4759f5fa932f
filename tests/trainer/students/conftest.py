"""A base, and an adapter of it."""

from pathlib import Path

import pytest
import torch

from schemas.cache import Cache
from tests.trainer.lora import opened, written
from tests.trainer.tiny import make_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_llama(tmp_path_factory.mktemp("models") / "base", seed=1)


@pytest.fixture
def folder(base: str, causal_cache: Cache, tmp_path: Path) -> Path:
    """A saved adapter that says something."""
    student = opened(base, causal_cache)
    with torch.no_grad():
        for name, weight in student.adapter.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    return written(student, tmp_path / "adapter")
