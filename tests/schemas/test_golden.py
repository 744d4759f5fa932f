"""Caches of every format version ever released open, whole, and decode to the values that they always did."""

import json
from pathlib import Path

import pytest

from schemas import Cache
from tests.golden.make import FOLDER, decoded

VERSIONS = sorted(path.stem for path in FOLDER.glob("v*.json"))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_cache_decodes_to_the_same_values(version):
    cache = Cache.open(FOLDER / version)
    values = json.loads((FOLDER / f"{version}.json").read_text())
    assert len(values) == 8
    assert decoded(cache) == values


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_cache_is_whole(version):
    assert Cache.open(FOLDER / version).verify().examples == 8
    assert Cache.open(FOLDER / version, 0).verify().examples == 5
    assert sum(path.stat().st_size for path in Path(FOLDER / version).rglob("*") if path.is_file()) < 100_000


def test_there_is_one():
    assert VERSIONS == ["v0"]
