"""`docs/cost.md` holds what the code reckons from measured figures."""

import pytest

from pipelines.config import PrecomputeConfig
from tests.docs import cost_page


def test_the_page_is_as_the_code_writes_it():
    text = cost_page.PAGE.read_text(encoding="utf-8")
    assert cost_page.written(text) == text, "python -m tests.docs.cost_page"
    assert cost_page.written(text.replace("| 10^9 |", "| 10^8 |")) == text, "a wrong table is seen"


def test_figures_are_those_that_were_measured():
    assert cost_page.bytes_a_token("threshold:1/32") == pytest.approx(20.7 + 2.95 + 1.45)
    assert pytest.approx(150_000 / 560 / 1.048) == cost_page.ONE_CORE
    assert pytest.approx(50_000 * 0.967) == cost_page.FAST


def test_sizes_by_hand():
    found = cost_page.expected("threshold:1/32", 10**9)
    assert found.shards == -(-(10**9) // 2**20) == 954
    assert found.size_bytes == pytest.approx(25.1e9, rel=1e-3)
    assert found.row_groups == pytest.approx(10**9 / 2**15 + 954, rel=1e-3)
    assert (PrecomputeConfig.unit_tokens, PrecomputeConfig.row_group_tokens) == (2**20, 2**15)
    told = cost_page.cost("threshold:1/32", 10**9, 45_000.0)
    assert told.write_requests == 954 * (6 + 2), "25.1 MiB is six parts of 5 MiB"
    assert told.accelerator_euro == pytest.approx(2 * 10**9 / 45_000 / 3600)
