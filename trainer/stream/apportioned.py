"""The merge of several sources' evenly spaced times: which of them gives the next row."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def apportioned(weights: Sequence[Fraction], number: int) -> list[int]:
    """How many of the first `number` rows each source gives, if the t-th of a source has the time (t + 1/2) / weight
    and the earlier comes first, of two at one time that of the earlier source. Exact, and it never falls."""
    total = sum(weights)
    if len(weights) == 1 or not total:
        return [number] * len(weights)
    found = [int(number * weight / total + Fraction(1, 2)) for weight in weights]
    sources = [source for source, weight in enumerate(weights) if weight]
    while sum(found) > number:
        last = max(sources, key=lambda s: (Fraction(2 * found[s] - 1) / weights[s], s))
        found[last] -= 1
    while sum(found) < number:
        following = min(sources, key=lambda s: (Fraction(2 * found[s] + 1) / weights[s], s))
        found[following] += 1
    return found
