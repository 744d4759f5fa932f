"""What a run would cost, reckoned from a sample, in the units that are paid for: hours, bytes, requests and euro.

**When is the cache cheaper?** An online teacher runs forward in each epoch of each student; the cache costs its job
once, and decoding in each epoch. With J the job's seconds, f the teacher's measured seconds a token, r the measured
seconds to decode a token, T the new tokens and E the epochs, n students are cheaper from the cache when

    J + n E r T < n E f T

so the smallest such n is floor(J / (E (f - r) T)) + 1; where r >= f there is none. Seconds are of one teacher and one
decoding process; a student's own forward and backward cost the same on both sides.

**Requests** are those of shards, which grow with the corpus; a commit adds the same few for any number of shards. A
shard of up to `PART_BYTES` is one write; a larger one goes up in parts, beside two requests that begin and end it. A
student's epoch reads each row group once. A reader holds the footers of `FOOTERS_HELD` shards: up to so many shards
each footer is read once a run; of more it may be read again before each row group, and that is what is reckoned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pipelines.scoring.sample import Measured
from schemas.errors import UsageError
from schemas.shards.group_counts import FOOTERS_HELD
from schemas.shards.rewrite import ENTRIES_A_TOKEN

PART_BYTES = 5 * 2**20
"""Above so many bytes obstore puts an object in parts of so many."""
_HIGHEST_PRICE = 1e6


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What is paid for, in euro; None where it is not said. Refuses what would give no number."""

    teacher_rate: float | None = None
    """Tokens a second of one accelerator; None: as the sample had on this machine."""
    price_per_hour: float | None = None
    """Of one accelerator, with the machine around it."""
    storage_price: float | None = None
    """A month of 10^9 bytes."""
    write_price: float | None = None
    """A thousand writes of an object store (PUT, POST)."""
    read_price: float | None = None
    """A thousand reads (GET)."""

    def __post_init__(self) -> None:
        for name, value in ((one.name, getattr(self, one.name)) for one in fields(self)):
            if name == "teacher_rate" and value is not None and not 0 < value < math.inf:
                raise UsageError("--teacher_rate must be a number above 0", got=value)
            if name != "teacher_rate" and value is not None and not 0 <= value <= _HIGHEST_PRICE:
                raise UsageError(f"--{name} must be from 0 to {_HIGHEST_PRICE:,.0f} euro", got=value)


NO_PRICES = Prices()


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the new examples would cost, reckoned from the sample; all but `wall_seconds` of one worker."""

    shards: int
    row_groups: int
    size_bytes: int
    wall_seconds: float
    """Reading the corpus and loading the teacher as now, and then scoring, by as many workers as were asked for."""
    tokens_per_second: float
    """Of the teacher's step: collating, forward, encoding, sealing."""
    teacher_tokens_per_second: float
    """Of the forward alone."""
    decode_tokens_per_second: float
    students: int | None
    """From so many students on the cache is cheaper than an online teacher; None: never."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the new tokens cost. Euro are None where no price was given."""

    teacher_rate: float
    """Tokens a second of one accelerator, as given or as the sample had here."""
    accelerator_hours: float
    """Of the teacher's step, by that rate, however many share them."""
    write_requests: int
    """Of the new shards."""
    read_requests: int
    """Of one student, in all its epochs."""
    accelerator_euro: float | None
    write_euro: float | None
    read_euro: float | None
    storage_euro_a_month: float | None


def cost_of(expected: Expected, *, tokens: int, epochs: int, prices: Prices) -> Cost:
    """What so many new tokens cost by these prices."""
    rate = prices.teacher_rate or expected.tokens_per_second
    hours = tokens / rate / 3600
    writes = write_requests(expected.size_bytes, expected.shards)
    reads = read_requests(expected.shards, expected.row_groups, epochs)
    return Cost(
        teacher_rate=rate,
        accelerator_hours=hours,
        write_requests=writes,
        read_requests=reads,
        accelerator_euro=_euro(hours, prices.price_per_hour),
        write_euro=_euro(writes / 1000, prices.write_price),
        read_euro=_euro(reads / 1000, prices.read_price),
        storage_euro_a_month=_euro(expected.size_bytes / 1e9, prices.storage_price),
    )


def write_requests(size_bytes: int, shards: int) -> int:
    """Requests that put so many shards of together so many bytes."""
    each = size_bytes / shards
    return shards * (1 if each <= PART_BYTES else math.ceil(each / PART_BYTES) + 2)


def read_requests(shards: int, row_groups: int, epochs: int) -> int:
    """Requests by which one student reads so many epochs."""
    footers = shards if shards <= FOOTERS_HELD else epochs * row_groups
    return epochs * row_groups + footers


def _euro(amount: float, price: float | None) -> float | None:
    return None if price is None else amount * price


def expect(
    measured: Measured,
    *,
    tokens: int,
    examples: int,
    num_units: int,
    workers: int,
    row_group_tokens: int,
    overhead_seconds: float,
    epochs: int,
) -> Expected:
    """What all new examples cost, if they are like the sample.

    Ids are hashes, so that of u units with n examples about u (1 - (1 - 1/u)^n) have any, and become shards.
    """
    scale = tokens / measured.tokens
    shards = max(1, round(num_units * (1 - (1 - 1 / num_units) ** examples)))
    weight = scale * max(measured.tokens, measured.entries / ENTRIES_A_TOKEN)
    # A sample smaller than a row group has too many; one of whole units has as many as the run.
    row_groups = min(scale * measured.row_groups, shards + weight / row_group_tokens)
    size = scale * measured.row_group_bytes + row_groups * measured.footer_bytes / measured.row_groups
    unit_seconds = scale * measured.unit_seconds
    busiest = -(-shards // workers) / shards  # the share of the worker that has the most units
    forward, replay = scale * measured.teacher_seconds, scale * measured.decode_seconds
    return Expected(
        shards=shards,
        row_groups=max(shards, round(row_groups)),
        size_bytes=round(size),
        wall_seconds=overhead_seconds + busiest * unit_seconds,
        tokens_per_second=measured.tokens / measured.unit_seconds,
        teacher_tokens_per_second=measured.tokens / measured.teacher_seconds,
        decode_tokens_per_second=measured.tokens / measured.decode_seconds,
        students=break_even(
            overhead_seconds + unit_seconds, forward_seconds=forward, replay_seconds=replay, epochs=epochs
        ),
    )


def break_even(
    job_seconds: float, *, forward_seconds: float, replay_seconds: float, epochs: int
) -> int | None:
    """The smallest n with job + n epochs replay < n epochs forward; None where there is none."""
    saved = epochs * (forward_seconds - replay_seconds)
    return math.floor(job_seconds / saved) + 1 if saved > 0 else None
