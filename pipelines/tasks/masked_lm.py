"""Masked language models: some tokens are hidden from the teacher, and positions stand on them (arXiv:1810.04805).

Of a window's tokens, special ones left out, `mlm_probability` are chosen: so many, rounded, and at least one. Of these
the teacher sees the mask token, a random one, or what stands there. Which, is a function of the seed and the example's
id alone; each of `views` views is an example of its own. With `whole_word_mask` words are chosen until so many tokens
are: a word that would be too many is left out, but for the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers
from jaxtyping import Float64, Int32

from pipelines.keep.uniforms import streams
from pipelines.tasks.teacher_task import (
    Asked,
    Settings,
    TeacherTask,
    head_inputs,
    language_body,
    model_name,
    refuse_encoder_decoder,
    tells_words,
)
from pipelines.tasks.windows import Tokens, Window, stretches
from schemas.errors import UsageError
from schemas.rows.ragged import Array
from schemas.spec import Spec


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedTokens:
    """Windows between their special tokens, in one or several views."""

    spec: Spec
    mask_id: int
    special_ids: Int32[np.ndarray, " X"]
    """Never masked, wherever they stand, and never what a random token is."""
    others: Int32[np.ndarray, " Y"]
    """What a random token may be."""

    @classmethod
    def of(cls, tokenizer: Any, spec: Spec) -> MaskedTokens:
        """Bound to a tokenizer."""
        special = sorted(set(tokenizer.all_special_ids))
        known = sorted(i for i in set(tokenizer.get_vocab().values()) if i < spec.vocab_size)
        others = np.setdiff1d(np.array(known, np.int32), np.array(special, np.int32))
        return cls(
            spec=spec,
            mask_id=tokenizer.mask_token_id,
            special_ids=np.array(special, np.int32),
            others=others,
        )

    def windows(self, tokens: Tokens) -> list[Window]:
        found, views = [], int(self.spec.setting("views"))
        fits = tokens.supervised & ~tokens.special & ~np.isin(tokens.ids, self.special_ids)
        for stretch in stretches(tokens, self.spec):
            places = np.flatnonzero(fits[stretch.tokens]).astype(np.int32)
            places = places[places >= stretch.first_new]
            if places.size:
                found += [Window(stretch.tokens, places, (view,)) for view in range(views)]
        return found

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        key, rows = np.frombuffer(example_id, np.uint8)[None], np.zeros(len(window.positions), np.int64)
        draws = streams(key, rows, window.positions, self.spec.sample_seed, count=3, purpose="mask")
        words = None if tokens.words is None else tokens.words[window.tokens][window.positions]
        chosen = self._chosen(window.positions, words, draws[:, 0])
        ids = tokens.ids[window.tokens]
        places = window.positions[chosen]
        gold = ids[places]
        ids[places] = self._shown(gold, draws[chosen])
        return Asked(ids, places, gold)

    def _chosen(
        self, places: Int32[np.ndarray, " C"], words: Int32[np.ndarray, " C"] | None, draw: Array
    ) -> Array:
        """Which of the candidates are positions, ascending."""
        most = max(1, round(float(self.spec.setting("mlm_probability")) * len(places)))
        if words is None:
            return np.sort(np.argsort(draw, kind="stable")[:most])
        begins = np.flatnonzero(np.r_[True, (np.diff(words) != 0) | (np.diff(places) != 1)])
        ends = np.r_[begins[1:], len(places)]
        chosen = list[Array]()
        left = most
        for word in np.argsort(draw[begins], kind="stable"):
            size = int(ends[word] - begins[word])
            if size <= left or not chosen:
                chosen.append(np.arange(begins[word], ends[word]))
                left -= size
            if left <= 0:
                break
        return np.sort(np.concatenate(chosen))

    def _shown(
        self, gold: Int32[np.ndarray, " N"], draws: Float64[np.ndarray, "N 3"]
    ) -> Int32[np.ndarray, " N"]:
        """What the teacher sees at positions."""
        masked = float(self.spec.setting("mask_replace_prob"))
        changed = masked + float(self.spec.setting("random_replace_prob"))
        random = self.others[(draws[:, 2] * len(self.others)).astype(np.int64)] if len(self.others) else gold
        kind = draws[:, 1]
        shown: Array = np.where(kind < masked, self.mask_id, np.where(kind < changed, random, gold))
        return shown.astype(np.int32)


def _check(config: Any, tokenizer: Any, settings: Settings) -> None:
    refuse_encoder_decoder(config, "encoder")
    if tokenizer.mask_token_id is None:
        raise UsageError(
            "the teacher's tokenizer has no mask token",
            got=model_name(config),
            do="Use a masked language model with its own tokenizer as --teacher",
        )
    shares = float(settings["mask_replace_prob"]), float(settings["random_replace_prob"])
    if sum(shares) > 1:
        raise UsageError(
            "--mask_replace_prob and --random_replace_prob are shares of one whole",
            expected="at most 1 together",
            got=f"{shares[0]:g} and {shares[1]:g}",
            do="Lower one of them",
        )
    if settings["whole_word_mask"] and not tells_words(tokenizer):
        raise UsageError(
            "the teacher's tokenizer does not tell which tokens are one word",
            got=type(tokenizer).__name__,
            do="Save a fast tokenizer that splits text into words (tokenizer.json), or leave --whole_word_mask out",
        )


TASK = TeacherTask(
    auto=transformers.AutoModelForMaskedLM,
    inputs=MaskedTokens.of,
    body=language_body,
    at_positions=head_inputs,
    check=_check,
    reads_words=lambda spec: bool(spec.setting("whole_word_mask")),
)
