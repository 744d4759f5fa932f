"""The teacher: run on batches, asked only for what the spec keeps.

`Teacher.answer` runs one batch and returns, for its positions, the selected entries (or whole scores), and the pooled
features. It holds nothing between batches but memory: what its model would carry over is put back first.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int

from pipelines.keep.classes import only, within_classes
from pipelines.keep.select import Selected, concatenate, select
from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.teacher.calls import accepted, named
from pipelines.teacher.carried_state import Carried, put_back
from pipelines.teacher.heads import Head
from pipelines.teacher.logit_memory import LogitMemory
from schemas.decoder_inputs import IGNORED, decoder_inputs
from schemas.features import Pooling
from schemas.images import Pictures, image_tokens
from schemas.spec import Spec

Batching = Literal["padded batches", "batches of one length", "one text a batch"]
"""Which texts may share a batch without changing each other's answers: what `batch_independence` finds at load."""

_CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Bytes of float32 logits at a time: enough positions for a fast matrix product, few enough for the memory."""
_SMALL_CHUNK_BYTES, _ENOUGH_POSITIONS = 2**23, 341
"""On a CPU, of a small vocabulary: what of these is more positions. Selection finds them in the cache, and memory
beyond what malloc keeps comes as new pages, which cost as much as the product."""


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
    owners: Int[torch.Tensor, " B"] | None = None
    """Which example each row is of, ascending, where examples hold several texts; None: each its own."""
    classes: Bool[torch.Tensor, "B V"] | None = None
    """Which ids are classes, where these are a row's own tokens."""
    target_ids: Int[torch.Tensor, "B T"] | None = None
    """Where `input_ids` are sources: their targets, padded with `IGNORED`. Then positions stand on the tokens of these,
    each for the one that it predicts."""
    pixel_values: Float[torch.Tensor, "B C H W"] | None = None
    """Images, for each of which one token stands in `input_ids`."""

    @property
    def padded_tokens(self) -> int:
        if self.pixel_values is not None:
            height, width = self.pixel_values.shape[-2:]
            return len(self.pixel_values) * image_tokens(height, width)
        return self.input_ids.numel() + (0 if self.target_ids is None else self.target_ids.numel())

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        targets = 0 if self.target_ids is None else int((self.target_ids != IGNORED).sum())
        return int(self.attention_mask.sum()) + targets

    def rows(self) -> "Iterator[Batch]":
        """Each row as a batch of its own, without padding."""
        for row, length in enumerate(self.attention_mask.sum(1).tolist()):
            mine, types, targets = self.position_rows == row, self.token_type_ids, self.target_ids
            if targets is not None:
                targets = targets[row : row + 1, : int((targets[row] != IGNORED).sum())]
            yield Batch(
                input_ids=self.input_ids[row : row + 1, :length],
                attention_mask=self.attention_mask[row : row + 1, :length],
                token_type_ids=None if types is None else types[row : row + 1, :length],
                position_rows=torch.zeros_like(self.position_rows[mine]),
                position_tokens=self.position_tokens[mine],
                labels=self.labels[mine],
                uniforms=self.uniforms[mine],
                classes=None if self.classes is None else self.classes[row : row + 1],
                target_ids=targets,
                pixel_values=None if self.pixel_values is None else self.pixel_values[row : row + 1],
            )


class Answer(NamedTuple):
    """What the teacher says about a batch, on the CPU."""

    selected: Selected | None
    """For softmax scores."""
    logits: Float[torch.Tensor, "N V"] | None
    """For sigmoid and identity scores."""
    features: tuple[Float[torch.Tensor, "B D"], ...]
    """One a declared feature."""
    finite: Bool[torch.Tensor, " E"]
    """Whether all that was said about an example is finite."""
    boxes: Float[torch.Tensor, "N 4"] | None = None
    """Where positions have boxes."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded teacher, bound to a spec."""

    model: Any
    spec: Spec
    head: Head | None
    device: torch.device
    """Where answers are made: with `device_map` the head's."""
    body: Callable[..., Any]
    """What runs before the head, where there is one, else the whole model; compiled where that is asked."""
    takes: Callable[..., Any]
    """The body's own forward, whose arguments it takes also once it is compiled."""
    entry: torch.device
    """Where inputs go: the embedding's device."""
    embedded: int
    """Ids that the embedding has; an example with another one is not scored."""
    pad_id: int = 0
    """What fills a padded batch: the model's own padding, where that lies within the embedding."""
    batching: Batching = "padded batches"
    gives_last_states: bool = False
    """Whether the body gives its last layer's states without being asked for any."""
    carried: tuple[Carried, ...] = ()
    """What the model would carry from one batch to the next."""
    num_layers: int = 0
    """Of a teacher that is asked for features: the last index into its `hidden_states`."""
    pictures: Pictures | None = None
    """How images become pixels, where examples are images."""
    memory: LogitMemory = field(default_factory=LogitMemory, repr=False, compare=False)
    """What logits are written into, on a CPU."""
    word_starts: torch.Tensor | None = None
    """Ids that begin a word, int64 `[W]`, where the spec asks how likely one comes next."""

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Iterator[torch.Tensor]:
        """float32 logits of a batch's positions, in chunks `[n, V]`, on the teacher's device."""
        given, _ = self._apart(self._given(batch)[0])
        yield from self._logits(torch.split(given, self._chunk_positions))

    @torch.inference_mode()
    def answer(self, batch: Batch) -> Answer:
        """Runs one batch."""
        beyond = ((batch.input_ids >= self.embedded) & batch.attention_mask.bool()).any(1)
        targets = batch.target_ids
        if targets is not None:
            beyond |= (targets >= self.embedded).any(1)
            targets = targets.clamp_max(self.embedded - 1)
        ids = batch.input_ids.masked_fill(batch.input_ids >= self.embedded, self.pad_id)
        given, features = self._given(batch._replace(input_ids=ids, target_ids=targets))
        given, boxes = self._apart(given)
        bad = beyond.to(self.device)
        for feature in features:
            bad |= ~feature.isfinite().all(1)
        selected = None
        if self.spec.score == "softmax":
            selected = self._selected(given, batch)
            fine = selected.logsumexp.isfinite().all(1) & selected.entropy.isfinite()
            fine &= selected.logprobs.isfinite().all(1)
        else:
            fine = given.isfinite().all(1)
        fine = fine if boxes is None else fine & boxes.isfinite().all(1)
        bad[batch.position_rows.to(self.device)[~fine]] = True
        if batch.owners is not None:
            owners = batch.owners.to(self.device)
            bad = torch.zeros(int(owners[-1]) + 1, device=self.device).index_add(0, owners, bad.float()) > 0
        return Answer(
            selected=None if selected is None else Selected(*(part.cpu() for part in selected)),
            logits=None if selected is not None else given.float().cpu(),
            features=tuple(feature.cpu() for feature in features),
            finite=(~bad).cpu(),
            boxes=None if boxes is None else boxes.float().cpu(),
        )

    def _apart(self, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores and boxes of positions, where these have boxes."""
        if not self.spec.kind.has_boxes:
            return given, None
        return given[:, : self.spec.vocab_size], given[:, self.spec.vocab_size :]

    @torch.inference_mode()
    def said(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """float32 logits `[N, V]`, with boxes behind them, and pooled features of a few positions, for checks: as a
        batch, or an error."""
        given, features = self._forward(batch)
        return given.float().clone() if self.head is None else self.head.logits(given), features

    def _given(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """As `_forward`; a model that refuses texts for what they are beside (BART: those with another number of end
        tokens) is asked for each alone, and so are an example's texts where lengths would change them."""
        if batch.owners is None or self.batching == "padded batches":
            try:
                return self._forward(batch)
            except ValueError:
                if len(batch.input_ids) == 1:
                    raise
        alone = [self._forward(row) for row in batch.rows()]
        features = zip(*(features for _, features in alone), strict=True)
        return torch.cat([given for given, _ in alone]), tuple(torch.cat(rows) for rows in features)

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Head inputs `[N, D]`, or without a head logits `[N, V]`; and the pooled features."""
        put_back(self.carried)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.pixel_values is not None:
            inputs = {"pixel_values": batch.pixel_values.to(self.model.dtype)}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        if batch.target_ids is not None:
            inputs["decoder_input_ids"] = decoder_inputs(self.model, batch.target_ids)
        moved = {name: value.to(self.entry) for name, value in inputs.items()}
        task, layers = TEACHER_TASKS[self.spec.task], {feature.layer for feature in self.spec.features}
        inner = bool(layers - {self.num_layers} if self.gives_last_states else layers)
        options = named(self.takes, use_cache=False) if self.head is None else {"use_cache": False}
        output = self.body(**accepted(self.takes, **moved, **options, output_hidden_states=inner))
        given = task.at_positions(output, batch.position_rows, batch.position_tokens).to(self.device)
        if batch.classes is not None:
            given = only(given, batch.classes[batch.position_rows].to(self.device))
        states = dict(enumerate(output.hidden_states)) if inner else {}
        if self.gives_last_states:
            states[self.num_layers] = output.last_hidden_state
        return given, self._features(states, batch)

    def _features(self, states: Mapping[int, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, ...]:
        """Pooled features, from hidden states by layer."""
        finished = TEACHER_TASKS[self.spec.task].finished
        return tuple(
            finished(pool(states[f.layer], batch, f.pooling), self.spec).to(self.device)
            for f in self.spec.features
        )

    @property
    def _chunk_positions(self) -> int:
        position_bytes = 4 * self.spec.vocab_size
        most = max(1, _CHUNK_BYTES[self.device.type] // position_bytes)
        if self.device.type != "cpu":
            return most
        return min(most, max(_ENOUGH_POSITIONS, _SMALL_CHUNK_BYTES // position_bytes))

    def _selected(self, given: torch.Tensor, batch: Batch) -> Selected:
        """Selects from logits, or from head inputs in chunks, so that `[N, V]` never exists whole."""
        size = self._chunk_positions
        labels = torch.split(batch.labels.to(self.device), size)
        uniforms = torch.split(batch.uniforms.to(self.device), size)
        chunks = zip(self._logits(torch.split(given, size)), labels, uniforms, strict=True)
        keep, temperatures = self.spec.keep, self.spec.temperatures
        words = self.word_starts
        found = concatenate(
            [select(rows, gold, keep, temperatures, u, words=words) for rows, gold, u in chunks]
        )
        return found if batch.classes is None else within_classes(found)

    def _logits(self, chunks: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
        """float32 logits of each chunk; on a CPU they share one buffer, and are gone when the next are asked for."""
        if self.head is None:
            yield from (chunk.float() for chunk in chunks)
        elif self.device.type != "cpu":
            yield from map(self.head.logits, chunks)
        else:
            held = self.memory.take(max(self._chunk_positions, *map(len, chunks)), self.spec.vocab_size)
            for chunk in chunks:
                yield self.head.logits(chunk, out=held[: len(chunk)])
            self.memory.give_back(held)


def pool(states: torch.Tensor, batch: Batch, pooling: Pooling) -> Float[torch.Tensor, "B D"]:
    """One pooled hidden state of each example: of a map `[B, D, H, W]` its mean, whatever the pooling; all tokens of an
    image count."""
    if batch.pixel_values is None:
        return pooled(states, batch.attention_mask, pooling)
    if states.ndim == 4:
        return states.float().mean((2, 3))
    return pooled(states, torch.ones(states.shape[:2], dtype=torch.int64), pooling)


def pooled(
    states: Float[torch.Tensor, "B S D"], mask: Int[torch.Tensor, "B S"], pooling: Pooling
) -> Float[torch.Tensor, "B D"]:
    """One pooled hidden state of each example, in float32; padding (on the right) does not count."""
    mask = mask.to(states.device)
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        rows = torch.arange(len(states), device=states.device)
        return states[rows, mask.sum(1) - 1].float()
    weights = mask[:, :, None].float()
    return (states.float() * weights).sum(1) / weights.sum(1)
