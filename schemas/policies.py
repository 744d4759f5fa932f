"""What is kept of a position's distribution: one frozen value of the cache, written `--keep` on the command line.

* `all`            every score; the default for classes
* `top_k:K`        the K largest
* `top_p:P,k=K`    the smallest set with mass P, at most K
* `threshold:TAU,k=K`  the K largest (1 if not said) and every id with p >= TAU, exactly; a rarer one is drawn with
  probability p / TAU, and then weighs TAU: the weights' expectation is the whole distribution. The default for a
  vocabulary, with TAU = 1/32: `docs/quality.md`
* `sampled:N`      N draws with replacement, each weighing 1 / N (RS-KD: arXiv:2503.16870)

The first three are biased: what is not kept is one tail bucket. The last two are unbiased, and have no tail.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from schemas.errors import UsageError, nearest

_FORMER_WHOLE = 4096
MIN_TAU = 2.0**-40
"""So that counts by 1 / tau stay whole numbers; far below 1 / V nothing is left to draw."""
MAX_DRAWS = 2**16
_MOST_CHARS = 100
_COUNT = re.compile(r"[0-9]{1,10}")
_NUMBER = re.compile(r"[0-9.]{1,40}(?:[eE][+-]?[0-9]{1,3})?|[0-9]{1,20}/0*[1-9][0-9]{0,19}")
"""What is no longer than a policy needs: `1e999999999` as a fraction would fill any memory."""


@dataclass(frozen=True, kw_only=True)
class KeepAll:
    """Every score of every position."""

    def __str__(self) -> str:
        return "all"


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The `k` largest scores; ties go to the lower id."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"top_k keeps at least one entry, but got k={self.k}")

    def __str__(self) -> str:
        return f"top_k:{self.k}"


@dataclass(frozen=True, kw_only=True)
class TopP:
    """The smallest set of largest scores with mass `p`, capped at `k` entries (nucleus: arXiv:1904.09751)."""

    p: float
    k: int

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"top_p needs a mass strictly between 0 and 1, but got p={self.p}")
        if self.k < 1:
            raise ValueError(f"top_p keeps at least one entry, but got k={self.k}")

    def __str__(self) -> str:
        return f"top_p:{float(self.p)!r},k={self.k}"


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The `k` largest and every id with p >= `tau` exactly; rarer ones by systematic sampling, weighing `tau`."""

    tau: float
    k: int = 1

    def __post_init__(self) -> None:
        if not MIN_TAU <= self.tau < 1:
            raise ValueError(f"threshold needs a tau from 2^-40 on, and below 1, but got tau={self.tau}")
        if self.k < 1:
            raise ValueError(f"threshold keeps at least the largest entry exactly, but got k={self.k}")

    def __str__(self) -> str:
        return f"threshold:{float(self.tau)!r},k={self.k}"


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """`n` independent draws from the full distribution, with replacement."""

    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_DRAWS:
            raise ValueError(f"sampled draws 1 to {MAX_DRAWS:,} ids of a position, but got n={self.n}")

    def __str__(self) -> str:
        return f"sampled:{self.n}"


KeepPolicy = KeepAll | TopK | TopP | Threshold | Sampled


def default_keep(is_vocabulary: bool) -> KeepPolicy:
    """`threshold:1/32` over a vocabulary, whatever its size; `all` of classes."""
    return Threshold(tau=1 / 32) if is_vocabulary else KeepAll()


def former_default(vocab_size: int) -> KeepPolicy:
    """What earlier releases kept where no policy was given: `all` up to 4,096 ids of whatever kind."""
    return KeepAll() if vocab_size <= _FORMER_WHOLE else Threshold(tau=1 / 32)


def keeps_whole(keep: KeepPolicy, vocab_size: int) -> bool:
    """Whether a policy of another name keeps every score of so many: then it is `all`, and should be called so."""
    return isinstance(keep, TopK | Threshold) and keep.k >= vocab_size


def refuse_whole(keep: KeepPolicy, vocab_size: int) -> None:
    """A new cache whose policy would cut nothing is `all`, with the scalars of `all`.

    Raises:
        UsageError: it keeps every score under another name.
    """
    if keeps_whole(keep, vocab_size):
        raise UsageError(
            "--keep keeps every score of every position",
            expected=f"fewer than the teacher's {vocab_size:,}",
            got=keep,
            do="Say --keep all, or a smaller policy",
        )


def max_kept(policy: KeepPolicy, vocab_size: int, num_temperatures: int = 1) -> int:
    """K: the most entries that a position can keep exactly.

    At most `num_temperatures / tau` ids can have p >= tau at one of so many temperatures.
    """
    match policy:
        case KeepAll():
            return vocab_size
        case Threshold():
            return min(vocab_size, max(policy.k, math.ceil(num_temperatures / policy.tau)))
        case Sampled():
            return 0
    return min(policy.k, vocab_size)


def max_sampled(policy: KeepPolicy, vocab_size: int, num_temperatures: int = 1) -> int:
    """The most sampled ids that a position can have: the mass of all temperatures by tau, and one; or all draws."""
    match policy:
        case Threshold():
            return min(vocab_size, math.ceil(num_temperatures / policy.tau) + 1)
        case Sampled():
            return min(vocab_size, policy.n)
    return 0


def is_sampling(policy: KeepPolicy) -> bool:
    """Whether ids are drawn: then the weights are unbiased, and there is no tail bucket."""
    return isinstance(policy, Threshold | Sampled)


def parse_keep(text: str) -> KeepPolicy:
    """The policy written as the module's header says; `TAU` may be a fraction such as `1/16`.

    Raises:
        UsageError: when the text is none of these, or its numbers are out of range.
    """
    if len(text) > _MOST_CHARS:
        raise UsageError("--keep is too long", got=f"{text[:_MOST_CHARS]!r}...")
    name, _, rest = text.partition(":")
    try:
        match name, rest.split(",") if rest else []:
            case "all", []:
                return KeepAll()
            case "top_k", [k]:
                return TopK(k=_count(k))
            case "top_p", [p, k] if k.startswith("k="):
                return TopP(p=_number(p), k=_count(k[2:]))
            case "threshold", [tau]:
                return Threshold(tau=_number(tau))
            case "threshold", [tau, k] if k.startswith("k="):
                return Threshold(tau=_number(tau), k=_count(k[2:]))
            case "sampled", [n]:
                return Sampled(n=_count(n))
    except ValueError as error:
        raise UsageError("--keep is out of range", got=f"{text!r} ({error})") from error
    known = "all, top_k:K, top_p:P,k=K, threshold:TAU[,k=K] or sampled:N"
    near = nearest(text.partition(":")[0], ("all", "top_k", "top_p", "threshold", "sampled")).strip()
    raise UsageError("--keep names no policy", expected=known, got=repr(text), do=near or None)


def _count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(f"{text!r} is no whole number of at most ten digits")
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number such as 0.05, 1e-3 or 1/16")
    return float(Fraction(text)) if "/" in text else float(text)
