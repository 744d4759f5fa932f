"""How many entries the policy keeps of a position."""

from __future__ import annotations

import numpy as np

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.plots.plot import Charts, Missing, Plot, histogram

_MOST_BARS = 64


def _draw(facts: CacheFacts) -> Charts | Missing:
    if facts.score != "softmax":
        return Missing("every score of a position is kept")
    most = int(facts.sample.kept.max())
    width = -(-(most + 1) // _MOST_BARS)
    edges = np.arange(0.0, most + width + 1, width)
    return {"": histogram(facts.sample.kept, edges, "kept entries, exact and drawn")}


KEPT_ENTRIES = Plot[CacheFacts](
    name="kept-entries",
    title="Entries a position",
    told="What a position costs: the policy keeps few entries of a sure distribution, and more of a flat one.",
    draw=_draw,
)
