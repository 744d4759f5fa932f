"""Published recipes by name: what each says of the losses. Learning rates, epochs and layers stay the user's."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.errors import UsageError, nearest


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The flags that a recipe stands for."""

    paper: str
    """Empty for one of no paper."""
    losses: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    """In place of losses."""
    temperature: float = 1.0
    feature_loss: str = "mse"

    @property
    def flags(self) -> str:
        """As they would be told."""
        words = f"--stages {shlex.join(self.stages)}" if self.stages else f"--losses {' '.join(self.losses)}"
        words += f" --temperature {self.temperature:g}" if self.temperature != 1 else ""
        return words + (f" --feature_loss {self.feature_loss}" if self.feature_loss != "mse" else "")


PRESETS: Mapping[str, Preset] = {
    "hinton": Preset(paper="arXiv:1503.02531", losses=("kl=0.9", "ce=0.1"), temperature=2.0),
    "distilbert": Preset(
        paper="arXiv:1910.01108",
        losses=("kl=5", "ce=2", "feature=1"),
        temperature=2.0,
        feature_loss="cosine",
    ),
    "pkd": Preset(paper="arXiv:1908.09355", losses=("kl=0.5", "ce=0.5", "pkd=10"), temperature=5.0),
    "info-distil": Preset(paper="", losses=("kl=0.5", "ce=0.5", "info_head=1"), temperature=2.0),
    "distillm": Preset(paper="arXiv:2402.03898", losses=("skew_rkl=1,alpha=0.1",)),
    "minillm-offline": Preset(paper="arXiv:2306.08543", losses=("rkl=1", "ce=1")),
    "mobilebert-stages": Preset(paper="arXiv:2004.02984", stages=("share=0.5 feature=1", "kl=0.5 ce=0.5")),
}
"""`info-distil` is an auxiliary head beside the usual two losses. `mobilebert-stages` is MobileBERT's transfer of
feature maps before distillation, on pooled states: no cache has every token's. `minillm-offline` is MiniLLM's objective
on the cache's texts: nothing is drawn from the student. Its reverse KL needs exact entries, and is refused where they
are drawn."""


def preset(name: str) -> Preset:
    """The recipe of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(
            "--preset names no recipe",
            expected=", ".join(PRESETS),
            got=name,
            do=f"{nearest(name, PRESETS)}Name one of these, or say its losses with --losses",
        )
    return PRESETS[name]
