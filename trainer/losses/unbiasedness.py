"""What each loss of a run is worth on a cache, told once in the log: whether its gradient is the dense one's in
expectation, and what its logged value is."""

from __future__ import annotations

from schemas.spec import Spec
from trainer.losses.objective import Objective


def bias_lines(objective: Objective, spec: Spec, student_vocab: int) -> list[str]:
    """One line for each loss, for instance `kl from top_k:64: biased by the tail's shape, ...`."""
    return [_line(name, objective, spec, student_vocab) for name in objective.weights]


def _line(name: str, objective: Objective, spec: Spec, student_vocab: int) -> str:
    asked = objective.asked(name, spec)
    kind = asked.loss.kind
    source = f" from {spec.keep}" if kind.from_entries else ""
    caveat = f"; {asked.loss.on_draws}" if spec.is_sampling and asked.loss.on_draws else ""
    return f"{name}{source}: {kind.worth(asked, student_vocab)}{caveat}"
