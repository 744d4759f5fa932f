"""The tables of `docs/cost.md`, reckoned by the code from figures that were measured: `python -m tests.docs.cost_page`.

Each figure is read where it is told: bytes and rates in `benchmarks/README.md`, requests in `pipelines/job/cost.py`,
whose tests count them at a store.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.config import PrecomputeConfig
from pipelines.job.cost import Cost, Expected, Prices, cost_of, expect
from pipelines.scoring.sample import Measured

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cost.md"
FIGURES = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")

CODEC = FIGURES.partition("| policy | entries | B entries |")[2].partition("\n\n")[0]

SIZES = tuple(10**power for power in (9, 10, 11, 12))
POLICIES = (
    "threshold:1/8",
    "threshold:1/16",
    "threshold:1/32",
    "threshold:1/64",
    "top_p:0.99,k=64",
    "top_k:64",
)
DEFAULT = "threshold:1/32"
EXAMPLE_TOKENS = 500
"""Of an example: with more than a few a shard, how long they are decides nothing here."""
PRICES = {"price_per_hour": 2.0, "storage_price": 0.02, "write_price": 0.005, "read_price": 0.0004}
"""Round numbers, of nobody's list."""


def figure(pattern: str, text: str = FIGURES) -> float:
    """A number that `benchmarks/README.md` tells, once."""
    (found,) = re.findall(pattern, text)
    return float(found.replace(",", ""))


def policy_figures(policy: str) -> tuple[float, float]:
    """Kept entries and their bytes, a position, by the codec's table."""
    line = rf"(?m)^\| {re.escape(policy)} \| "
    return figure(rf"{line}([\d.]+) \|", CODEC), figure(rf"{line}[\d.]+ \| ([\d.]+) \|", CODEC)


BESIDE = figure(r"scalars ([\d.]+) B \(aim: 3\)") + figure(r"`input_ids` ([\d.]+) B\.")
"""Bytes a token of what stands beside the entries."""
ONE_CORE = (
    figure(r"--tokens (150000) ") / figure(r"\((?:[^()]|\([^()]*\))*?(560) s of forward on one core") / 1.048
)
FAST = figure(r"whose answers arrive at ([\d,]+) tokens a second") * figure(r"it\s+was\s+busy\s+([\d.]+)")
RATES = {"one core, SmolLM2-135M": ONE_CORE, "answers at 50,000 a second": FAST}


def bytes_a_token(policy: str) -> float:
    return policy_figures(policy)[1] + BESIDE


def expected(policy: str, tokens: int) -> Expected:
    """What a plan would expect of so many tokens, if they are like those that were measured."""
    sample = 2**20
    entries = round(policy_figures(policy)[0] * sample)
    numbers = dict.fromkeys(Measured._fields, 1.0) | {
        "tokens": sample,
        "examples": sample // EXAMPLE_TOKENS,
        "entries": entries,
        "row_groups": 10**9,  # a sample says how many at most; here the size of a row group decides
        "row_group_bytes": round(bytes_a_token(policy) * sample),
        "footer_bytes": 0,
    }
    unit_tokens, row_group_tokens = PrecomputeConfig.unit_tokens, PrecomputeConfig.row_group_tokens
    return expect(
        Measured(**numbers),
        tokens=tokens,
        examples=tokens // EXAMPLE_TOKENS,
        num_units=-(-tokens // unit_tokens),
        workers=1,
        row_group_tokens=row_group_tokens,
        overhead_seconds=0.0,
        epochs=1,
    )


def cost(policy: str, tokens: int, rate: float) -> Cost:
    return cost_of(
        expected(policy, tokens), tokens=tokens, epochs=1, prices=Prices(teacher_rate=rate, **PRICES)
    )


def short(number: float) -> str:
    """Three digits that count."""
    return f"{float(f'{number:.3g}'):,.10g}"


def amount(number_of_bytes: float) -> str:
    unit, name = next((10**p, n) for p, n in ((12, "TB"), (9, "GB")) if number_of_bytes >= 10**p)
    return f"{short(number_of_bytes / unit)} {name}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join([row(*head), "|" + "---|" * len(head), *(row(*one) for one in rows)])


def tables() -> dict[str, str]:
    """Every table of the page by its name."""
    sizes = tuple(f"10^{len(str(size)) - 1}" for size in SIZES)
    by_bytes = [
        (policy, short(bytes_a_token(policy)), *(amount(expected(policy, size).size_bytes) for size in SIZES))
        for policy in POLICIES
    ]
    every = [(expected(DEFAULT, size), cost(DEFAULT, size, FAST)) for size in SIZES]
    requests = [
        ("shards", *(f"{found.shards:,}" for found, _ in every)),
        ("row groups", *(f"{found.row_groups:,}" for found, _ in every)),
        ("writes of shards", *(f"{told.write_requests:,}" for _, told in every)),
        ("reads an epoch", *(f"{told.read_requests:,}" for _, told in every)),
    ]
    hours = [
        (f"measured: {name}", short(rate), *(short(size / rate / 3600) for size in SIZES))
        for name, rate in RATES.items()
    ]
    hours += [
        ("if yours has", short(rate), *(short(size / rate / 3600) for size in SIZES))
        for rate in (1e3, 1e4, 1e5)
    ]
    euro = [
        ("the teacher's hours", *(short(told.accelerator_euro or 0) for _, told in every)),
        ("writes", *(short(told.write_euro or 0) for _, told in every)),
        ("storage, a month", *(short(told.storage_euro_a_month or 0) for _, told in every)),
        ("a student's epoch: reads", *(short(told.read_euro or 0) for _, told in every)),
    ]
    return {
        "bytes": table(("`--keep`", "B a token", *sizes), by_bytes),
        "requests": table((f"`{DEFAULT}`", *sizes), requests),
        "hours": table(("rate", "tokens/s", *sizes), hours),
        "euro": table(("euro", *sizes), euro),
    }


def written(text: str) -> str:
    """The page with its tables as the code reckons them."""
    for name, content in tables().items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{content}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
