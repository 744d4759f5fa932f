"""Which smaller cache a cache can serve without its teacher: the spec of that cache, or the reason why not.

What was not kept is gone. A smaller policy is served where every entry that it keeps, or the probability with which
it draws one, follows from what is stored: largest entries from more of them, draws from draws or from a whole
distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from schemas.errors import UsageError
from schemas.policies import KeepAll, KeepPolicy, Sampled, Threshold, TopK, TopP
from schemas.spec import Spec

_NO_TAIL = "its tail is not stored, so that there is nothing to draw from"
_ASK_THE_TEACHER = "Run `teachonce precompute` with these flags into a new cache"


def thinned_spec(
    spec: Spec,
    keep: KeepPolicy,
    *,
    scalars: Sequence[str] | None = None,
    temperatures: tuple[float, ...] | None = None,
    own_logits: bool | None = None,
) -> Spec:
    """The spec of the smaller cache; what is None stays, or is what `keep` needs.

    Raises:
        UsageError: the cache cannot serve it, with the reason; or nothing would change.
    """
    refuse(reason_against(spec, keep), spec, keep)
    wanted = spec.scalars if scalars is None else tuple(name for name in spec.scalars if name in scalars)
    asked = spec.temperatures if temperatures is None else temperatures
    refuse(_reason_against_rest(spec, scalars or (), asked, own_logits), spec, keep)
    own = _own_logits(spec, keep, asked) if own_logits is None else own_logits
    try:
        thinned = replace(spec, keep=keep, scalars=wanted, temperatures=asked, own_logits=own)
    except ValueError as error:
        raise UsageError("the flags make no spec", got=str(error)) from error
    refuse("nothing would change" if thinned == spec else None, spec, keep)
    return thinned


def refuse(reason: str | None, spec: Spec, keep: KeepPolicy) -> None:
    """Raises a `UsageError` where there is a reason."""
    if reason is not None:
        raise UsageError(
            f"a cache of {spec.keep} cannot be thinned to {keep}", got=reason, do=_ASK_THE_TEACHER
        )


def reason_against(spec: Spec, keep: KeepPolicy) -> str | None:
    """Why the entries of `keep` do not follow from those of a cache; None where they do."""
    if spec.score != "softmax":
        return f"{spec.score} scores are no distribution, and all of them are kept"
    if keep == spec.keep or isinstance(spec.keep, KeepAll):
        return None
    match spec.keep, keep:
        case _, KeepAll():
            return "what was not kept is gone"
        case Sampled(), _:
            return "independent draws with replacement have no largest entries and no weights to draw from"
        case TopK() | TopP(), Threshold() | Sampled():
            return _NO_TAIL
        case Threshold(), Sampled():
            return "draws with replacement do not follow from a threshold's, which are without"
        case Threshold(), TopP():
            return "beside its k largest it has some entries exactly and some drawn, which are no nucleus"
        case TopP(), TopK():
            return "where it reached its p it kept fewer than k"
    return _reason_of_numbers(spec.keep, keep)


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
    spec: Spec, scalars: Sequence[str], temperatures: tuple[float, ...], own_logits: bool | None
) -> str | None:
    """Why what stands beside the entries is not there to be copied."""
    if missing := sorted(set(scalars) - set(spec.scalars)):
        return f"it does not store {', '.join(missing)}"
    if undeclared := sorted(set(temperatures) - set(spec.temperatures)):
        return f"it was not asked at temperatures {', '.join(map(str, undeclared))}"
    if spec.is_sampling and temperatures != spec.temperatures:
        return f"entries were drawn for the temperatures {spec.temperatures}, and weigh by all of them"
    if own_logits and spec.is_sampling and not spec.own_logits:
        return "own log-probabilities of drawn entries are not stored"
    return None


def _own_logits(spec: Spec, keep: KeepPolicy, temperatures: tuple[float, ...]) -> bool:
    """As the cache has it; and where it has whole distributions, as the temperatures need it."""
    if not isinstance(keep, Threshold):
        return False
    return len(temperatures) > 1 if isinstance(spec.keep, KeepAll) else spec.own_logits
