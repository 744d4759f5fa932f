"""A feature: which hidden states of an example the cache keeps, pooled over its tokens. A new pooling goes here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from schemas.limits import refuse_unless

Pooling = Literal["mean", "cls", "last"]
FeatureDtype = Literal["int8", "float32"]
MAX_WIDTH = 2**24


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One pooled hidden state of an example.

    `layer` is absolute: 0 is the embedding's output, n the output of the n-th block (the index into the
    `hidden_states` of transformers); `mean` and `last` go over the tokens that are not padding.
    """

    pooling: Pooling
    layer: int
    width: int
    dtype: FeatureDtype = "int8"

    def __post_init__(self) -> None:
        refuse_unless(self.pooling in get_args(Pooling), "pooling", self.pooling)
        refuse_unless(self.dtype in get_args(FeatureDtype), "dtype", self.dtype)
        refuse_unless(0 <= self.layer < 2**16, "layer", self.layer)
        refuse_unless(1 <= self.width <= MAX_WIDTH, "width", self.width)

    @property
    def name(self) -> str:
        """How users name it, for instance `mean:6`."""
        return f"{self.pooling}:{self.layer}"

    @property
    def column(self) -> str:
        return f"feature_{self.pooling}_{self.layer}"

    @property
    def scale_column(self) -> str:
        return f"{self.column}_scale"
