"""Masked language models: the cache holds texts as the teacher saw them, and the tokens that were hidden.

What stands between body and head (BERT's transform, RoBERTa's dense layer) runs as the model's own code; the last,
linear layer is applied to positions in chunks, so no `[B, S, V]` exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from schemas.rows.rows import Rows
from trainer.metrics.tokens import Metrics, token_metrics
from trainer.models.heads import Head, run_whole
from trainer.tasks.student_task import LOSS_ON_TEXT, Measured, StudentTask, teacher_cross_entropy

MOST_TOKENS = 1024
"""Tokens that pseudo-perplexity is taken over: each costs a forward of its text."""
_TOGETHER = 2**14
"""Tokens of texts that are asked at once."""


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    found = token_metrics(measured.model, run_whole, batches, measured.device)
    return found | teacher_cross_entropy(measured) | pseudo_perplexity(measured)


@torch.no_grad()
def pseudo_perplexity(measured: Measured, most_tokens: int = MOST_TOKENS) -> Metrics:
    """exp of the mean -log p of tokens that are hidden one at a time, all others as they were written
    (arXiv:1910.14659). The tokens are the cache's positions: a random part of each text."""
    losses: list[Tensor] = []
    head = Head.of(measured.model)
    for ids, types, places in _texts(measured, most_tokens):
        gold = ids[places].to(measured.device)
        for part in torch.split(torch.arange(len(places)), max(1, _TOGETHER // len(ids))):
            hidden = ids.repeat(len(part), 1)
            hidden[torch.arange(len(part)), places[part]] = measured.tokenizer.mask_token_id
            inputs = {"input_ids": hidden.to(measured.device)}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if types is not None:
                inputs["token_type_ids"] = types.repeat(len(part), 1).to(measured.device)
            states = run_whole(measured.model, inputs, (), -1).head_inputs
            assert states is not None
            given = states[torch.arange(len(part)), places[part]]
            losses.append(
                nn.functional.cross_entropy(head.logits(given).float(), gold[part], reduction="none")
            )
    if not losses:
        return {}
    mean = torch.cat(losses).double().mean().item()
    return {
        "pseudo_perplexity": math.exp(min(mean, 700.0)),
        "pseudo_perplexity_tokens": sum(map(len, losses)),
    }


def _texts(measured: Measured, most_tokens: int) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Texts as they were written, one view of each, with token types and the places of their positions; the last is cut
    short."""
    left, typed = most_tokens, measured.collation.pass_token_types and measured.spec.has_token_type_ids
    for rows in measured.held_out.rows():
        for row in np.flatnonzero(rows.array("view_index") == 0).tolist():
            if left <= 0:
                return
            ids, places = _written(rows, row)
            types = rows.ragged("token_type_ids").row(row).astype(np.int64) if typed else None
            yield ids, None if types is None else torch.from_numpy(types), places[:left]
            left -= len(places)


def _written(rows: Rows, row: int) -> tuple[Tensor, Tensor]:
    ids = rows.input_ids.row(row).astype(np.int64)
    places = rows.ragged("position_index").row(row).astype(np.int64)
    ids[places] = rows.ragged("labels").row(row)
    return torch.from_numpy(ids), torch.from_numpy(places)


TASK = StudentTask(
    auto=AutoModelForMaskedLM,
    run=run_whole,
    measure=_measure,
    goal=lambda spec, labelled: LOSS_ON_TEXT,
)
