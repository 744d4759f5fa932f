"""How sure the teacher is, position by position."""

from __future__ import annotations

import numpy as np

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.plots.plot import Charts, Missing, Plot, histogram


def _draw(facts: CacheFacts) -> Charts | Missing:
    values = facts.sample.entropy_nats
    if facts.score != "softmax":
        return Missing("the cache's scores are no distributions")
    if values is None:
        return Missing("the cache stores no entropies", "teachonce precompute ... --scalars entropy gold")
    return {"": histogram(values, np.linspace(0, max(1.0, float(values.max())), 41), "entropy, nats")}


ENTROPIES = Plot[CacheFacts](
    name="entropies",
    title="Teacher's entropies",
    told="0 is a teacher that is sure; where it is not, a student has most to learn from its distribution.",
    draw=_draw,
)
