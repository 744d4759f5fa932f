"""The classes of losses. Which caches serve a loss follows from its formula, and its class alone decides.

* *Linear in the teacher's p*: the weights serve it, of any policy; without bias where entries are drawn.
* *Not linear, but finite at p = 0*: draws serve it by each entry's own log-probability: `sum of f(0, q)` over all ids,
  and for each kept one `(f(p, q) - f(0, q)) / pi`, with pi the probability that it was kept. That is unbiased.
* *Exact entries only*: a draw's expectation says nothing of the loss.
* *Labels*: the corpus's own; what the cache keeps of the teacher has no part in it.
* *Likelihood of the text*: the gold ids' log-probabilities, one scalar a token; of a student of another tokenizer.
* *Pooled features*: what `--features` declared.
* *Rows by origin*: two caches, of which one holds texts that the teacher wrote; else as *finite at p = 0*.
* *Every token's states*: no cache of this format has them.
"""

from __future__ import annotations

from typing import get_args

from schemas.errors import StudentError
from schemas.policies import KeepAll, Sampled
from schemas.spec import Scalar, Spec
from trainer.losses.loss import Asked, Kind, cuts_of
from trainer.losses.worth import (
    of_cut,
    of_features,
    of_finite,
    of_kept,
    of_labels,
    of_linear,
    of_logits,
    of_nothing,
)

EXACT_POLICIES = "--keep all, top_p:P,k=K or top_k:K"


def refusal(asked: Asked) -> StudentError | None:
    """Why a cache cannot serve a loss, and what to do; None where it can."""
    loss, spec = asked.loss, asked.spec
    has_meaning = bool(loss.pooled or loss.boxes or loss.term(spec.score))
    has_meaning |= loss.aligned is not None and spec.score == "softmax"
    if not has_meaning and loss.kind not in (ORIGIN, EVERY_TOKEN):
        return _meaningless(asked)
    return (
        loss.kind.refusal(asked)
        or _without_scalars(asked)
        or _without_tail(asked)
        or _other_temperature(asked)
    )


def _meaningless(asked: Asked) -> StudentError:
    if asked.spec.score == "none":
        return asked.error(
            "has no meaning where a cache holds embeddings alone, without scores",
            expected="losses on features: feature, pkd, similarity, rkd_distance, rkd_angle, cka, info_nce and the "
            "others of docs/losses.md that are served by --features",
            do="Use --losses feature=1.0,distance=cosine similarity=1.0",
        )
    if asked.spec.score == "identity":
        return StudentError(
            f"a regression teacher gives values, not a distribution: {asked.loss.name} has no meaning",
            do="Use --losses mse_logits=1.0",
        )
    return asked.error(
        f"has no meaning for a {asked.spec.score} teacher, whose classes are apart",
        do=f"Use --losses {'kl' if asked.spec.score == 'sigmoid' else 'mse_logits'}=1.0",
    )


def with_scalars(spec: Spec, *names: str) -> str:
    """The flag that would store these too."""
    return "--scalars " + " ".join(name for name in get_args(Scalar) if name in (*spec.scalars, *names))


def _without_scalars(asked: Asked) -> StudentError | None:
    spec = asked.spec
    if spec.score != "softmax" or isinstance(spec.keep, KeepAll):
        return None
    lacks = [name for name in asked.loss.stores if name not in spec.scalars]
    if not lacks:
        return None
    return asked.error(
        f"needs the teacher's {' and '.join(_SCALARS[name] for name in lacks)}, which the cache does not store",
        got=f"the scalars {' '.join(spec.scalars) or 'none'}",
        do=f"Precompute a cache with {with_scalars(spec, *lacks)}",
    )


_SCALARS = {"gold": "log-probability of the gold id", "entropy": "entropy", "logsumexp": "logsumexp"}


def _without_tail(asked: Asked) -> StudentError | None:
    if asked.spec.score != "softmax" and asked.settings.get("tail", "bucket") != "bucket":
        return asked.error(
            "has no tail here: the cache keeps every class's score",
            got=f"tail={asked.settings['tail']}",
            do="Leave tail out",
        )
    if asked.spec.is_sampling and asked.settings.get("tail", "bucket") != "bucket":
        return asked.error(
            "has no tail where entries are drawn: their weights are the whole distribution's",
            got=f"tail={asked.settings['tail']} on {asked.spec.keep}",
            do=f"Leave tail out, or use a cache with {EXACT_POLICIES}",
        )
    return None


def _other_temperature(asked: Asked) -> StudentError | None:
    """Draws are made for the declared temperatures, whatever is asked of them."""
    spec, temperature = asked.spec, asked.temperature
    if isinstance(spec.keep, KeepAll) or asked.loss.kind.normalises:
        return None
    if asked.warms and asked.loss.has_temperature:
        return asked.error(
            "cannot have a temperature that changes: the cache knows a tail's mass at those that it declares alone",
            expected="--keep all",
            got=f"{spec.keep} with the temperatures {', '.join(f'{t:g}' for t in spec.temperatures)}",
            do="Precompute a cache with --keep all, or leave --temperature_schedule out",
        )
    if temperature in spec.temperatures or not (asked.loss.has_temperature or spec.is_sampling):
        return None
    keep = "--keep threshold:1/32 " if isinstance(spec.keep, Sampled) else ""
    return StudentError(
        "the cache cannot serve this temperature",
        expected="one of " + ", ".join(f"{t:g}" for t in spec.temperatures),
        got=f"{temperature:g}",
        do=f"Precompute a cache with {keep}--temperatures 1 {temperature:g}, or with --keep all",
    )


def _served(asked: Asked) -> None:
    return None


def _own_logits(asked: Asked) -> StudentError | None:
    if not asked.spec.is_sampling or asked.spec.own_logits:
        return None
    return asked.error(
        "is not linear in the teacher's probabilities: drawn entries need their own",
        expected="--own_logits",
        got=f"{asked.spec.keep} with weights alone",
        do=f"Precompute a cache with --own_logits, or with {EXACT_POLICIES}; or use --losses kl=1.0",
    )


def _exact_only(asked: Asked) -> StudentError | None:
    if not asked.spec.is_sampling:
        return None
    return asked.error(
        "needs exact entries, and this cache draws them",
        expected=EXACT_POLICIES,
        got=str(asked.spec.keep),
        do="Precompute a cache with --keep top_p:0.99,k=64, or use --losses kl=1.0",
    )


def _all_only(asked: Asked) -> StudentError | None:
    if isinstance(asked.spec.keep, KeepAll):
        return None
    return asked.error(
        "needs every score of a position",
        expected="--keep all",
        got=str(asked.spec.keep),
        do="Precompute a cache with --keep all, or use --losses kl=1.0",
    )


def _no_division(asked: Asked) -> StudentError | None:
    if not asked.spec.is_sampling:
        return None
    return asked.error(
        "divides a cut distribution by its sum, and this cache holds none",
        expected="--keep all, top_k or top_p of a softmax teacher",
        got=f"{asked.spec.keep} of a {asked.spec.score} teacher",
        do="Use --losses kl=1.0, which needs no division",
    )


def _logits_known(asked: Asked) -> StudentError | None:
    """A logit is an entry's own log-probability and its position's logsumexp: both that lack are told at once."""
    spec = asked.spec
    only_draws = isinstance(spec.keep, Sampled) and not spec.own_logits
    if spec.score != "softmax" or ("logsumexp" in spec.scalars and not only_draws):
        return None
    got = "counts of draws alone" if only_draws else "probabilities alone"
    flags = with_scalars(spec, "logsumexp") + (" --own_logits" if only_draws else "")
    return asked.error(
        f"needs the teacher's logits, and the cache stores {got}",
        got=f"{spec.keep} with the scalars {' '.join(spec.scalars) or 'none'}",
        do=f"Precompute a cache with {flags}, or leave {asked.loss.name} out",
    )


def _features(asked: Asked) -> StudentError | None:
    number, least = len(asked.spec.features), asked.loss.least_features
    if number >= least:
        return _cut(asked)
    if least > 1:
        return asked.error(
            f"is a relation between {least} layers",
            expected=f"a cache with {least} features",
            got=number,
            do="Precompute a cache with --features mean:6 mean:-1, or two other layers",
        )
    return asked.error(
        "needs features, and the cache holds none",
        do="Precompute a cache with --features, for instance --features mean:-1",
    )


def _cut(asked: Asked) -> StudentError | None:
    """Only an embedding is cut, and only below its width."""
    cuts, spec = cuts_of(asked.settings), asked.spec
    if cuts and spec.kind.has_positions:
        return asked.error(
            "cuts embeddings, and this cache holds none",
            expected="a cache of the task feature-extraction",
            got=spec.task,
            do="Leave cuts out",
        )
    if cuts and cuts[-1] >= (width := spec.features[0].width):
        return asked.error(
            "cuts the embedding where it has ended",
            expected=f"cuts below {width}",
            got=cuts[-1],
            do="Lower cuts",
        )
    return None


def _by_origin(asked: Asked) -> StudentError | None:
    if set(asked.written) == {True, False}:
        return _own_logits(asked)
    return asked.error(
        "goes one way on texts that the teacher wrote and another on the student's own",
        expected="two caches: --cache of texts that --generate wrote, --cache of the student's",
        got=f"texts of {'the teacher' if any(asked.written) else 'a corpus'} alone",
        do="Precompute a cache with --generate and one of the student's texts, or use --losses skew_kl=1.0",
    )


def _every_token(asked: Asked) -> StudentError:
    return asked.error(
        "compares every token's states, which are kilobytes a token and in no cache",
        do="Precompute a cache with --features mean:3 mean:6, two pooled layers; and use --losses pkd=1.0",
    )


LINEAR = Kind(
    name="linear in p",
    served_by="any policy; without bias where entries are drawn",
    refusal=_served,
    worth=of_linear,
)
FINITE = Kind(
    name="not linear, finite at p = 0",
    served_by="`all`, `top_k`, `top_p`; draws with `--own_logits`, without bias",
    refusal=_own_logits,
    worth=of_finite,
    own=True,
)
EXACT = Kind(name="exact entries", served_by="`all`, `top_k`, `top_p`", refusal=_exact_only, worth=of_cut)
WHOLE = Kind(name="every score", served_by="`all`", refusal=_all_only, worth=of_cut)
KEPT = Kind(
    name="kept entries alone",
    served_by="`all`, `top_k`, `top_p`, to compare with",
    refusal=_no_division,
    worth=of_kept,
    normalises=True,
)
LOGITS = Kind(
    name="logits of kept entries",
    served_by="any policy with `--scalars logsumexp`; `sampled` with `--own_logits` too",
    refusal=_logits_known,
    worth=of_logits,
)
LABELS = Kind(
    name="labels", served_by="any cache with labels", refusal=_served, worth=of_labels, from_entries=False
)
FEATURES = Kind(
    name="pooled features", served_by="`--features`", refusal=_features, worth=of_features, from_entries=False
)
ORIGIN = Kind(
    name="rows by origin",
    served_by="two caches, one of texts that `--generate` wrote and one of the student's; draws with `--own_logits`",
    refusal=_by_origin,
    worth=of_finite,
    own=True,
    by_origin=True,
)
EVERY_TOKEN = Kind(
    name="every token's states",
    served_by="no cache: they are kilobytes a token",
    refusal=_every_token,
    worth=of_nothing,
)
