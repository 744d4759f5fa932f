"""What a class of losses is worth on a cache that serves it: exact, unbiased, or biased and by what."""

from __future__ import annotations

from schemas.policies import KeepAll
from schemas.spec import Spec
from trainer.losses.loss import Asked


def knows_entropy(spec: Spec, temperature: float, *, student_has_all: bool = True) -> bool:
    """Whether the teacher's entropy is known or can be estimated: else `kl`'s value lacks it: a cross entropy.

    What is stored is that of all V ids: of no use to a student that lacks some.
    """
    stored = temperature == 1 and "entropy" in spec.scalars and student_has_all
    return not spec.is_sampling or stored or spec.own_logits


def of_linear(asked: Asked, student_vocab: int) -> str:
    """Of a loss that is linear in p."""
    spec = asked.spec
    has_all = student_vocab >= spec.vocab_size
    over = "" if has_all else f", over the {student_vocab:,} ids that the student has"
    if isinstance(spec.keep, KeepAll):
        return "exact" + over
    if not spec.is_sampling:
        return of_cut(asked, student_vocab)
    value = asked.loss.without_entropy
    if not value or knows_entropy(spec, asked.temperature, student_has_all=has_all):
        return "unbiased" + over
    return f"unbiased{over}; its value {value}, because the teacher's entropy there is not stored"


def of_cut(asked: Asked, _: int) -> str:
    """Of a loss that exact entries serve."""
    if isinstance(asked.spec.keep, KeepAll):
        return "exact"
    told = {"ignore": "as if its tail were not", "uniform": "as if its tail were flat"}
    shape = "by the tail's shape, of which the mass alone is known"
    return "biased " + told.get(str(asked.settings.get("tail")), shape)


def of_finite(asked: Asked, student_vocab: int) -> str:
    """Of one that is finite at p = 0."""
    if not asked.spec.is_sampling:
        return of_cut(asked, student_vocab)
    has_all = student_vocab >= asked.spec.vocab_size
    return "unbiased" + ("" if has_all else f", over the {student_vocab:,} ids that the student has")


def of_kept(asked: Asked, _: int) -> str:
    """Of kept entries divided by their sum."""
    if isinstance(asked.spec.keep, KeepAll):
        return "exact"
    return "biased, as if what is not kept were impossible; only to compare with"


def of_logits(asked: Asked, _: int) -> str:
    """Of squared differences of logits."""
    if isinstance(asked.spec.keep, KeepAll):
        return "exact"
    if asked.spec.is_sampling and not asked.spec.own_logits:
        return "biased: over the exact entries alone, because drawn ones have no logits of their own"
    return "biased: over the kept entries alone, each counting the same"


def of_labels(_: Asked, __: int) -> str:
    """Of the corpus's own labels."""
    return "from the corpus's own labels; what the cache keeps of the teacher has no part in it"


def of_features(_: Asked, __: int) -> str:
    """Of pooled states."""
    return "as the cache stores features"


def of_boxes(_: Asked, __: int) -> str:
    """Of boxes."""
    return "as the cache stores boxes, of queries that are matched in each step"


def of_chunks(asked: Asked, _: int) -> str:
    """Of the text's own likelihood."""
    asks = "word_start" in asked.spec.scalars and float(asked.settings.get("word", 1)) < 1
    words = " and of a word's begin behind them" if asks else ""
    told = f"from the teacher's likelihood of the text{words}, chunk by chunk"
    return f"{told}; what else it might have said has no part in it"


def of_projected(asked: Asked, _: int) -> str:
    """Of a loss that is linear in p, of whose ids the student's agree with most."""
    spec = asked.spec
    over = ", over the ids with which some of the student's agree, where tokens begin together"
    if isinstance(spec.keep, KeepAll):
        return "exact" + over
    if not spec.is_sampling:
        return of_cut(asked, 0) + over
    if knows_entropy(spec, asked.temperature):
        return "unbiased" + over
    return f"unbiased{over}; its value {asked.loss.without_entropy}"


def of_nothing(_: Asked, __: int) -> str:
    """Of what no cache serves."""
    return "impossible"
