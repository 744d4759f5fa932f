"""How much of the teacher's distribution is kept exactly, position by position."""

from __future__ import annotations

import numpy as np

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.plots.plot import Charts, Missing, Plot, histogram


def _draw(facts: CacheFacts) -> Charts | Missing:
    if facts.score != "softmax":
        return Missing("the cache's scores are no distributions: every score is kept as it is")
    edges = np.linspace(0, 1, 41)
    return {"": histogram(facts.sample.kept_mass, edges, "mass of the entries kept exactly")}


KEPT_MASS = Plot[CacheFacts](
    name="kept-mass",
    title="Kept mass",
    told="How much of each position's distribution its exactly kept entries hold. Under a policy that draws, drawn "
    "entries stand for the rest without bias; under the others the rest is one tail bucket.",
    draw=_draw,
)
