"""Text embeddings: no position, and one example a document, whose pooled states are all that is kept.

A folder of sentence-transformers is taken as itself: pooling, length, prompt and normalisation are what its modules
say, where the user says nothing else. As there, a text that is too long is cut: later windows would lack the prompt,
and be no text that anybody looks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from pipelines.tasks.teacher_task import Asked, Defaults, Settings, TeacherTask, refuse_encoder_decoder
from pipelines.tasks.windows import Tokens, Window, first, stretches, taken
from schemas.embedding_folders import read_embedding_folder
from schemas.errors import UsageError
from schemas.spec import Spec


@dataclass(frozen=True)
class Beginnings:
    """The first window of each document."""

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        stretch = next(stretches(tokens, self.spec))
        return [Window(stretch.tokens, first(0))]

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        return Asked(taken(tokens.ids, window), window.positions)


def _none(output: Any, rows: Tensor, tokens: Tensor) -> Tensor:
    """Nothing is scored."""
    scores: Tensor = output.last_hidden_state.new_zeros(0, 0)
    return scores


def finished(pooled: Tensor, spec: Spec) -> Tensor:
    """`[B, D]` pooled states as the cache keeps them: cut, then divided by their length, as the settings say."""
    width = int(spec.setting("truncate_dim")) or pooled.shape[-1]
    found = pooled[..., :width]
    return torch.nn.functional.normalize(found, dim=-1) if spec.setting("normalize") else found


def _width(width: int, settings: Settings) -> int:
    cut = int(settings["truncate_dim"])
    if cut > width:
        raise UsageError("--truncate_dim: a feature is not so wide", expected=f"at most {width}", got=cut)
    return cut or width


def _defaults(folder: str, given: Settings) -> Defaults:
    found = read_embedding_folder(folder)
    if found is None:
        return Defaults()
    if found.dense is not None:
        raise UsageError(
            "the teacher's folder has a Dense module, which teachers cannot have yet",
            where=f"{folder}/{found.dense}",
            do="Take modules.json away to use the model alone, with --features",
        )
    if not found.pools_prompt and given.get("prompt", found.prompt):
        raise UsageError(
            "the teacher's folder leaves the prompt's tokens out of the pooling, which cannot be asked for yet",
            where=folder,
            got=repr(given.get("prompt", found.prompt)),
            do="Say --prompt '' to embed texts without one",
        )
    return Defaults(
        features=(f"{found.pooling}:-1",),
        settings={"prompt": found.prompt, "normalize": found.normalize},
        max_length=found.max_length,
    )


TASK = TeacherTask(
    auto=transformers.AutoModel,
    inputs=lambda tokenizer, spec: Beginnings(spec),
    body=lambda model: model,
    at_positions=_none,
    check=lambda config, tokenizer, settings: refuse_encoder_decoder(config, "encoder"),
    least="a token",
    prefix=lambda settings: str(settings["prompt"]),
    finished=finished,
    feature_width=_width,
    defaults=_defaults,
    unused=("pooler",),
)
