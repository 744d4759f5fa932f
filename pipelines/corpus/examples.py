"""One input of the teacher, as it goes from step to step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from pipelines.corpus.labels import Label
from schemas.rows.ragged import Array
from schemas.shards.rewrite import IMAGE_BYTES_A_TOKEN


class Example(NamedTuple):
    """One tokenised input of the teacher, in plain types: arrays are the bytes of int32."""

    id: bytes
    document_hash: bytes
    window_index: int
    window_count: int
    input_ids: bytes
    token_type_ids: bytes | None
    position_index: bytes | None
    """None: every token but the last."""
    label: Label
    document_id: str | None
    text: str | None
    text_pair: str | None
    file: str
    offset: int
    gold_ids: bytes | None = None
    """What is right at each position, where the task stores that."""
    columns: tuple[int, ...] = ()
    """Values of the task's own columns."""
    image: bytes | None = None
    """An image as it was in the corpus, where examples are images."""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids) // 4

    @property
    def weight(self) -> int:
        """What it takes of a unit: its tokens, or its image's bytes."""
        return max(self.num_tokens, len(self.image or b"") // IMAGE_BYTES_A_TOKEN)

    @property
    def text_lengths(self) -> Int64[np.ndarray, " X"]:
        """Tokens of each of its texts, where it holds several, each begun by a position."""
        begins = np.frombuffer(self.position_index or b"", np.int32)
        found: Array = np.diff(np.append(begins, self.num_tokens)).astype(np.int64)
        return found

    @property
    def num_positions(self) -> int:
        return self.num_tokens - 1 if self.position_index is None else len(self.position_index) // 4
