"""The teacher: opened with `from_pretrained`, run on batches, asked only for what the spec keeps.

`Teacher.answer` runs one padded batch and returns, for its positions, the selected entries (or whole scores), and the
pooled features. It holds no state between batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int

from pipelines.claims import claim_number
from pipelines.config import TeacherConfig
from pipelines.heads import Head, compare_with_forward
from pipelines.load import first_line, load_model
from pipelines.select import Selected, concatenate, num_uniforms, select
from schemas.errors import TeacherError, UsageError
from schemas.spec import Feature, Spec

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
    uniforms: Float64[torch.Tensor, "N U"]
    """Random numbers that decide what is drawn; U is 0 for policies that draw nothing."""


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
    """Where answers are made: with `device_map` the head's."""
    body: Callable[..., Any]
    """What runs before the head: a causal LM's base model, else the whole model; compiled where that is asked."""
    entry: torch.device
    """Where inputs go: the embedding's device."""

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Iterator[torch.Tensor]:
        """float32 logits of a batch's positions, in chunks `[n, V]`, on the teacher's device."""
        given, _ = self._forward(batch)
        yield from self._logits(torch.split(given, self._chunk_positions))

    @torch.inference_mode()
    def answer(self, batch: Batch) -> Answer:
        """Runs one batch."""
        logits, hidden = self._forward(batch)
        features = tuple(
            _pooled(hidden, batch.attention_mask, feature).to(self.device) for feature in self.spec.features
        )
        bad = torch.zeros(len(batch.input_ids), dtype=torch.bool, device=self.device)
        for feature in features:
            bad |= ~feature.isfinite().all(1)
        selected = None
        if self.spec.score == "softmax":
            selected = self._selected(logits, batch)
            fine = selected.logsumexp.isfinite().all(1) & selected.entropy.isfinite()
            fine &= selected.logprobs.isfinite().all(1)
        else:
            fine = logits.isfinite().all(1)
        bad[batch.position_rows.to(self.device)[~fine]] = True
        return Answer(
            selected=None if selected is None else Selected(*(part.cpu() for part in selected)),
            logits=None if selected is not None else logits.float().cpu(),
            features=tuple(feature.cpu() for feature in features),
            finite=(~bad).cpu(),
        )

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Head inputs `[N, D]` of a causal LM, else logits `[N, V]`; and the hidden states that features need."""
        inputs = {
            "input_ids": batch.input_ids.to(self.entry),
            "attention_mask": batch.attention_mask.to(self.entry),
        }
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids.to(self.entry)
        if self.head is not None:
            inner = any(feature.layer != self.num_layers for feature in self.spec.features)
            output = self.body(**inputs, use_cache=False, output_hidden_states=inner)
            last = output.last_hidden_state
            states = output.hidden_states if inner else (last,) * (self.num_layers + 1)
            rows, tokens = batch.position_rows.to(last.device), batch.position_tokens.to(last.device)
            return last[rows, tokens].to(self.device), (*states[:-1], last)
        output = self.body(**inputs, output_hidden_states=bool(self.spec.features))
        return output.logits.to(self.device), output.hidden_states or ()

    @property
    def _chunk_positions(self) -> int:
        return max(1, _CHUNK_BYTES[self.device.type] // (4 * self.spec.vocab_size))

    @property
    def num_layers(self) -> int:
        layers: int = self.model.config.get_text_config().num_hidden_layers
        return layers

    def _selected(self, given: torch.Tensor, batch: Batch) -> Selected:
        """Selects from logits, or from head inputs in chunks, so that `[N, V]` never exists whole."""
        size = self._chunk_positions
        labels = torch.split(batch.labels.to(self.device), size)
        uniforms = torch.split(batch.uniforms.to(self.device), size)
        chunks = zip(self._logits(torch.split(given, size)), labels, uniforms, strict=True)
        keep, temperatures = self.spec.keep, self.spec.temperatures
        return concatenate([select(rows, gold, keep, temperatures, u) for rows, gold, u in chunks])

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


def open_teacher(config: TeacherConfig, spec: Spec, path: str, device: torch.device | None = None) -> Teacher:
    """Opens the teacher in a local folder, on a device or over several, and checks it against the spec.

    Raises:
        TeacherError: the model cannot be opened, or is not the one that the spec describes.
    """
    model = load_model(config, path, device or pick_device(config.device))
    head = Head.of(model) if config.task == "causal-lm" else None
    entry = model.get_input_embeddings().weight.device
    if head is not None:
        _check_head(model, head, spec, entry)
    teacher = Teacher(
        model=model,
        spec=spec,
        head=head,
        device=head.weight.device if head is not None else entry,
        body=model if head is None else model.base_model,
        entry=entry,
    )
    return _compiled(teacher, path) if config.compile else teacher


def _compiled(teacher: Teacher, path: str) -> Teacher:
    """The teacher with a compiled body, tried on two shapes: they make batch sizes and lengths dynamic.

    Raises:
        TeacherError: the model cannot be compiled, or this machine has no compiler.
    """
    ready = replace(teacher, body=torch.compile(teacher.body, dynamic=True))
    try:
        for rows, width in ((2, 8), (3, 12)):
            ready.answer(_blank(rows, width, teacher.spec))
    except (RuntimeError, OSError, ImportError, TypeError) as error:
        raise TeacherError(
            "the teacher cannot be compiled",
            where=path,
            got=first_line(error),
            do="Leave --compile out: it changes the speed alone",
        ) from error
    return ready


def _blank(rows: int, width: int, spec: Spec) -> Batch:
    """A batch of one token over and over, with the last token of each row as position."""
    ids, places = torch.zeros(rows, width, dtype=torch.int64), torch.arange(rows)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=ids if spec.has_token_type_ids else None,
        position_rows=places,
        position_tokens=torch.full_like(places, width - 1),
        labels=torch.full_like(places, -1),
        uniforms=torch.zeros(rows, num_uniforms(spec.keep), dtype=torch.float64),
    )


def pick_device(wanted: str) -> torch.device:
    """`auto` takes an accelerator where there is one; `cuda` insists.

    Raises:
        UsageError: there is no such device.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device", do="Say --device cpu, or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def own_device(device: torch.device, run: str) -> torch.device:
    """This process's device: worker i of a run takes `cuda:i`, modulo the devices there are."""
    if device.type != "cuda" or torch.cuda.device_count() == 1:
        return device
    return torch.device("cuda", claim_number(run) % torch.cuda.device_count())


@torch.inference_mode()
def _check_head(model: Any, head: Head, spec: Spec, entry: torch.device) -> None:
    if len(head.weight) != spec.vocab_size:
        raise TeacherError(
            "the teacher's head is not as wide as its config says",
            expected=spec.vocab_size,
            got=len(head.weight),
        )
    ids = torch.arange(min(16, spec.vocab_size), device=entry)[None]
    compare_with_forward(model, head, ids)


def _pooled(
    hidden: tuple[torch.Tensor, ...], mask: Int[torch.Tensor, "B S"], feature: Feature
) -> Float[torch.Tensor, "B D"]:
    """One pooled hidden state of each example, in float32; padding (on the right) does not count."""
    states = hidden[feature.layer]
    mask = mask.to(states.device)
    if feature.pooling == "cls":
        return states[:, 0].float()
    if feature.pooling == "last":
        rows = torch.arange(len(states), device=states.device)
        return states[rows, mask.sum(1) - 1].float()
    weights = mask[:, :, None].float()
    return (states.float() * weights).sum(1) / weights.sum(1)
