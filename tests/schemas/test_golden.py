"""Caches of every format version ever released open, whole, and decode to the values that they always did."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from schemas import Cache
from schemas.policies import parse_keep
from schemas.tasks import TASKS
from tests.golden.make import GOLDEN, ROOT, decoded

CACHES = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob("v*/*.json"))
FROZEN = {
    "v1": "f72f43bed849d6d3cc54816e3df335d08c21db98143f596b8b70c4965de25284",
    "v1-masked-lm": "1a2e0aae06d457e26287eda66f22783301302619b8c95b6bf33b2d5d0b0c5c25",
    "v1-feature-extraction": "aa4754b5095268a5b2bb17411687a5b802d1b6af5a81f3e55abcd43fa4e862b8",
    "v1-question-answering": "543fdd71f29e86968f7a82b292db0dfce939551005c65a2ab02eba67e3aa00a0",
    "v1-token-classification": "bbd589cb1af29db7a05caf8e3114300ed9d77ce2c807fab6631cdc02b05f8810",
    "v1-generated": "e7d11363ecf4070864ceb95e74376a73359645d5165750e838102fbf9b4712d3",
    "v1-pair-score": "717eda7a02707960bc094c73ce323bd76f34b9de75204b83ab9c3c085a915007",
    "v1-image-classification": "34c218bfd83ead3730957a1387197517244776ae9a9017ffee71250dc95b0697",
    "v1-image-feature-extraction": "b5584fe37232ed0cf2e3f762ee676bf3176ab5284396d3ca4d19d8998a058453",
    "v1-object-detection": "a6cebf6224fee89c945390c4b31db8c88f61b962ef8a43996b8e36112591a8cb",
    "v1-seq2seq-lm": "03d2eb33be0b229b0536aee11b0e04fdcaba7fa9240f9219269cb159934aadaa",
}
"""A hash over every file of a version's golden caches."""


def hash_of(folder):
    state = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        state.update(f"{path.relative_to(folder).as_posix()}\n{len(data)}\n".encode() + data)
    return state.hexdigest()


@pytest.mark.parametrize("name", CACHES)
def test_a_golden_cache_decodes_to_the_same_values(name):
    found = decoded(Cache.open(ROOT / name))
    expected = json.loads((ROOT / f"{name}.json").read_text(encoding="utf-8"))
    assert len(expected) == 6
    for row, right in zip(json.loads(json.dumps(found)), expected, strict=True):
        for one, other in zip(row.pop("weights", []), right.pop("weights", []), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)  # an exponential's last bit is the machine's
        assert row == right


@pytest.mark.parametrize("name", CACHES)
def test_a_golden_cache_is_whole(name):
    assert Cache.open(ROOT / name).verify().examples == 6
    assert Cache.open(ROOT / name, 0).verify().examples == 4


def test_every_policy_score_and_task_has_one():
    assert sorted(GOLDEN) == CACHES
    specs = [Cache.open(ROOT / name).spec for name in CACHES]
    assert {type(spec.keep) for spec in specs} == {
        type(parse_keep(text)) for text in ("all", "top_k:1", "top_p:0.5,k=1", "threshold:0.5", "sampled:1")
    }
    assert {spec.score for spec in specs} == {"softmax", "sigmoid", "identity", "none"}
    assert {spec.task for spec in specs} == set(TASKS)
    assert {spec.own_logits for spec in specs} == {True, False}
    assert {len(spec.temperatures) for spec in specs} >= {1, 3}


@pytest.mark.parametrize("version", sorted({name.partition("/")[0] for name in CACHES}))
def test_golden_caches_are_those_that_were_released(version):
    """Should this fail, put the files back: they stand for the caches that people have."""
    assert hash_of(ROOT / version) == FROZEN[version]


def test_golden_caches_are_never_made_again():
    before = hash_of(ROOT / "v1")
    command = [sys.executable, "-m", "tests.golden.make"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parents[1])
    assert done.returncode == 1
    assert "never made again" in done.stderr
    assert hash_of(ROOT / "v1") == before
