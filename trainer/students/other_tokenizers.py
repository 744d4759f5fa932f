"""Whether a student of another tokenizer can learn from a cache, and how it reads the texts then."""

from __future__ import annotations

from typing import Any

from schemas.cache import Cache
from schemas.errors import StudentError
from schemas.spec import Spec
from schemas.task import Task
from schemas.token_bytes import byte_tokens, check_fast
from trainer.losses.contrast import OUTPUTS
from trainer.losses.objective import Objective
from trainer.losses.serving import EXACT_POLICIES, FEATURES, LABELS, LINEAR
from trainer.reading.reader import Reader
from trainer.students.compatibility import check_vocabulary

UNLIMITED = 2**24
"""Tokens at once of a student that names no limit."""


def reader_of(
    own: Any, config: Any, cached: Any, cache: Cache, *, where: str, objective: Objective | None = None
) -> Reader | None:
    """How a student with the tokenizer `own` reads the cache's texts; None where it takes the teacher's tokens. Without
    an `objective` it is only measured.

    Raises:
        StudentError: its losses compare token by token, the task's places are tokens of the teacher, or the cache does
            not say what the texts are.
    """
    aligns = objective is not None and objective.aligns
    if own.get_vocab() == cached.get_vocab() and not aligns:
        return None
    difference = _difference(own, cached, where)
    if not can_read(cache.spec.kind):
        raise difference or _told("alm and projected_kl are for causal language models", None, where, _FAMILY)
    if objective is not None and cache.spec.kind.predicts_tokens:
        _check_losses(objective, difference, where)
        _check_outputs(objective, difference, where)
    if objective is not None and cache.spec.kind.classes_are_tokens:
        _check_places(objective, cache.spec, where)
    check_fast(own, where)
    check_fast(cached, f"{cache.storage.root} (its tokenizer)")
    is_said = cache.spec.kind.predicts_tokens and byte_tokens(cached) is not None
    if not (cache.spec.has_text or is_said):
        raise _told(
            "the student's tokenizer is not the cache's, and the cache keeps no text that it could read",
            difference,
            where,
            f"Precompute a cache with --keep_text, or {_FAMILY[0].lower()}{_FAMILY[1:]}",
        )
    reader = Reader(own, cached, cache.spec, limit=limit_of(config, own), where=cache.storage.root)
    if objective is not None and any(loss.asks == "projection" for loss in objective.losses):
        _ = reader.projection
    return reader


def can_read(task: Task) -> bool:
    """Whether a task's places are those of another tokenizer too: the next token's, a text's as a whole, or a choice
    among characters."""
    whole = not (task.predicts_tokens or task.holds_texts or task.has_source)
    return task.implies_places or whole


def limit_of(config: Any, tokenizer: Any) -> int:
    """Tokens that a student reads at once, as its config and its tokenizer say."""
    told = getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length
    return min([UNLIMITED, *(int(limit) for limit in told if isinstance(limit, int) and limit > 0)])


_FAMILY = "Choose a student of the teacher's family, or start one from a config .json"


def _check_losses(objective: Objective, difference: StudentError | None, where: str) -> None:
    for name in objective.head_losses:
        if objective.entry(name).aligned is not None:
            continue
        if difference is None:
            asked = " and ".join(loss.name for loss in objective.losses if loss.asks)
            raise StudentError(
                f"{asked} and {name} cannot stand together: one aligns texts, the other compares token by token",
                do=f"Leave {name} out; or {asked}, which a student of the teacher's tokenizer does not need",
            )
        raise _told(
            f"the student's tokenizer is not the cache's, and {name} compares token by token",
            difference,
            where,
            "Use --losses alm=1.0 (the likelihood of stretches of text), projected_kl=1.0 (distributions where tokens "
            f"begin together) or ce=1.0 (the text alone); or {_FAMILY[0].lower()}{_FAMILY[1:]}",
        )


def _check_outputs(objective: Objective, difference: StudentError | None, where: str) -> None:
    for loss in objective.losses:
        if loss.joins_outputs:
            raise _told(
                f"{loss.name} asks for the teacher's scores, and a student that aligns texts is given none",
                difference,
                where,
                "Use --losses feature=1.0, or pkd=1.0",
            )


def _check_places(objective: Objective, spec: Spec, where: str) -> None:
    """Masses that are added up serve what is linear in them."""
    if spec.is_sampling:
        raise StudentError(
            "places of drawn entries are not moved to another tokenizer's tokens",
            where=where,
            expected=f"a cache with {EXACT_POLICIES}",
            got=spec.keep,
            do=_FAMILY,
        )
    for loss in objective.losses:
        if loss.kind not in (LINEAR, LABELS, FEATURES, OUTPUTS) or loss.stores:
            raise StudentError(
                f"the student's tokenizer is not the cache's, and {loss.name} asks more of the teacher than "
                "the mass at each place",
                where=where,
                expected="losses that are linear in the teacher's probabilities, of labels, or of features",
                do=f"Use --losses kl=1.0, or ce=1.0; or {_FAMILY[0].lower()}{_FAMILY[1:]}",
            )


def _difference(own: Any, cached: Any, where: str) -> StudentError | None:
    try:
        check_vocabulary(own.get_vocab(), cached.get_vocab(), where)
    except StudentError as error:
        return error
    return None


def _told(what: str, difference: StudentError | None, where: str, do: str) -> StudentError:
    expected, got = (None, None) if difference is None else (difference.expected, difference.got)
    return StudentError(what, where=where, expected=expected, got=got, do=do)
