"""Encoder-decoders (translation, summaries): the teacher reads a source, and predicts each token of its target.

An example is the source's tokens and then the target's, each with the special tokens that the tokenizer gives it. A
position stands before each token of the target, as in a causal language model that reads both in one line. There are no
windows: a part of a source is no source of the whole target. What is too long is rejected; a source is cut at its end
where that is asked for, and a target never, which would teach to end where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from pipelines.rejects import TOO_LONG, RejectedError
from pipelines.tasks.teacher_task import Asked, Settings, TeacherTask, head_inputs, language_body, model_name
from pipelines.tasks.windows import Tokens, Window, edges, taken
from schemas.errors import UsageError
from schemas.model_heads import body_of, headless
from schemas.spec import Spec


@dataclass(frozen=True)
class Targets:
    """One window a document: all of its source, or its beginning, and all of its target."""

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        most, total = self.spec.max_length, len(tokens.ids)
        assert tokens.source is not None
        source, target = np.arange(tokens.source), np.arange(tokens.source, total)
        for what, length in (("source", len(source)), ("target", len(target))):
            if length > most and not (what == "source" and self.spec.setting("truncate_source")):
                expected = f"a {what} of at most {most:,} tokens (--max_length)"
                raise RejectedError(TOO_LONG, expected=expected, got=f"{length:,}")
        if not len(source) or not len(target):
            return []
        if len(source) > most:
            special = tokens._replace(special=tokens.special[: len(source)])
            _, suffix = edges(special)
            source = np.concatenate([source[: most - suffix], source[len(source) - suffix :]])
        index = np.concatenate([source, target]).astype(np.int32)
        positions = np.arange(len(source) - 1, len(index) - 1, dtype=np.int32)
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
