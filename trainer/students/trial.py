"""A student is tried before it is trained: what does not run, generate or save is refused while it costs nothing.

On a few tokens, with dropout off: a plain forward; a text alone against the same text beside a longer one, padded as in
training; for a language model that no token sees the next, and three tokens of `generate`; and what `save_pretrained`
writes. Each failure is one line that names the model's class.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from schemas.errors import StudentError, one_line
from schemas.model_heads import body_of
from schemas.task import Task
from trainer.models.shrink import Scores, plain_ids

_SHORT, _LONG, _NEW = 5, 17, 3
_TOLERANCE = 2**-12
"""Largest difference, relative to the largest value: float32 in batches of another shape is a hundredth of it."""
_TRIED_FLOPS = 1e12
"""What a forward at the full length may cost to be tried where positions are not looked up in a table: seconds."""


@torch.no_grad()
def try_student(
    model: Any,
    *,
    task: Task,
    pad_id: int,
    max_length: int,
    alone: bool = False,
    trained: bool = True,
    generates: bool = False,
    scores: Scores = lambda output: output.logits,
) -> None:
    """Tries a student on a few tokens.

    Args:
        model: the student, in float32.
        task: what it is to learn.
        pad_id: what pads its batches.
        max_length: tokens of the longest text that it must take.
        alone: whether each batch holds one row, so that nothing is padded.
        trained: whether it is going to be trained and saved, not only measured.
        generates: whether it must be able to write tokens.
        scores: what of its output is of each text, or of each token.

    Raises:
        StudentError: naming the class and what does not go.
    """
    was_training = model.training
    model.eval()
    long = plain_ids(model, min(_LONG, max_length))
    short = long[:, : max(1, min(_SHORT, long.shape[1] - 1))]
    told = _Told(model, scores_of=scores, decoder=long if task.has_source else None)
    own = told.scores(long, torch.ones_like(long))
    if not bool(torch.isfinite(own).all()):
        raise _refused(model, "gives logits that are not numbers", "Its weights are damaged or have diverged")
    if task.precedes_tokens:
        _check_causal(told, long, own)
    if not alone:
        each_token = task.predicts_tokens or task.classes_are_tokens or not task.has_positions
        _check_alone(told, short, long, pad_id, each_token=each_token)
    _check_length(told, max_length)
    if generates:
        _check_generates(told, long, pad_id, max_length)
    if trained:
        check_saves(model)
    model.train(was_training)


def takes_token_types(model: Any) -> bool:
    """Whether the model can be told the type of each token; a config that counts them counts more than one.

    XLNet's does not: it compares types, and looks none up.
    """
    counted = getattr(model.config.get_text_config(), "type_vocab_size", None)
    return counted not in (0, 1) and "token_type_ids" in inspect.signature(model.forward).parameters


class _Told(NamedTuple):
    """A student, and what its decoder is given where it has one beside its encoder: for each row the same."""

    model: Any
    scores_of: Scores
    decoder: Tensor | None = None

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        given = {"input_ids": ids, "attention_mask": mask}
        if self.decoder is not None:
            given["decoder_input_ids"] = self.decoder.expand(len(ids), -1)
        return given

    def scores(self, ids: Tensor, mask: Tensor, what: str = "a plain forward") -> Tensor:
        with _named(self.model, what):
            scores: Tensor = self.scores_of(self.model(**self.inputs(ids, mask))).float()
        return scores


def _check_causal(told: _Told, ids: Tensor, own: Tensor) -> None:
    """Another last token must not change what is said before it."""
    if ids.shape[1] < 2:
        return
    model, other = told.model, ids.clone()
    other[0, -1] = ids[0, 0] if ids[0, 0] != ids[0, -1] else ids[0, 1]
    changed = (told, other) if told.decoder is None else (told._replace(decoder=other), ids)
    if differ(changed[0].scores(changed[1], torch.ones_like(ids))[:, :-1], own[:, :-1]):
        config = model.config.get_text_config()
        do = 'Set "is_decoder": true in its config' if getattr(config, "is_decoder", None) is False else None
        raise _refused(model, "is no causal language model: a token's prediction sees the token after it", do)


def _check_alone(told: _Told, short: Tensor, long: Tensor, pad_id: int, *, each_token: bool) -> None:
    """A short text beside a long one must be answered as it is alone."""
    padded = torch.full_like(long, pad_id)
    padded[:, : short.shape[1]] = short
    mask = torch.zeros_like(long)
    mask[:, : short.shape[1]] = 1
    both = torch.cat([padded, long]), torch.cat([mask, torch.ones_like(long)])
    alone = told.scores(short, torch.ones_like(short))
    beside = told.scores(*both, what="a padded batch")[:1]
    if differ(beside[:, : alone.shape[1]] if each_token else beside, alone):
        raise _refused(
            told.model,
            f"answers a text otherwise when it is padded beside a longer one (with id {pad_id}, on the right)",
            "Train and measure it one text a batch (--per_device_train_batch_size 1 --per_device_eval_batch_size 1; "
            "evaluate --batch_size 1), or choose another class",
        )


def _check_length(told: _Told, max_length: int) -> None:
    """The longest text that the cache may hold: positions that are looked up in a table end somewhere."""
    model = told.model
    costs = 2.0 * max_length * sum(p.numel() for p in model.parameters())
    if not (_has_position_table(model) or (costs < _TRIED_FLOPS and max_length <= 2**12)):
        return
    ids = plain_ids(model, max_length)
    given = (told if told.decoder is None else told._replace(decoder=ids)).inputs(ids, torch.ones_like(ids))
    try:
        body_of(model)(**given)
    except Exception as error:
        raise StudentError(
            "the student is too short for the cache's examples",
            where=type(model).__name__,
            expected=f"positions for {max_length} tokens",
            got=one_line(error).rstrip("."),
            do="Raise its config's max_position_embeddings (RoBERTa and its like need two more than tokens)",
        ) from error


def _has_position_table(model: nn.Module) -> bool:
    return any(
        isinstance(module, nn.Embedding)
        and any(word in name.lower() for word in ("position", "wpe", "pos_emb"))
        for name, module in model.named_modules()
    )


def _check_generates(told: _Told, ids: Tensor, pad_id: int, max_length: int) -> None:
    model, new = told.model, min(_NEW, max_length - 1)
    prompt = ids[:, : max(1, min(_SHORT, max_length - new))]
    asked = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": pad_id}
    with _named(model, f"generate for {new} tokens"):
        found = model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
    before = prompt.shape[1] if told.decoder is None else 1
    if found.shape[1] != before + new:
        raise _refused(model, "cannot generate", None, got=f"{found.shape[1] - before} of {new} tokens")


def check_saves(model: Any) -> None:
    """What is written beside the weights; transformers refuses some settings only then, after the training.

    Raises:
        StudentError: naming the class.
    """
    with tempfile.TemporaryDirectory() as folder, _named(model, "saving its config"):
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)


def differ(a: Tensor, b: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Whether scores differ in shape, or by more than rounding, relative to the largest."""
    return a.shape != b.shape or not (a - b).abs().max().item() <= tolerance * b.abs().max().item()


@contextmanager
def _named(model: Any, what: str) -> Iterator[None]:
    """Every failure of a library's call is one line."""
    try:
        yield
    except Exception as error:
        raise _refused(model, f"fails in {what}", None, got=one_line(error).rstrip(".")) from error


def _refused(model: Any, what: str, do: str | None, got: str | None = None) -> StudentError:
    return StudentError(f"{type(model).__name__} cannot be a student: it {what}", got=got, do=do)
