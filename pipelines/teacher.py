"""The teacher: opened with `from_pretrained`, run on batches, asked only for what the spec keeps.

`Teacher.answer` runs one padded batch and returns, for its positions, the selected entries (or whole scores), and the
pooled features. It holds no state between batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError

from pipelines.config import TeacherConfig
from pipelines.heads import Head, compare_with_forward
from pipelines.select import Selected, concatenate, select
from schemas.errors import TeacherError, UsageError
from schemas.spec import Feature, Spec

_AUTO = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
}
_CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Bytes of float32 logits at a time: enough positions for a fast matrix product, few enough for the memory."""


class Batch(NamedTuple):
    """One padded batch on the CPU. Positions are given by their row and token."""

    input_ids: Int[torch.Tensor, "B S"]
    attention_mask: Int[torch.Tensor, "B S"]
    token_type_ids: Int[torch.Tensor, "B S"] | None
    position_rows: Int[torch.Tensor, " N"]
    position_tokens: Int[torch.Tensor, " N"]
    labels: Int[torch.Tensor, " N"]
    """Gold class of each position; -1 for none."""


class Answer(NamedTuple):
    """What the teacher says about a batch, on the CPU."""

    selected: Selected | None
    """For softmax scores."""
    logits: Float[torch.Tensor, "N V"] | None
    """For sigmoid and identity scores."""
    features: tuple[Float[torch.Tensor, "B D"], ...]
    """One a declared feature."""
    finite: Bool[torch.Tensor, " B"]
    """Whether all that was said about an example is finite."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded teacher, bound to a spec."""

    model: Any
    spec: Spec
    head: Head | None
    device: torch.device

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Iterator[torch.Tensor]:
        """float32 logits of a batch's positions, in chunks `[n, V]`, on the teacher's device."""
        given, _ = self._forward(self._moved(batch))
        yield from self._logits(torch.split(given, self._chunk_positions))

    @torch.inference_mode()
    def answer(self, batch: Batch) -> Answer:
        """Runs one batch."""
        batch = self._moved(batch)
        logits, hidden = self._forward(batch)
        features = tuple(_pooled(hidden, batch.attention_mask, feature) for feature in self.spec.features)
        bad = torch.zeros(len(batch.input_ids), dtype=torch.bool, device=self.device)
        for feature in features:
            bad |= ~feature.isfinite().all(1)
        selected = None
        if self.spec.score == "softmax":
            selected = self._selected(logits, batch.labels)
            fine = selected.logsumexp.isfinite().all(1) & selected.entropy.isfinite()
            fine &= selected.logprobs.isfinite().all(1)
        else:
            fine = logits.isfinite().all(1)
        bad[batch.position_rows[~fine]] = True
        return Answer(
            selected=None if selected is None else Selected(*(part.cpu() for part in selected)),
            logits=None if selected is not None else logits.float().cpu(),
            features=tuple(feature.cpu() for feature in features),
            finite=(~bad).cpu(),
        )

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Head inputs `[N, D]` of a causal LM, else logits `[N, V]`; and the hidden states that features need."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        if self.head is not None:
            inner = any(feature.layer != self.num_layers for feature in self.spec.features)
            output = self.model.base_model(**inputs, use_cache=False, output_hidden_states=inner)
            last = output.last_hidden_state
            states = output.hidden_states if inner else (last,) * (self.num_layers + 1)
            return last[batch.position_rows, batch.position_tokens], (*states[:-1], last)
        output = self.model(**inputs, output_hidden_states=bool(self.spec.features))
        return output.logits, output.hidden_states or ()

    def _moved(self, batch: Batch) -> Batch:
        moved: Iterator[Any] = (None if part is None else part.to(self.device) for part in batch)
        return Batch(*moved)

    @property
    def _chunk_positions(self) -> int:
        return max(1, _CHUNK_BYTES[self.device.type] // (4 * self.spec.vocab_size))

    @property
    def num_layers(self) -> int:
        layers: int = self.model.config.get_text_config().num_hidden_layers
        return layers

    def _selected(self, given: torch.Tensor, labels: torch.Tensor) -> Selected:
        """Selects from logits, or from head inputs in chunks, so that `[N, V]` never exists whole."""
        size = self._chunk_positions
        parts = [
            select(logits, chunk, self.spec.keep, self.spec.temperatures)
            for logits, chunk in zip(
                self._logits(torch.split(given, size)), torch.split(labels, size), strict=True
            )
        ]
        return concatenate(parts)

    def _logits(self, chunks: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
        """float32 logits of each chunk; on a CPU they share one buffer, and are gone when the next are asked for."""
        if self.head is None:
            yield from (chunk.float() for chunk in chunks)
            return
        buffer = None
        if self.device.type == "cpu":
            buffer = torch.empty(max(map(len, chunks)), self.spec.vocab_size)
        for chunk in chunks:
            yield self.head.logits(chunk, out=None if buffer is None else buffer[: len(chunk)])


def open_teacher(config: TeacherConfig, spec: Spec, path: str) -> Teacher:
    """Opens the teacher in a local folder and checks it against the spec.

    Raises:
        TeacherError: the model cannot be opened, or is not the one that the spec describes.
    """
    device = pick_device(config.device)
    try:
        model, loaded = _AUTO[config.task].from_pretrained(
            path,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=None if config.allow_pickle else True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise TeacherError("the teacher cannot be opened", where=path, got=_first_line(error)) from error
    if loaded["missing_keys"]:
        raise TeacherError(
            "the teacher's files lack weights, which would be random",
            where=path,
            got=", ".join(sorted(loaded["missing_keys"])[:3]),
            do=f"Is the model one for {config.task}?",
        )
    model = model.eval().requires_grad_(False).to(device)
    head = Head.of(model) if config.task == "causal-lm" else None
    if head is not None:
        _check_head(model, head, spec)
    return Teacher(model=model, spec=spec, head=head, device=device)


def pick_device(wanted: str) -> torch.device:
    """`auto` takes an accelerator where there is one; `cuda` insists.

    Raises:
        UsageError: there is no such device.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device", do="Say --device cpu, or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def _check_head(model: Any, head: Head, spec: Spec) -> None:
    if len(head.weight) != spec.vocab_size:
        raise TeacherError(
            "the teacher's head is not as wide as its config says",
            expected=spec.vocab_size,
            got=len(head.weight),
        )
    ids = torch.arange(min(16, spec.vocab_size), device=model.device)[None]
    compare_with_forward(model, head, ids)


def _pooled(
    hidden: tuple[torch.Tensor, ...], mask: Int[torch.Tensor, "B S"], feature: Feature
) -> Float[torch.Tensor, "B D"]:
    """One pooled hidden state of each example, in float32; padding (on the right) does not count."""
    states = hidden[feature.layer]
    if feature.pooling == "cls":
        return states[:, 0].float()
    if feature.pooling == "last":
        rows = torch.arange(len(states), device=states.device)
        return states[rows, mask.sum(1) - 1].float()
    weights = mask[:, :, None].float()
    return (states.float() * weights).sum(1) / weights.sum(1)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
