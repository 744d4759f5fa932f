"""A student: a model with its tokenizer or image processor, and how a cache's rows become what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.features import Feature
from schemas.images import Pictures
from schemas.task import Task
from trainer.batches.collate import Collation
from trainer.batches.packing import Packing
from trainer.batches.sources import Shifted
from trainer.models.embeddings import Embedder
from trainer.models.shrink import embedding_rows
from trainer.reading.reader import Reader
from trainer.students.trial import takes_token_types


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model that fits a cache, with the tokenizer that it is saved with."""

    model: Any
    tokenizer: Any
    task: Task
    adapter: Any = None
    """PEFT's view of the model, where adapters are trained and saved; None where the model is."""
    packing: Packing | None = None
    """How it is told of several texts in a row; None: it was not asked for."""
    embedder: Embedder | None = None
    """How its states become embeddings, where that is what it is to give."""
    longest: int = 0
    """Tokens of the cache's longest example."""
    features: tuple[Feature, ...] = ()
    """What it reads in place of texts, where it is one without a backbone."""
    pictures: Pictures | None = None
    """How the cache's images become what it is given; then `tokenizer` is the image processor."""
    classes: int = 0
    """V, where that is not what the config counts; 0 where it is."""
    reader: Reader | None = None
    """How it reads the cache's texts, where its tokenizer is another; None: as the teacher did."""

    @property
    def vocab_size(self) -> int:
        """V: the width of the head, or the number of classes; tokens, where these are the classes; 0 of embeddings."""
        if self.classes or not self.task.has_positions:
            return self.classes
        if self.task.has_vocabulary:
            return int(self.model.get_output_embeddings().weight.shape[0])
        return self.longest if self.task.classes_are_tokens else int(self.model.config.num_labels)

    @property
    def pad_id(self) -> int:
        """What pads `input_ids`: masked out, so any id that has an embedding will do where the model names none."""
        if self.pictures is not None:
            return 0
        rows = embedding_rows(self.model)
        for found in (own_padding(self.model), self.tokenizer.pad_token_id):
            if found is not None and found >= 0 and (rows is None or found < rows):
                return int(found)
        return 0

    @property
    def aligns(self) -> bool:
        """Whether what it predicts are other tokens than the teacher's."""
        return self.reader is not None and self.reader.aligns

    @property
    def takes_token_types(self) -> bool:
        """Whether the model can be told which text of a pair a token is of."""
        return takes_token_types(self.model)

    def collation(self, **asked: Any) -> Collation:
        """How a cache's rows become its batches; `temperature`, `features` and `stored` are as `Collation` has them."""
        if self.features:
            asked |= {"features": self.features, "reads_features": True}
        types = getattr(self.model.config.get_text_config(), "type_vocab_size", None) or None
        own = self.reader is not None  # its own tokenizer's ids, which were compared with its embeddings
        return Collation(
            student_vocab=self.vocab_size,
            pad_id=self.pad_id,
            pass_token_types=self.takes_token_types,
            embeddings=None if own else embedding_rows(self.model),
            token_types=None if own else types,
            packing=self.packing,
            reader=self.reader,
            shift=Shifted(self.model) if self.task.has_source else None,
            pictures=self.pictures,
            **asked,
        )


def own_padding(model: Any) -> int | None:
    """The id that a model itself takes for padding; some configs (CodeGen's) do not speak of any."""
    found: int | None = getattr(model.config.get_text_config(), "pad_token_id", None)
    return found
