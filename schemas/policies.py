"""What is kept of a position's distribution: one frozen value of the cache, written `--keep` on the command line.

* `all`            every score; the default up to 4,096 classes
* `top_k:K`        the K largest
* `top_p:P,k=K`    the smallest set with mass P, at most K; the default (`top_p:0.99,k=64`) for a vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import UsageError

MAX_CLASSES_KEPT_WHOLE = 4096


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


KeepPolicy = KeepAll | TopK | TopP


def default_keep(vocab_size: int) -> KeepPolicy:
    """`all` up to 4,096 classes, else `top_p:0.99,k=64`."""
    return KeepAll() if vocab_size <= MAX_CLASSES_KEPT_WHOLE else TopP(p=0.99, k=64)


def max_kept(policy: KeepPolicy, vocab_size: int) -> int:
    """K: the most entries that a position can keep."""
    return vocab_size if isinstance(policy, KeepAll) else min(policy.k, vocab_size)


def parse_keep(text: str) -> KeepPolicy:
    """The policy written as `all`, `top_k:K` or `top_p:P,k=K`.

    Raises:
        UsageError: when the text is none of these, or its numbers are out of range.
    """
    name, _, rest = text.partition(":")
    try:
        match name, rest.split(",") if rest else []:
            case "all", []:
                return KeepAll()
            case "top_k", [k]:
                return TopK(k=int(k))
            case "top_p", [p, k] if k.startswith("k="):
                return TopP(p=float(p), k=int(k[2:]))
    except ValueError as error:
        raise UsageError("--keep is out of range", got=f"{text!r} ({error})") from error
    raise UsageError("--keep names no policy", expected="all, top_k:K or top_p:P,k=K", got=repr(text))
