"""The teacher writes: continuations of prompts, or targets of sources, of one length, which need no padding, by
transformers' own `generate`.

What a sampled text is, is a function of the seed and the example's id alone, in whatever batch it stands: a token is
drawn by the Gumbel-max trick (Gumbel 1954; arXiv:1611.00712) on uniforms of the example's own stream. Greedy and beam
search have none. Rounding may turn a tie between two tokens the other way in another batch, as on another device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipelines.keep.uniforms import streams
from pipelines.teacher.calls import told
from pipelines.teacher.carried_state import put_back
from pipelines.teacher.model import Teacher
from schemas.decoder_inputs import IGNORED, decoder_inputs
from schemas.errors import TeacherError
from schemas.generation import Generation


def refuse_mute(model: Any) -> None:
    """A model without `generate` cannot write.

    Raises:
        TeacherError: naming it.
    """
    if not (callable(getattr(model, "can_generate", None)) and model.can_generate()):
        raise TeacherError(
            f"{type(model).__name__} cannot write texts",
            do="Leave --generate out, or use another --teacher",
        )


@torch.inference_mode()
def continuations(
    teacher: Teacher,
    prompts: Int[torch.Tensor, "B S"],
    example_ids: Sequence[bytes],
    source: int | None = None,
) -> list[Int[np.ndarray, " _"]]:
    """What the teacher writes behind each prompt: at most `max_new_tokens` ids, the one that ends it included.

    Of an encoder-decoder the first `source` tokens of each are what the encoder reads, and those behind, if any, how
    the text begins.

    Raises:
        TeacherError: the model cannot write these.
    """
    how = teacher.spec.generation
    assert how is not None
    put_back(teacher.carried)
    model = teacher.model
    # what a model's own file says of sampling or of penalties would be taken where ours says nothing
    model.generation_config = GenerationConfig()
    begun = prompts = prompts.to(teacher.entry)
    options: dict[str, Any] = {}
    settings = _settings(how, teacher.pad_id)
    if source is not None:
        begun = decoder_inputs(model, torch.nn.functional.pad(prompts[:, source:], (0, 1), value=IGNORED))
        options, prompts = {"decoder_input_ids": begun}, prompts[:, :source]
        settings.decoder_start_token_id = int(begun[0, 0])
    processors = LogitsProcessorList(_processors(how, teacher, example_ids, begun.shape[1]))
    try:
        found = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=settings,
            logits_processor=processors,
            **options,
        )
    except (AttributeError, ImportError, LookupError, NotImplementedError, TypeError, ValueError):
        with told("cannot write", model):
            raise
    return [_cut(row, how) for row in found[:, begun.shape[1] :].cpu().numpy().astype(np.int32)]


def _settings(how: Generation, pad_id: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        num_beams=how.num_beams,
        do_sample=False,
        eos_token_id=list(how.end_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )


def _processors(
    how: Generation, teacher: Teacher, example_ids: Sequence[bytes], prompt_tokens: int
) -> list[Any]:
    """What turns the likeliest token into a drawn one."""
    if not how.is_drawn:
        return []
    found: list[Any] = []
    if how.temperature != 1:
        found.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        found.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        found.append(TopPLogitsWarper(how.top_p))
    return [*found, _Draws(example_ids, teacher.spec.sample_seed, prompt_tokens)]


class _Draws(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise to log-probabilities, so that the largest is a draw."""

    def __init__(self, example_ids: Sequence[bytes], seed: int, prompt_tokens: int) -> None:
        self._ids = np.frombuffer(b"".join(example_ids), np.uint8).reshape(len(example_ids), -1)
        self._seed, self._prompt_tokens = seed, prompt_tokens

    def __call__(
        self, input_ids: Int[torch.Tensor, "B S"], scores: Float[torch.Tensor, "B V"]
    ) -> Float[torch.Tensor, "B V"]:
        rows = np.arange(len(scores))
        step = np.full(len(scores), input_ids.shape[1] - self._prompt_tokens)
        drawn = streams(self._ids, rows, step, self._seed, count=scores.shape[1], purpose="write")
        noise = -torch.from_numpy(drawn).clamp_min(2.0**-54).log_().neg_().log_()
        return scores.double() + noise.to(scores.device)


def _cut(row: Int[np.ndarray, " T"], how: Generation) -> Int[np.ndarray, " _"]:
    """Up to the first token that ends it."""
    ends = np.flatnonzero(np.isin(row, how.end_ids))
    return row[: ends[0] + 1] if len(ends) else row
