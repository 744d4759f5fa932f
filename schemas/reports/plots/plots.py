"""Every plot, in the order of the page."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.plots.agreement import AGREEMENT
from schemas.reports.plots.calibration import CALIBRATION
from schemas.reports.plots.columns import COLUMNS
from schemas.reports.plots.entropies import ENTROPIES
from schemas.reports.plots.kept_entries import KEPT_ENTRIES
from schemas.reports.plots.kept_mass import KEPT_MASS
from schemas.reports.plots.lengths import LENGTHS
from schemas.reports.plots.losses import LOSSES
from schemas.reports.plots.plot import Plot
from schemas.reports.plots.quality import QUALITY
from schemas.reports.plots.rejects import REJECTS
from schemas.reports.plots.versions import VERSIONS
from schemas.reports.runs import Run

CACHE_PLOTS: tuple[Plot[CacheFacts], ...] = (
    *(KEPT_MASS, ENTROPIES, KEPT_ENTRIES, LENGTHS),
    *(COLUMNS, REJECTS, VERSIONS),
)
RUN_PLOTS: tuple[Plot[Sequence[Run]], ...] = (LOSSES, QUALITY, CALIBRATION, AGREEMENT)
