"""A shard is damaged in mid-epoch, and one rank of two comes to it: all end, with its one error, and nobody hangs."""

import json
import time
from pathlib import Path
from typing import Any

from schemas.cache import Cache
from tests.trainer.tiny import STUDENT
from tests.trainer.training.test_ranks import port, start

_SECONDS = 120.0


def flip(path: Path) -> None:
    """A bit in the middle of each of its row groups."""
    data = bytearray(path.read_bytes())
    for place in (len(data) // 6, len(data) // 2):
        data[place] ^= 1
    path.write_bytes(data)


def test_a_damaged_shard_ends_all_ranks(root: Path, good: Cache, tmp_path: Path) -> None:
    """Damaged is the last shard of the order of one rank, so that both take steps before."""
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    cache = Cache.open(str(root))
    bad = cache.shards[7].name
    flip(root / bad)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    told: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "save_total_limit": 30,
        "losses": ["kl=1"],
        "lanes": 2,
        "shuffle_row_groups": 2,
        "eval_strategy": "no",
        "ddp_timeout": 60,
    }
    ranks = [
        start(tmp_path, cache, "out", 1, shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, **told)
        for r in range(2)
    ]
    begun = time.monotonic()
    ended = [rank.communicate(timeout=_SECONDS) for rank in ranks]
    assert time.monotonic() - begun < _SECONDS
    assert all(rank.returncode not in (0, None) for rank in ranks), ended
    said = [line for _, err in ended for line in err.splitlines() if bad in line]
    assert len(said) == 1, ended
    assert said[0].startswith("teachonce train: ")
    assert f"{bad}, row group " in said[0]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert [*(tmp_path / "out").glob("checkpoint-*")], "it is found after the first step"
