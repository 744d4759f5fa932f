"""Embeddings of images: no position, and one example a view of an image, whose pooled states are all that is kept.

What is pooled is the model's own `last_hidden_state`, a list of tokens or a map, as anybody takes it, and not its
`pooler_output`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import transformers

from pipelines.tasks.feature_extraction import TASK as TEXTS
from pipelines.tasks.image_classification import TASK as CLASSIFIED
from pipelines.tasks.image_classification import Views
from pipelines.tasks.windows import Tokens, Window, first


@dataclass(frozen=True)
class EmbeddedViews(Views):
    """Each image in as many views as the settings say, of which nothing is scored."""

    def windows(self, tokens: Tokens) -> Sequence[Window]:
        return [window._replace(positions=first(0)) for window in super().windows(tokens)]


TASK = replace(
    CLASSIFIED,
    auto=transformers.AutoModel,
    inputs=EmbeddedViews,
    at_positions=TEXTS.at_positions,
    finished=TEXTS.finished,
    feature_width=TEXTS.feature_width,
    unused=TEXTS.unused,
)
