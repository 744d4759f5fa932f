"""A space file over the tiny cache."""

from pathlib import Path

import pytest

from schemas.cache import Cache
from tests.trainer.sweep.sweeping import Sweeping


@pytest.fixture
def sweeping(causal_cache: Cache, tmp_path: Path) -> Sweeping:
    return Sweeping(causal_cache, tmp_path)
