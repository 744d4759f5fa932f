"""What each loss of a run is worth on a cache, told once in the log: whether its gradient is the dense one's in
expectation, and what its logged value is."""

from __future__ import annotations

from schemas.policies import KeepAll
from schemas.spec import Spec
from trainer.losses.objective import LossName, Objective


def bias_lines(objective: Objective, spec: Spec, student_vocab: int) -> list[str]:
    """One line for each loss, for instance `kl from top_k:64: biased by the tail's shape, ...`."""
    return [_line(name, objective, spec, student_vocab) for name in objective.weights]


def _line(name: LossName, objective: Objective, spec: Spec, student_vocab: int) -> str:
    match name:
        case "kl":
            return f"kl from {spec.keep}: {_of_kl(objective.temperature, spec, student_vocab)}"
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


def _of_kl(temperature: float, spec: Spec, student_vocab: int) -> str:
    has_all = student_vocab >= spec.vocab_size
    over = "" if has_all else f", over the {student_vocab:,} ids that the student has"
    if isinstance(spec.keep, KeepAll):
        return "exact" + over
    if not spec.is_sampling:
        return "biased by the tail's shape, of which the mass alone is known"
    if knows_entropy(spec, temperature, student_has_all=has_all):
        return "unbiased" + over
    return f"unbiased{over}; its value is a cross entropy, because the teacher's entropy there is not stored"


def _of_logits(spec: Spec) -> str:
    if isinstance(spec.keep, KeepAll):
        return "exact"
    if spec.is_sampling and not spec.own_logits:
        return "biased: over the exact entries alone, because drawn ones have no logits of their own"
    return "biased: over the kept entries alone, each counting the same"
