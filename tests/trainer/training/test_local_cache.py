"""`--local_cache`: a second run, and a second epoch, ask the store for no shard, and come to the same weights."""

from pathlib import Path

import pytest

from schemas.cache import Cache
from tests.s3_server import serving
from tests.trainer.commanding import train
from tests.trainer.outputs import same


def test_runs_share_what_was_read(
    causal_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(causal_cache.storage.root)
    with serving(root.parent) as (s3, env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        remote, copies = f"s3://bucket/{root.name}", ("--local_cache", str(tmp_path / "copies"))
        assert train(causal_cache, tmp_path, "local", max_steps=20) == 0
        assert train(remote, tmp_path, "first", *copies, max_steps=20) == 0
        assert s3.shards
        assert len(s3.shards) == len(set(s3.shards)), "also where a second epoch begins"
        s3.asked.clear()
        assert train(remote, tmp_path, "second", *copies, max_steps=20) == 0
        assert s3.shards == []
    assert same(tmp_path / "local", tmp_path / "first")
    assert same(tmp_path / "local", tmp_path / "second")
