"""Encoder-decoders (translation, summaries): the teacher reads a source, and predicts each token of its target.

An example is the source's tokens and then the target's, each with the special tokens that the tokenizer gives it. A
position stands before each token of the target, as in a causal language model that reads both in one line. There are no
windows: a part of a source is no source of the whole target. What is too long is rejected; a source is cut at its end
where that is asked for, and a target never, which would teach to end where it does not.

Where the teacher writes the targets, an example is the source and what every target begins with (a language, or BART's
`<s>`): that is the tokenizer's to say, and the teacher is told it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from pipelines.rejects import TOO_LONG, RejectedError
from pipelines.tasks.teacher_task import Asked, Settings, TeacherTask, head_inputs, language_body, model_name
from pipelines.tasks.windows import Tokens, Window, edges, taken
from schemas.errors import UsageError
from schemas.model_heads import body_of, headless
from schemas.spec import Spec


class Halves(NamedTuple):
    """A source with its target behind, as a tokenizer gives them."""

    encoded: dict[str, list[int]]
    source: int
    """How many tokens are the source's."""


def both_halves(tokenizer: Any, source: str, target: str) -> Halves:
    """Each as the tokenizer gives it to the half that reads it (M2M and Marian have languages); a target ends with the
    end token also where the tokenizer puts none."""
    options = {"return_special_tokens_mask": True, "verbose": False}
    said = tokenizer(text_target=target, **options)
    ids, special = list(said["input_ids"]), list(said["special_tokens_mask"])
    end = tokenizer.eos_token_id
    if end is not None and not any(kind and i == end for i, kind in zip(ids, special, strict=True)):
        ids, special = [*ids, end], [*special, 1]
    return _behind(tokenizer(source, **options), ids, special)


def source_half(tokenizer: Any, source: str, ends: tuple[int, ...]) -> Halves:
    """A source whose target the teacher is to write, and what that begins with.

    Raises:
        UsageError: as `target_prefix`.
    """
    begins = target_prefix(tokenizer, ends)
    read = tokenizer(source, return_special_tokens_mask=True, verbose=False)
    return _behind(read, begins, [1] * len(begins))


def _behind(read: Any, ids: list[int], special: list[int]) -> Halves:
    encoded = {
        "input_ids": [*read["input_ids"], *ids],
        "special_tokens_mask": [*read["special_tokens_mask"], *special],
    }
    return Halves(encoded, len(read["input_ids"]))


def target_prefix(tokenizer: Any, ends: tuple[int, ...]) -> list[int]:
    """What the tokenizer puts before every target.

    Raises:
        UsageError: more than an end token stands behind a target (mBART's language), so the decoder begins with what is
            known only when the text is whole.
    """
    frame = list(tokenizer(text_target="", verbose=False)["input_ids"])
    if frame and frame[-1] not in ends:
        raise UsageError(
            "--generate: the tokenizer puts more than an end token behind a target",
            expected=f"one of {list(ends)} as the last token of each",
            got=f"{frame[-1]} ({tokenizer.convert_ids_to_tokens(frame[-1])}), of {type(tokenizer).__name__}",
            do="Write the targets outside and name them by --target_field, or use another --teacher",
        )
    return frame[:-1]


@dataclass(frozen=True)
class Targets:
    """One window a document: all of its source, or its beginning, and all of its target, if it has one already."""

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        most, total = self.spec.max_length, len(tokens.ids)
        assert tokens.source is not None
        source, target = np.arange(tokens.source), np.arange(tokens.source, total)
        for what, length in (("source", len(source)), ("target", len(target))):
            if length > most and not (what == "source" and self.spec.setting("truncate_source")):
                expected = f"a {what} of at most {most:,} tokens (--max_length)"
                raise RejectedError(TOO_LONG, expected=expected, got=f"{length:,}")
        written = self.spec.generation is not None
        if not len(source) or not (len(target) or written):
            return []
        if len(source) > most:
            special = tokens._replace(special=tokens.special[: len(source)])
            _, suffix = edges(special)
            source = np.concatenate([source[: most - suffix], source[len(source) - suffix :]])
        index = np.concatenate([source, target]).astype(np.int32)
        positions = np.arange(len(source) - 1, len(index) - 1, dtype=np.int32)
        positions = positions[:0] if written else positions
        return [Window(index, positions, (len(source),))]

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        return Asked(taken(tokens.ids, window), window.positions)


def _body(model: Any) -> Any:
    """All before the output layer: of T5 and its like, which have no body apart, their own code without it."""
    if body_of(model) is model:
        return headless(model, hands_on=torch.nn.Identity(), zero=torch.zeros(()))
    return language_body(model)


def _check(config: Any, tokenizer: Any, settings: Settings) -> None:
    name = model_name(config)
    if not getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{name} is no encoder-decoder", do="Use T5, BART, Marian or their like as --teacher"
        )
    for language in ("src_lang", "tgt_lang"):
        if getattr(tokenizer, language, "") is None:
            raise UsageError(
                f"the teacher's tokenizer has languages, and does not say which is its {language}",
                got=type(tokenizer).__name__,
                do="Set src_lang and tgt_lang and save it beside the teacher (save_pretrained)",
            )
    apart = getattr(tokenizer, "separate_vocabs", False)
    if apart or getattr(config, "decoder_vocab_size", None) not in (None, config.vocab_size):
        raise UsageError(
            f"{name} has a vocabulary for sources and another for targets",
            expected="one for both",
            do="Use another --teacher",
        )


TASK = TeacherTask(
    auto=transformers.AutoModelForSeq2SeqLM,
    inputs=lambda tokenizer, spec: Targets(spec),
    body=_body,
    at_positions=head_inputs,
    check=_check,
    least="a token of source, and one of target",
)
