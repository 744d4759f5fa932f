"""From logits to kept entries: the policy applied to a chunk of positions, on the teacher's device.

Ties break by id: of equal logits the lower id comes first, and is kept first.

Policies that draw ids have everything from a float64 pass: the default's in `pipelines/keep/threshold.py`, that of all
others in `pipelines/keep/sampler.py`.

Costs, for N positions of V logits on a CPU: one pass each for the largest of each block, for exp, for its sum and for
the entropy's dot product; what the top-k costs is said in `top.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int

from pipelines.keep.sampler import Scratch, draw_rare, draw_with_replacement, join, survey
from pipelines.keep.threshold import keep_threshold
from pipelines.keep.top import top_k
from schemas.policies import KeepAll, KeepPolicy, Sampled, Threshold, TopP, max_kept, max_sampled

_CACHED_BYTES = 2**21
"""On a CPU, logits are gone over in pieces that stay in the core's cache between the passes."""
_SCRATCH_BYTES = 2**27
"""On an accelerator, logits that ids are drawn from: a float64 copy of so many, twice, is in memory at a time. Of
independent draws then the running sums that they are looked up in: so many bytes of them, a few times."""


class Selected(NamedTuple):
    """What is kept of N positions. Exact entries descend; those from `counts[n]` on are not kept.

    Drawn entries ascend by id; those from `num_sampled[n]` on are none. S is 0 for policies that draw none.
    """

    ids: Int[torch.Tensor, "N K"]
    logprobs: Float[torch.Tensor, "N K"]
    """Under the full softmax at T=1, in nats."""
    counts: Int[torch.Tensor, " N"]
    logsumexp: Float[torch.Tensor, "N T"]
    entropy: Float[torch.Tensor, " N"]
    """Of the full distribution, in nats."""
    kept_mass: Float[torch.Tensor, " N"]
    """Of the exact entries."""
    label_logprob: Float[torch.Tensor, " N"]
    top_logprob: Float[torch.Tensor, " N"]
    sampled_ids: Int[torch.Tensor, "N S"]
    sampled_logprobs: Float[torch.Tensor, "N S"]
    """Their own, under the full softmax at T=1, in nats."""
    draws: Int[torch.Tensor, "N S"]
    """How often each was drawn."""
    num_sampled: Int[torch.Tensor, " N"]
    word_start_logprob: Float[torch.Tensor, "N C"]
    """That a token comes which begins a word, in nats: C is 1, or 0 where that is not asked for."""


def select(
    logits: Float[torch.Tensor, "N V"],
    labels: Int[torch.Tensor, " N"],
    policy: KeepPolicy,
    temperatures: tuple[float, ...] = (1.0,),
    uniforms: Float64[torch.Tensor, "N U"] | None = None,
    *,
    words: Int[torch.Tensor, " W"] | None = None,
) -> Selected:
    """Applies a keep policy to float32 logits. A label below 0 is none: its log-probability is NaN.

    A policy that draws ids needs `num_uniforms` random numbers of each position, in [0, 1). `words` are the ids whose
    mass is told together.
    A position whose logits are not all finite has a `logsumexp`, `entropy` or log-probability that is not finite.
    `logits` are used as working memory: they hold something else afterwards.
    """
    if words is not None:
        mass = logits.index_select(1, words).double().logsumexp(1)
        found = select(logits, labels, policy, temperatures, uniforms)
        return found._replace(word_start_logprob=mass.float()[:, None] - found.logsumexp[:, :1])
    if isinstance(policy, Threshold | Sampled):
        assert uniforms is not None
        if isinstance(policy, Threshold) and policy.k == 1 and temperatures == (1.0,):
            return _select_threshold(logits, labels, policy, uniforms[:, 0])
        return _select_drawn(logits, labels, policy, temperatures, uniforms)
    size = len(logits) if logits.is_cuda else max(1, _CACHED_BYTES // (4 * logits.shape[1]))
    parts = [
        _select(rows, gold, policy, temperatures)
        for rows, gold in zip(torch.split(logits, size), torch.split(labels, size), strict=True)
    ]
    return parts[0] if len(parts) == 1 else concatenate(parts)


def num_uniforms(policy: KeepPolicy) -> int:
    """U: random numbers that the policy needs for a position."""
    if isinstance(policy, Sampled):
        return policy.n
    return 1 if isinstance(policy, Threshold) else 0


def concatenate(parts: Sequence[Selected]) -> Selected:
    """The positions of all parts, one part after the other."""
    return Selected(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _select(
    logits: Float[torch.Tensor, "n V"],
    labels: Int[torch.Tensor, " n"],
    policy: KeepPolicy,
    temperatures: tuple[float, ...],
) -> Selected:
    values, ids = top_k(logits, max_kept(policy, logits.shape[1]))
    gold = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    extra = [_logsumexp_at(logits, values[:, :1], temperature) for temperature in temperatures[1:]]
    logsumexp, entropy = _logsumexp_and_entropy(logits, values[:, :1])
    logprobs = values - logsumexp[:, None]
    counts = _counts(logprobs, policy)
    whole = torch.ones_like(logsumexp)
    return Selected(
        ids=ids,
        logprobs=logprobs,
        counts=counts,
        logsumexp=torch.stack([logsumexp, *extra], dim=1),
        entropy=entropy,
        kept_mass=whole if isinstance(policy, KeepAll) else _kept_mass(logprobs, counts),
        label_logprob=torch.where(labels < 0, torch.nan, gold - logsumexp),
        top_logprob=logprobs[:, 0],
        sampled_ids=ids[:, :0],
        sampled_logprobs=logprobs[:, :0],
        draws=ids[:, :0],
        num_sampled=torch.zeros_like(counts),
        word_start_logprob=logprobs[:, :0],
    )


def _select_threshold(
    logits: Float[torch.Tensor, "N V"],
    labels: Int[torch.Tensor, " N"],
    policy: Threshold,
    uniforms: Float64[torch.Tensor, " N"],
) -> Selected:
    v = logits.shape[1]
    found = keep_threshold(
        logits, uniforms, tau=policy.tau, most_exact=max_kept(policy, v), most_drawn=max_sampled(policy, v)
    )
    normaliser = found.logsumexp[:, None]
    logprobs = (logits.gather(1, found.head) - normaliser).float()
    gold = (logits.gather(1, labels.clamp(min=0)[:, None]) - normaliser).float()[:, 0]
    return Selected(
        ids=found.head,
        logprobs=logprobs,
        counts=found.num_exact,
        logsumexp=normaliser.float(),
        entropy=found.entropy.float(),
        kept_mass=_kept_mass(logprobs, found.num_exact),
        label_logprob=torch.where(labels < 0, torch.nan, gold),
        top_logprob=logprobs[:, 0],
        sampled_ids=found.drawn,
        sampled_logprobs=(logits.gather(1, found.drawn) - normaliser).float(),
        draws=torch.ones_like(found.drawn),
        num_sampled=found.num_drawn,
        word_start_logprob=logprobs[:, :0],
    )


def _select_drawn(
    logits: Float[torch.Tensor, "N V"],
    labels: Int[torch.Tensor, " N"],
    policy: Threshold | Sampled,
    temperatures: tuple[float, ...],
    uniforms: Float64[torch.Tensor, "N U"],
) -> Selected:
    """The passes over V in pieces, and independent draws too, which grow with N.

    The draws of a threshold for all positions at once: they are many operations, each on little.
    """
    kept = max_kept(policy, logits.shape[1], len(temperatures))
    tau, k = (policy.tau, policy.k) if isinstance(policy, Threshold) else (torch.inf, 0)
    most_bytes = _SCRATCH_BYTES if logits.is_cuda else _CACHED_BYTES
    size = max(1, most_bytes // (4 * logits.shape[1]))
    scratch = Scratch.of(min(size, len(logits)), logits)
    pieces = torch.split(logits, size)
    found = join(
        [survey(p, top_k(p, max(kept, 1)), temperatures, scratch, tau=tau, k=k) for p in pieces],
    )
    if isinstance(policy, Threshold):
        most = max_sampled(policy, logits.shape[1], len(temperatures))
        drawn = draw_rare(logits, found, temperatures, uniforms[:, 0], tau=tau, most=most)
    else:
        drawn = draw_with_replacement(logits, found, uniforms, most_bytes=most_bytes)
    logsumexp = found.logsumexp(temperatures)
    normaliser = logsumexp[:, :1]
    logprobs = (found.head_logits - normaliser).float()
    gold = (logits.gather(1, labels.clamp(min=0)[:, None]) - normaliser).float()[:, 0]
    return Selected(
        ids=found.head[:, :kept],
        logprobs=logprobs[:, :kept],
        counts=found.num_exact,
        logsumexp=logsumexp.float(),
        entropy=found.entropy.float(),
        kept_mass=_kept_mass(logprobs, found.num_exact),
        label_logprob=torch.where(labels < 0, torch.nan, gold),
        top_logprob=logprobs[:, 0],
        sampled_ids=drawn.ids,
        sampled_logprobs=(logits.gather(1, drawn.ids) - normaliser).float(),
        draws=drawn.draws,
        num_sampled=drawn.counts,
        word_start_logprob=logprobs[:, :0],
    )


def _logsumexp_at(
    logits: Float[torch.Tensor, "N V"], top: Float[torch.Tensor, "N 1"], temperature: float
) -> Float[torch.Tensor, " N"]:
    shifted = ((logits - top) / temperature).exp_()
    return shifted.sum(1).log() + top[:, 0] / temperature


def _logsumexp_and_entropy(
    logits: Float[torch.Tensor, "N V"], top: Float[torch.Tensor, "N 1"]
) -> tuple[Float[torch.Tensor, " N"], Float[torch.Tensor, " N"]]:
    """With z = logit - top: logsumexp = top + log sum e^z, entropy = log sum e^z - (sum e^z z) / sum e^z."""
    shifted = logits.sub_(top)
    exponentials = shifted.exp()
    total = exponentials.sum(1)
    weighted = torch.linalg.vecdot(exponentials, shifted)
    return top[:, 0] + total.log(), (total.log() - weighted / total).clamp(min=0)


def _before(logprobs: Float[torch.Tensor, "N K"]) -> Float[torch.Tensor, "N K"]:
    """Mass of the entries before each."""
    mass = logprobs.exp()
    return mass.cumsum(1) - mass


def _counts(logprobs: Float[torch.Tensor, "N K"], policy: KeepPolicy) -> Int[torch.Tensor, " N"]:
    n, k = logprobs.shape
    if not isinstance(policy, TopP):
        return torch.full((n,), k, dtype=torch.int64, device=logprobs.device)
    return (_before(logprobs) < policy.p).sum(1).clamp(min=1)


def _kept_mass(
    logprobs: Float[torch.Tensor, "N K"], counts: Int[torch.Tensor, " N"]
) -> Float[torch.Tensor, " N"]:
    kept = torch.arange(logprobs.shape[1], device=logprobs.device) < counts[:, None]
    return (logprobs.exp() * kept).sum(1)
