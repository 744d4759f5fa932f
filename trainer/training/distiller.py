"""`Distiller`: the student, its projections and the loss in one module.

The loss lives inside the forward, so wrappers such as DDP see every parameter used there. The student stays a plain
model inside; it alone is saved as a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from schemas.features import Feature
from schemas.rows.ragged import Array
from schemas.task import Score
from trainer.batches.batch import Batch
from trainer.batches.detections import placed
from trainer.losses.aligned_targets import AlignedTargets
from trainer.losses.buffers import Buffers
from trainer.losses.fused import fused_loss
from trainer.losses.loss import Bank, Pooled
from trainer.losses.matching import Boxes
from trainer.losses.objective import Objective, aligned_losses, position_losses
from trainer.losses.targets import SparseTargets, mean_outputs
from trainer.models.embeddings import Embedder
from trainer.models.heads import Head, Ran
from trainer.students.features import Projections, image_widths, layer_widths, student_layer
from trainer.tasks.student_task import StudentTask
from trainer.training.adversarial import steepest, watched_embedding

BEYOND = "beyond_vocab"
"""Logged where the student's vocabulary is smaller: teacher's mass on ids that the student lacks, a position."""

ADVERSARIAL = "adversarial"
"""Logged with `--adversarial`: the weighted sum of the terms on moved embeddings."""


class Distiller(nn.Module):
    """Maps a batch to its loss.

    The loss is the mean over the positions that count (over examples for features, over labelled positions for `ce`);
    with `num_items_in_batch` the mean is over the whole accumulated global batch, of which this batch is a part.
    """

    accepts_loss_kwargs = True
    """Tells transformers to pass `num_items_in_batch`, and not to divide by the accumulation steps."""

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        *,
        score: Score,
        features: Sequence[Feature] = (),
        teacher_layers: int = 1,
        task: StudentTask,
        measures: Sequence[str] = (),
        bank: Bank | None = None,
        embedder: Embedder | None = None,
        image_shape: tuple[int, int, int] | None = None,
        vocab_size: int = 0,
    ) -> None:
        """`measures` of a softmax teacher are logged beside the losses on the head; `bank` is what contrast has of the
        cache beside a batch; `embedder` is how a student embeds whose first feature is its embedding, and
        `image_shape` what a student of images is given; `vocab_size` is the teacher's V."""
        super().__init__()
        config: Any = student.config
        widths: list[int] = []
        if image_shape is None:
            self.last_layer = getattr(config.get_text_config(), "num_hidden_layers", 0)
        else:  # stages that a config may not count; none are asked for without features
            widths = image_widths(student, image_shape) if features else []
            self.last_layer = max(0, len(widths) - 1)
        self.student = student
        self.objective, self.score, self.task = objective, score, task
        self.measures = tuple(measures) if score == "softmax" else ()
        self.layers = [
            student_layer(feature, teacher_layers=teacher_layers, student_layers=self.last_layer)
            for feature in features
        ]
        self.bank, self.vocab_size = bank, vocab_size
        self.projections = None
        if features:
            if image_shape is None:
                widths = layer_widths(student, self.layers, self.last_layer)
            else:
                widths = [widths[layer] for layer in self.layers]
            self.projections = Projections(features, widths, embedder)
            theirs = [feature.width for feature in features]
            for loss in objective.losses:
                if loss.module is not None:
                    self.projections.heads[loss.name] = loss.module(
                        self.projections.widths, theirs, vocab_size
                    )
        weights = torch.tensor([objective.weights[name] for name in objective.head_losses])
        self.progress: float | None = None
        """The share of training's steps that are taken, which weights may go by; None outside training."""
        self.on_logits: Callable[[Tensor, Batch], None] | None = None
        """What an evaluation gives logits to, `[N, V]`, with the batch of these positions, where somebody asks."""
        self.head_weights: Tensor
        self.register_buffer("head_weights", weights, persistent=False)
        self._no_split_modules = getattr(student, "_no_split_modules", None)

    def forward(self, batch: Batch, num_items_in_batch: Tensor | None = None) -> dict[str, Tensor]:
        """The `loss`, and each term's part of it without its weight."""
        device = batch.input_ids.device
        totals = batch.counts if num_items_in_batch is None else num_items_in_batch
        totals = totals.to(device, non_blocking=True).clamp_min(1)
        counted = float(batch.counts[-1] > 0)
        if self.training and self.objective.adversarial:
            parts = self._adversarial(batch, totals)
        else:
            parts = self._parts(batch, totals)
        loss = torch.stack([part for part, _ in parts.values()]).sum() * counted
        terms = {name: term.detach() * counted for name, (_, term) in parts.items()}
        if batch.beyond is not None:
            terms[BEYOND] = batch.beyond / totals[0]
        return {"loss": loss, **terms}

    def _parts(self, batch: Batch, totals: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Each term with its weight and without."""
        ran = self.task.run(self.student, batch.model_inputs, self.layers, self.last_layer)
        boxes = None
        if ran.boxes is not None:
            batch, boxes, totals = matched_batch(batch, ran, totals)
        parts = self._head_terms(batch, ran, totals)
        if boxes is not None:
            parts |= self._box_terms(boxes, totals)
        if self.on_logits is not None and not self.training:
            self.on_logits(self._logits(batch, ran), batch)
        return parts | self._feature_terms(batch, [batch.by_example(s) for s in ran.states], totals)

    def _adversarial(self, batch: Batch, totals: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The terms, and their weighted sum once more on embeddings that FGM has moved."""
        with watched_embedding(self.student) as held:
            parts = self._parts(batch, totals)
            loss = torch.stack([part for part, _ in parts.values()]).sum()
            held.moved = steepest(loss * totals[0], held, self.objective.adversarial)
            again = torch.stack([part for part, _ in self._parts(batch, totals).values()]).sum()
        return {**parts, ADVERSARIAL: (again, again)}

    def _head_terms(self, batch: Batch, ran: Ran, totals: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        names = self.objective.head_losses
        if not names:
            return {}
        logged = (*names, *self.measures)
        divisors = torch.stack([totals[self.objective.divisor(name)] for name in logged])
        weights = self.head_weights
        if self.objective.changes:
            weights = weights.new_tensor([self._weight(name) for name in names])
        weights = torch.cat([weights, weights.new_zeros(len(self.measures))])
        if ran.head_inputs is not None:
            positions = batch.at_positions(ran.head_inputs)
            terms = _Terms(self, batch)
            weights, single = weights / divisors, not self.objective.adversarial  # which takes two gradients
            found = fused_loss(
                positions,
                Head.of(self.student),
                terms,
                weights,
                cuts=terms.cuts,
                reach=terms.reach,
                single=single,
            )
            parts = found.terms / divisors
            losses = [found.loss, *[found.loss.new_zeros(())] * (len(logged) - 1)]
        else:
            assert ran.logits is not None
            logits = batch.at_positions(ran.logits).float()
            parts = self._losses(logits, batch.targets, batch.temperature).sum(-1) / divisors
            losses = list(parts * weights)
        return {name: (loss, part) for name, loss, part in zip(logged, losses, parts, strict=True)}

    def _logits(self, batch: Batch, ran: Ran) -> Tensor:
        """At each of the batch's positions."""
        if ran.head_inputs is not None:
            return Head.of(self.student).logits(batch.at_positions(ran.head_inputs)).float()
        assert ran.logits is not None
        return batch.at_positions(ran.logits).float()

    def _losses(
        self, logits: Tensor, targets: Any, temperature: float, buffers: Buffers | None = None
    ) -> Tensor:
        return position_losses(
            self.objective.head_losses,
            logits,
            targets,
            temperature=temperature,
            score=self.score,
            settings=self.objective.settings,
            measures=self.measures,
            buffers=buffers,
            own=self.objective.own,
        )

    def _feature_terms(
        self, batch: Batch, states: Sequence[Tensor], totals: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        if self.projections is None:
            return {}
        own = self.projections.pooled(states, batch.example_mask)
        if self.bank is not None:
            self.bank = self.bank.to(batch.example_keys.device)
        projected = self.projections.projected(own)
        pooled = Pooled(projected, own, list(batch.features), batch.example_keys, self.bank)
        if any(self.objective.entry(name).joins_outputs for name in self.objective.feature_losses):
            pooled = pooled._replace(outputs=self._outputs(batch))
        found = {}
        for name in self.objective.feature_losses:
            compute = self.objective.entry(name).pooled
            assert compute is not None
            heads = self.projections.heads
            given = pooled._replace(module=heads[name]) if name in heads else pooled
            divisor = totals[self.objective.divisor(name)]
            term = compute(given, self.objective.settings_of(name)).sum() / divisor
            found[name] = (self._weight(name) * term, term)
        return found

    def _box_terms(self, boxes: Boxes, totals: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for loss in (loss for loss in self.objective.losses if loss.boxes is not None):
            assert loss.boxes is not None
            term = loss.boxes(boxes, self.objective.settings_of(loss.name)).sum()
            term = term / totals[self.objective.divisor(loss.name)]
            found[loss.name] = (self._weight(loss.name) * term, term)
        return found

    def _outputs(self, batch: Batch) -> Tensor:
        """What the teacher says of each example, `[B, V]`."""
        assert not isinstance(batch.targets, AlignedTargets)  # the student was refused else
        shape = batch.num_rows, self.vocab_size
        return mean_outputs(
            batch.targets, batch.example, shape, score=self.score, temperature=batch.temperature
        )

    def _weight(self, name: str) -> float:
        return self.objective.weight(name, self.progress if self.training else None)

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """Passed on to the student."""
        self.student.activation_checkpointing_enable(**arguments)  # type: ignore[operator]

    def floating_point_ops(self, batch: Batch) -> int:
        """Of a forward and a backward pass, by the rule of six a parameter and token; of four, where it is frozen.
        A student without a backbone sees a row where others see tokens."""
        student: Any = self.student
        every, trained = (
            int(student.num_parameters(only_trainable=trained, exclude_embeddings=True))
            for trained in (False, True)
        )
        return (4 * every + 2 * trained) * (batch.num_rows if batch.reads_features else batch.padded_tokens)


def matched_batch(batch: Batch, ran: Ran, totals: Tensor) -> tuple[Batch, Boxes, Tensor]:
    """A batch whose positions are the student's queries, its boxes, and totals of as many positions."""
    assert ran.boxes is not None
    assert ran.logits is not None
    fields, boxes = placed(batch, ran.logits, ran.boxes)
    found: Batch = replace(batch, **fields)
    share = len(found.row) / max(1, len(batch.row))
    return found, boxes, totals * totals.new_tensor([share, share, 1.0], dtype=torch.float32)


class _Terms:
    """Sums of the head's losses over a chunk of a batch's positions."""

    def __init__(self, distiller: Distiller, batch: Batch) -> None:
        self._distiller, self._batch, self._buffers = distiller, batch, Buffers()

    @property
    def cuts(self) -> Array | None:
        """Where chunks of positions may be cut: not within what is aligned as a whole."""
        targets = self._batch.targets
        return targets.host.cuts(len(targets.gold)) if isinstance(targets, AlignedTargets) else None

    @property
    def reach(self) -> int:
        """Positions behind a chunk's at which losses see logits: where a word may begin behind what is aligned."""
        targets = self._batch.targets
        return int(isinstance(targets, AlignedTargets) and len(targets.words) > 0)

    def __call__(self, logits: Tensor, first: int, last: int) -> Tensor:
        targets, offsets = self._batch.targets, self._batch.entry_offsets
        if isinstance(targets, AlignedTargets):
            objective = self._distiller.objective
            return aligned_losses(
                objective.head_losses,
                logits,
                targets.part(first, last),
                objective.settings,
                own=objective.own,
            )
        assert isinstance(targets, SparseTargets)
        part = targets.chunk(first, last, slice(int(offsets[first]), int(offsets[last])))
        return self._distiller._losses(logits, part, self._batch.temperature, self._buffers).sum(-1)
