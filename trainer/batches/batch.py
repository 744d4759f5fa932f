"""A batch of tensors: padded tokens, or pixels, and flat positions with flat kept entries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.images import image_tokens
from schemas.rows.ragged import Array
from trainer.batches.detections import Detections
from trainer.batches.packing import Packed
from trainer.batches.tensors import mapped
from trainer.losses.aligned_targets import AlignedTargets
from trainer.losses.targets import DenseTargets, SparseTargets
from trainer.models.feature_classifier import joined_features


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B examples in R rows of S tokens, padded on the right, and their N positions, example by example.

    R is B, and each example its own row, unless they are packed.
    """

    input_ids: Int64[Tensor, "R S"]
    attention_mask: Int64[Tensor, "R S"]
    """1 for the tokens of examples."""
    token_type_ids: Int64[Tensor, "R S"] | None
    row: Int64[Tensor, " N"]
    """Which of the R rows each position stands in."""
    token: Int64[Tensor, " N"]
    """Which of the S tokens each position stands on, or of the T of the decoder."""
    targets: SparseTargets | DenseTargets | AlignedTargets
    features: tuple[Float[Tensor, "B _"], ...]
    example_keys: Int64[Tensor, " B"]
    """Of each example 64 bits of its id."""
    counts: Int64[Tensor, 3]
    """Positions, labelled positions and examples that count; all 0 in a weightless batch. On the CPU."""
    entry_offsets: Array
    """Where each position's kept entries begin, `[N + 1]`. On the CPU, for cutting without waiting for a GPU."""
    beyond: float | None
    """Teacher's mass on ids that the student does not have, summed over the positions; None if it has them all.
    A sampling policy's is an estimate, at the losses' temperature."""
    temperature: float = 1.0
    """Of the targets: what the losses' is."""
    packed: Packed | None = None
    """What keeps several examples in one row apart; None where each has its own."""
    decoder_input_ids: Int64[Tensor, "R T"] | None = None
    """Where `input_ids` are sources: what the decoder is given, which predicts the targets."""
    reads_features: bool = False
    """Whether the student is given `features`, beside the tokens."""
    pixel_values: Float[Tensor, "R C H W"] | None = None
    """Where rows are images: what a student is given, and nothing else."""
    detections: Detections | None = None
    """Where positions have boxes."""

    @property
    def num_rows(self) -> int:
        """Examples: a cache's rows."""
        return len(self.example_keys)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding; of targets those that are predicted."""
        return int(self.attention_mask.sum()) + (0 if self.decoder_input_ids is None else len(self.token))

    @property
    def padded_tokens(self) -> int:
        """Tokens with padding; of images, what they count as."""
        if self.pixel_values is not None:
            return len(self.pixel_values) * image_tokens(*self.pixel_values.shape[-2:])
        decoder = self.decoder_input_ids
        return self.input_ids.numel() + (0 if decoder is None else decoder.numel())

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the student's forward."""
        if self.pixel_values is not None:
            return {"pixel_values": self.pixel_values}
        inputs = {"input_ids": self.input_ids}
        inputs |= {"attention_mask": self.attention_mask} if self.packed is None else self.packed.model_inputs
        if self.decoder_input_ids is not None:
            inputs["decoder_input_ids"] = self.decoder_input_ids
        if self.reads_features:
            inputs["features"] = joined_features(self.features)
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    @property
    def example_mask(self) -> Int64[Tensor, "B L"] | None:
        """1 for an example's own tokens, of what `by_example` gives; None of images, all of whose states count."""
        if self.pixel_values is not None:
            return None
        return self.attention_mask if self.packed is None else self.packed.mask

    def by_example(self, states: Float[Tensor, "R S H"]) -> Float[Tensor, "B L H"]:
        """The states of each example's tokens, padded on the right to the longest example."""
        return states if self.packed is None else self.packed.apart(states)

    @property
    def example(self) -> Int64[Tensor, " N"]:
        """Which of the B examples each position is of."""
        if isinstance(self.targets, DenseTargets):
            return self.targets.row
        return self.row if self.packed is None else self.packed.example[self.row, self.token]

    def at_positions(self, states: Float[Tensor, "R *S H"]) -> Float[Tensor, "N H"]:
        """The states of the batch's positions, or of texts as a whole; S may count a text's positions, too."""
        if states.ndim == 2:  # one for each row, which has one position
            return states.index_select(0, self.row)
        return states.flatten(0, 1).index_select(0, self.row * states.shape[1] + self.token)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; from pinned memory the copies do not wait."""
        moved: Batch = mapped(self, lambda tensor: tensor.to(device, non_blocking=True), but=("counts",))
        return moved

    def pin(self) -> Batch:
        """The same batch in page-locked memory."""
        pinned: Batch = mapped(self, lambda tensor: tensor.pin_memory(), but=("counts",))
        return pinned

    def weightless(self) -> Batch:
        """The same batch, counting for nothing: what a rank computes when it has no batch in an epoch's last step."""
        return replace(self, counts=torch.zeros_like(self.counts), beyond=self.beyond and 0.0)
