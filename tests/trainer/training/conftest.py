"""A cache of many small row groups, the run that nothing disturbs, and a copy of the cache to break."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from schemas.cache import Cache
from schemas.rows.rows import Rows
from tests.s3_server import S3, serving
from tests.trainer.caches import write_cache
from tests.trainer.commanding import train
from tests.trainer.mid_epoch import TOLD


@pytest.fixture(scope="package")
def good(causal_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """20 shards of two row groups each."""
    rows = Rows.concatenate([*causal_cache.read_all()])
    return write_cache(tmp_path_factory.mktemp("many") / "cache", rows, group_rows=4, shards=20)


@pytest.fixture(scope="package")
def other(causal_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The rows in another order: of the same spec, whole, and with other shards."""
    rows = Rows.concatenate([*causal_cache.read_all()]).take(np.arange(150)[::-1].copy())
    return write_cache(tmp_path_factory.mktemp("many") / "other", rows, group_rows=4, shards=20)


@pytest.fixture(scope="package")
def whole(good: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(good, folder, "out", **TOLD) == 0
    return folder / "out"


@pytest.fixture
def root(good: Cache, other: Cache, whole: Path, tmp_path: Path) -> Path:
    """The cache again, to break; beside it another."""
    shutil.copytree(other.storage.root, tmp_path / "store" / "other")
    return Path(shutil.copytree(good.storage.root, tmp_path / "store" / "cache"))


@pytest.fixture
def s3(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A store over that folder."""
    with serving(root.parent) as (server, env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield server
