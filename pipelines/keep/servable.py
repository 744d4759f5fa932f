"""Which smaller cache a cache can serve without its teacher: the spec of that cache, or the reason why not.

What was not kept is gone. A smaller policy is served where every entry that it keeps, or the probability with which
it draws one, follows from what is stored: largest entries from more of them, draws from draws or from a whole
distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from schemas.errors import UsageError
from schemas.policies import KeepAll, KeepPolicy, Sampled, Threshold, TopK, TopP, is_sampling
from schemas.spec import Spec

_NO_TAIL = "its tail is not stored, so that there is nothing to draw from"
_ASK_THE_TEACHER = "`teachonce precompute` with {} into a new cache"


class Refusal(NamedTuple):
    """Why a cache cannot serve what is asked, and what to do."""

    reason: str
    do: str


def thinned_spec(
    spec: Spec,
    keep: KeepPolicy,
    *,
    scalars: Sequence[str] | None = None,
    temperatures: tuple[float, ...] | None = None,
    own_logits: bool | None = None,
    where: object = None,
) -> Spec:
    """The spec of the smaller cache; what is None stays, or is what `keep` needs. Errors name `where`.

    Raises:
        UsageError: the cache cannot serve it, with the reason; or nothing would change.
    """
    _refuse(reason_against(spec, keep), spec, keep, where)
    wanted = spec.scalars if scalars is None else tuple(name for name in spec.scalars if name in scalars)
    asked = spec.temperatures if temperatures is None else temperatures
    _refuse(_reason_against_rest(spec, keep, scalars or (), asked, own_logits), spec, keep, where)
    own = _own_logits(spec, keep, asked) if own_logits is None else own_logits
    try:
        thinned = replace(spec, keep=keep, scalars=wanted, temperatures=asked, own_logits=own)
    except ValueError as error:
        raise UsageError("the flags make no spec", where=where, got=str(error)) from error
    same = Refusal(
        "nothing would change", "Train from this cache, or give a smaller --keep or fewer --scalars"
    )
    _refuse(same if thinned == spec else None, spec, keep, where)
    return thinned


def _refuse(refusal: Refusal | None, spec: Spec, keep: KeepPolicy, where: object) -> None:
    if refusal is not None:
        what = f"a cache of {spec.keep} cannot be thinned to {keep}"
        raise UsageError(what, where=where, got=refusal.reason, do=refusal.do)


def reason_against(spec: Spec, keep: KeepPolicy) -> Refusal | None:
    """Why the entries of `keep` do not follow from those of a cache; None where they do."""
    if spec.score != "softmax":
        reason = f"{spec.score} scores are no distribution, and all of them are kept"
        reason = reason if spec.kind.has_positions else "it holds embeddings, and no scores"
        return Refusal(reason, "Train from this cache: no policy makes it smaller")
    if keep == spec.keep or isinstance(spec.keep, KeepAll):
        return None
    gone = _reason_of_kinds(spec.keep, keep) or _reason_of_numbers(spec.keep, keep)
    if gone is None:
        return None
    ask = _ASK_THE_TEACHER.format(f"--keep {keep}")
    only_a_teacher = isinstance(keep, KeepAll)
    return Refusal(gone, f"Run {ask}" if only_a_teacher else f"Thin a cache of `all`, or run {ask}")


def _reason_of_kinds(old: KeepPolicy, new: KeepPolicy) -> str | None:
    """Pairs of policies that are not served whatever their numbers."""
    match old, new:
        case _, KeepAll():
            return "what was not kept is gone"
        case Sampled(), Sampled():
            if new.n > old.n:
                return f"it made {old.n} draws"
            return "fewer of its draws would be such a cache, but to take them is not built"
        case Sampled(), _:
            return "independent draws do not tell which entries are the largest"
        case TopK() | TopP(), Threshold() | Sampled():
            return _NO_TAIL
        case Threshold(), Sampled():
            return "draws with replacement do not follow from a threshold's, which are without"
        case Threshold(), TopP():
            return "beside its k largest it has some entries exactly and some drawn, which are no nucleus"
        case TopP(), TopK():
            return "where it reached its p it kept fewer than k"
    return None


def _reason_of_numbers(old: KeepPolicy, new: KeepPolicy) -> str | None:
    """Policies that could be served, if the new numbers were not larger (of a threshold: tau not smaller)."""
    if isinstance(old, Threshold) and isinstance(new, Threshold) and new.tau < old.tau:
        return f"entries below tau={old.tau} were drawn, and those that were not are gone"
    if isinstance(old, TopP) and isinstance(new, TopP) and new.p > old.p:
        return f"it stopped at p={old.p}"
    assert isinstance(old, TopK | TopP | Threshold)
    assert isinstance(new, TopK | TopP | Threshold)
    return f"it kept at most the {old.k} largest" if new.k > old.k else None


def _reason_against_rest(
    spec: Spec,
    keep: KeepPolicy,
    scalars: Sequence[str],
    temperatures: tuple[float, ...],
    own_logits: bool | None,
) -> Refusal | None:
    """Why what stands beside the entries is not there to be copied."""
    if missing := sorted(set(scalars) - set(spec.scalars)):
        reason = f"it does not store {', '.join(missing)}"
        return Refusal(reason, _leave_out(", ".join(missing), "--scalars", scalars))
    if undeclared := sorted(set(temperatures) - set(spec.temperatures)):
        named = ", ".join(map(str, undeclared))
        reason = f"it was not asked at temperatures {named}"
        return Refusal(reason, _leave_out(named, "--temperatures", temperatures))
    if not (spec.is_sampling and is_sampling(keep)):
        return None
    if temperatures != spec.temperatures:
        reason = f"entries were drawn for the temperatures {spec.temperatures}, and weigh by all of them"
        return Refusal(reason, _leave_out("", "--temperatures", temperatures))
    if own_logits and not spec.own_logits:
        reason = "own log-probabilities of drawn entries are not stored"
        return Refusal(reason, _leave_out("", "--own_logits"))
    return None


def _leave_out(what: str, flag: str, values: Sequence[object] = ()) -> str:
    """What to do where a flag asks for what only the teacher knows. `values` are all that the flag asks for."""
    without = f"{what} out of {flag}" if what else f"out {flag}"
    return f"Leave {without}, or run {_ASK_THE_TEACHER.format(' '.join([flag, *map(str, values)]))}"


def _own_logits(spec: Spec, keep: KeepPolicy, temperatures: tuple[float, ...]) -> bool:
    """As the cache has it; and where it has whole distributions, as the temperatures need it."""
    if not isinstance(keep, Threshold):
        return False
    return len(temperatures) > 1 if isinstance(spec.keep, KeepAll) else spec.own_logits
