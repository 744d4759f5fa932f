"""What each loss of a run is worth on a cache, told once in the log: whether its gradient is the dense one's in
expectation, and what its logged value is."""

from __future__ import annotations

from schemas.policies import KeepAll
from schemas.spec import Spec
from trainer.objective import LossName, Objective


def bias_lines(objective: Objective, spec: Spec) -> list[str]:
    """One line for each loss, for instance `kl from top_k:64: biased by the tail's shape, ...`."""
    return [_line(name, objective, spec) for name in objective.weights]


def _line(name: LossName, objective: Objective, spec: Spec) -> str:
    match name:
        case "kl":
            return f"kl from {spec.keep}: {_of_kl(objective.temperature, spec)}"
        case "kl_kept":
            whole = isinstance(spec.keep, KeepAll)
            said = (
                "exact" if whole else "biased, as if what is not kept were impossible; only to compare with"
            )
            return f"kl_kept from {spec.keep}: {said}"
        case "mse_logits":
            return f"mse_logits from {spec.keep}: {_of_logits(spec)}"
        case "feature":
            return "feature: as the cache stores features"
    return "ce: from the corpus's own labels; what the cache keeps of the teacher has no part in it"


def knows_entropy(spec: Spec, temperature: float, *, student_has_all: bool = True) -> bool:
    """Whether the teacher's entropy is known or can be estimated: else the value of `kl` is a cross entropy.

    What is stored is that of all V ids: of no use to a student that lacks some.
    """
    stored = temperature == 1 and "entropy" in spec.scalars and student_has_all
    return not spec.is_sampling or stored or spec.own_logits


def _of_kl(temperature: float, spec: Spec) -> str:
    if isinstance(spec.keep, KeepAll):
        return "exact"
    if not spec.is_sampling:
        return "biased by the tail's shape, of which the mass alone is known"
    if not knows_entropy(spec, temperature):
        told = (
            "unbiased; its value is a cross entropy, because the cache does not store the teacher's entropy"
        )
        return told + _of_fewer_ids(spec)
    if knows_entropy(spec, temperature, student_has_all=False):
        return "unbiased" + _of_fewer_ids(spec)
    return "unbiased" + _of_fewer_ids(spec, ", and the value is then a cross entropy")


def _of_fewer_ids(spec: Spec, also: str = "") -> str:
    """The line is told before the student is open. A classifier has all classes; a vocabulary may have been cut."""
    if spec.task != "causal-lm":
        return ""
    return f"; a student with fewer than {spec.vocab_size:,} ids learns it without those that it lacks{also}"


def _of_logits(spec: Spec) -> str:
    if isinstance(spec.keep, KeepAll):
        return "exact"
    if spec.is_sampling and not spec.own_logits:
        return "biased: over the exact entries alone, because drawn ones have no logits of their own"
    return "biased: over the kept entries alone, each counting the same"
