"""What a student writes, beside what it should: chrF and BLEU (sacrebleu), ROUGE-L (torchmetrics), of greedy texts.

Both libraries are an extra, `[text]`: without them nothing is written, and a warning says so. Texts are tokens as the
tokenizer decodes them, references too: what tokenisation loses counts for nobody. Writing costs as many forwards as the
longest text has tokens, so a bounded number of rows is written, the first of the held-out ones.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int32
from numpy import ndarray
from transformers import GenerationConfig

from schemas.decoder_inputs import IGNORED, decoder_inputs
from schemas.rows.rows import Rows
from schemas.tasks import SOURCE_TOKENS
from trainer.metrics.tokens import Metrics

MOST_ROWS = 64
_TOGETHER = 16
"""Rows that are written at once."""
_LONGER = 1.5
"""A text may be so much longer than the longest target beside it; one that does not end is cut there."""
_PACKAGES = ("sacrebleu", "torchmetrics")
_log = logging.getLogger(__name__)

Ids = Int32[ndarray, " _"]


class Pair(NamedTuple):
    """A source, and what should be said to it."""

    source: Ids
    target: Ids


@torch.no_grad()
def text_metrics(
    model: Any, tokenizer: Any, rows: Iterable[Rows], *, pad_id: int, device: torch.device
) -> Metrics:
    """`chrf` and `bleu`, of 100, of all texts as one; `rouge_l`, of 1, a mean over texts; `written_rows`: of how many.

    chrF: character n-grams up to 6, beta 2 (Popović 2015); BLEU: sacrebleu's defaults (arXiv:1804.08771); ROUGE-L: F1
    of the longest common subsequence of lowercase words (Lin 2004).
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        _log.warning(
            "chrF, BLEU and ROUGE are left out: %s not installed (pip install 'teachonce[text]')",
            " and ".join(missing),
        )
        return {}
    pairs = sorted(itertools.islice(_pairs(rows), MOST_ROWS), key=lambda pair: len(pair.target))
    written = [
        text
        for first in range(0, len(pairs), _TOGETHER)
        for text in _written(model, tokenizer, pairs[first : first + _TOGETHER], pad_id, device)
    ]
    wanted = [_text(tokenizer, pair.target.tolist()) for pair in pairs]
    return {**_compared(written, wanted), "written_rows": len(written)}


def _compared(written: Sequence[str], wanted: Sequence[str]) -> Metrics:
    bleu, rouge = (
        importlib.import_module(name) for name in ("sacrebleu", "torchmetrics.functional.text.rouge")
    )
    found = rouge.rouge_score(
        list(written), list(wanted), rouge_keys=("rougeL",), normalizer=_words, tokenizer=str.split
    )
    return {
        "chrf": bleu.corpus_chrf(written, [wanted]).score,
        "bleu": bleu.corpus_bleu(written, [wanted]).score,
        "rouge_l": float(found["rougeL_fmeasure"]),
    }


def _words(text: str) -> str:
    """Lowercase letters and digits of any script, all else a blank; torchmetrics' own knows no letters but a to z."""
    return re.sub(r"[\W_]+", " ", text.lower())


def _pairs(rows: Iterable[Rows]) -> Iterator[Pair]:
    for part in rows:
        sources, targets = part.input_ids.split(part.array(SOURCE_TOKENS).astype("int64"))
        yield from (Pair(sources.row(index), targets.row(index)) for index in range(len(part)))


def _written(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], pad_id: int, device: torch.device
) -> list[str]:
    """The greedy text of each pair's source, begun as the student was taught to; what its folder says of lengths,
    repetitions and forced tokens is left out."""
    width = max(len(pair.source) for pair in pairs)
    ids = torch.full((len(pairs), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair.source)] = torch.from_numpy(pair.source)
        mask[row, : len(pair.source)] = 1
    longest = max(len(pair.target) for pair in pairs)
    targets = torch.full((len(pairs), longest), IGNORED)
    for row, pair in enumerate(pairs):
        targets[row, : len(pair.target)] = torch.from_numpy(pair.target)
    begin = decoder_inputs(model, targets.to(device))[:, :1]
    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else model.config.eos_token_id
    greedy = GenerationConfig(
        max_new_tokens=int(_LONGER * longest) + 1,
        num_beams=1,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=pad_id,
        decoder_start_token_id=int(begin[0, 0]),
    )
    model.generation_config = GenerationConfig()  # its values would stand wherever ours say nothing
    try:
        found = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            decoder_input_ids=begin,
            generation_config=greedy,
        )
    finally:
        model.generation_config = own
    return [_text(tokenizer, row) for row in found.tolist()]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text
