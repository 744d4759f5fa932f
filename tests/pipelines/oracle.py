"""The truth about a cached row: a plain forward of the whole sequence, written as in a textbook, without our code."""

from typing import NamedTuple

import numpy as np
import torch
import transformers

HALF_STEP, HALF_TOP_STEP, HALF_SCALAR_STEP = 1 / 32, 1 / 128, 1 / 64
"""What rounding to codes costs entries, the top one, and scalars, at most."""
ROUNDING = 5e-5
"""Nats by which two orders of the same float32 sums may differ here."""


POOLED = {"mean": lambda h: h.mean(0), "cls": lambda h: h[0], "last": lambda h: h[-1]}


@torch.inference_mode()
def by_hand(folder, texts, pooling, *, prompt="", longest=1024, normalize=False, cut=None):
    """One text at a time, without padding, in float32."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        given = tokenizer(prompt + text, truncation=True, max_length=longest, return_tensors="pt")
        states = model(**given).last_hidden_state[0]
        one = POOLED[pooling](states)[:cut]
        found.append((one / one.norm() if normalize else one).numpy())
    return np.stack(found)


class Truth(NamedTuple):
    """Of one sequence, per position of the model: float64 logits, and the hidden states of every layer."""

    logits: np.ndarray
    hidden: list[np.ndarray]


class Oracle:
    """A model as `from_pretrained` opens it."""

    def __init__(self, folder, *, auto=transformers.AutoModelForCausalLM, dtype=torch.float32):
        self.model = auto.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def truth(self, row: dict) -> Truth:
        ids = torch.from_numpy(row["input_ids"].astype(np.int64))[None]
        inputs = {"input_ids": ids}
        if "token_type_ids" in row:
            inputs["token_type_ids"] = torch.from_numpy(row["token_type_ids"].astype(np.int64))[None]
        if "source_tokens" in row:
            return self._of_target(ids, int(row["source_tokens"]))
        output = self.model(**inputs, output_hidden_states=True)
        logits = output.logits[0]
        if self.model.dtype != torch.float32:
            weight = self.model.get_output_embeddings().weight.float()
            logits = output.hidden_states[-1][0].float() @ weight.T
        return Truth(logits.double().numpy(), [state[0].float().numpy() for state in output.hidden_states])

    def _of_target(self, ids: torch.Tensor, source: int) -> Truth:
        """A target's logits, each where the token before stands; before a target nothing is said."""
        said = self.model(input_ids=ids[:, :source], labels=ids[:, source:]).logits[0].double()
        before = said.new_full((source - 1, said.shape[1]), torch.nan)
        return Truth(torch.cat([before, said]).numpy(), [])


def check_row(row: dict, truth: Truth, spec, *, rounding: float = ROUNDING) -> int:
    """Asserts all that a softmax row says of its positions; returns how many ids stand where rounding put them."""
    logits = truth.logits[row["positions"]]
    offsets, swapped = row["kept_offsets"], 0
    for n, scores in enumerate(logits):
        kept = slice(offsets[n], offsets[n + 1])
        swapped += check_kept(row["kept_ids"][kept], row["logprobs"][kept], scores, spec, rounding)
    shape = (len(logits), len(spec.temperatures))
    if "logsumexp" in spec.scalars:
        expected = np.stack([logsumexp(logits / t) for t in spec.temperatures], axis=1)
        np.testing.assert_allclose(row["logsumexp"].reshape(shape), expected, rtol=1e-6, atol=rounding)
    logprobs = logits - logsumexp(logits)[:, None]
    entropy = -(np.exp(logprobs) * logprobs).sum(1)
    np.testing.assert_allclose(row["entropy"], entropy, rtol=1e-4, atol=HALF_SCALAR_STEP + rounding)
    return swapped


def check_labels(row: dict, truth: Truth, labels, *, rounding: float = ROUNDING) -> None:
    logits = truth.logits[row["positions"]]
    expected = logits[np.arange(len(logits)), labels] - logsumexp(logits)
    np.testing.assert_allclose(row["label_logprob"], expected, rtol=1e-6, atol=HALF_SCALAR_STEP + rounding)


def check_kept(ids, logprobs, scores, spec, rounding: float) -> int:
    """Kept entries of one position against all its scores: ids, how many, and log-probabilities."""
    order = np.argsort(-scores, kind="stable")
    exact = scores - logsumexp(scores[None])
    assert np.abs(scores[ids] - scores[order[: len(ids)]]).max() <= rounding
    assert len(set(ids.tolist())) == len(ids)
    assert np.abs(logprobs - exact[ids]).max() <= HALF_STEP + rounding
    assert logprobs[0] == np.float32(logprobs[0])
    assert abs(logprobs[0] - exact[ids[0]]) <= HALF_TOP_STEP + rounding
    check_count(len(ids), np.exp(exact[order]), spec, rounding)
    return int((ids != order[: len(ids)]).sum())


def check_count(count: int, descending, spec, rounding: float) -> None:
    if not hasattr(spec.keep, "p"):
        assert count == spec.max_kept
        return
    mass = np.cumsum(descending)
    assert count == spec.max_kept or mass[count - 1] >= spec.keep.p - rounding
    assert count == 1 or mass[count - 2] < spec.keep.p + rounding


def check_features(row: dict, truth: Truth, spec, *, rounding: float = ROUNDING) -> None:
    for feature in spec.features:
        states = truth.hidden[feature.layer]
        exact = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[feature.pooling]
        scale = row[feature.scale_column] if feature.dtype == "int8" else 0.0
        if feature.dtype == "int8":
            np.testing.assert_allclose(scale, np.abs(exact).max() / 127, rtol=1e-3)
        bound = scale / 2 + rounding * max(1.0, np.abs(exact).max())
        assert np.abs(row[feature.name] - exact).max() <= bound


def logsumexp(scores):
    top = scores.max(1)
    return top + np.log(np.exp(scores - top[:, None]).sum(1))
