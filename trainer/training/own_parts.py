"""What Python alone can tell a training: a model object, callbacks, metrics and losses of the caller's.

They are code and weights in memory, so no command line has words for them, and a model card says that they were there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from schemas.errors import UsageError
from trainer.losses.loss import Loss
from trainer.losses.measures import MEASURES
from trainer.losses.registry import LOSSES

_NAME = re.compile("[a-z][a-z0-9_]*")
_LOGGED = {"loss", "grad_norm", "learning_rate", "epoch", "padding", "beyond_vocab", "adversarial", *MEASURES}
"""What stands in the logs already."""

ComputeMetrics = Callable[[EvalPrediction], Mapping[str, float]]
"""From predictions and gold labels to numbers by name, as transformers has it."""
Preprocess = Callable[[Any, Any], Any]
"""From a batch's logits and labels to what is kept of them, as transformers has it."""


@dataclass(frozen=True, kw_only=True)
class OwnParts:
    """What a caller brings along; nothing of a run that a command line began."""

    student: Any = None
    """A `PreTrainedModel`, which is trained in place."""
    processing_class: Any = None
    """Its tokenizer; None: the cache's."""
    callbacks: Sequence[Any] = ()
    compute_metrics: ComputeMetrics | None = None
    preprocess_logits_for_metrics: Preprocess | None = None
    losses: Sequence[Any] = ()
    """Of `tuple[Loss, float]`: each with its weight; or of `tuple[Loss, float, str]`, with a schedule of it too."""

    def __post_init__(self) -> None:
        if self.student is not None and not isinstance(self.student, PreTrainedModel):
            raise UsageError(
                "the student is neither a name nor a model",
                expected="a folder, a hub name, or a PreTrainedModel",
                got=type(self.student).__name__,
            )
        if self.processing_class is not None and self.student is None:
            raise UsageError(
                "processing_class is of a student that is a model object",
                do="Leave it out: a folder has its own",
            )
        if self.preprocess_logits_for_metrics is not None and self.compute_metrics is None:
            raise UsageError("preprocess_logits_for_metrics has no effect without compute_metrics")
        for callback in self.callbacks:
            kind = callback if isinstance(callback, type) else type(callback)
            if not issubclass(kind, TrainerCallback):
                raise UsageError("this is no TrainerCallback of transformers", got=kind.__name__)
        for pair in self.losses:
            _check_loss(pair)
        names = [loss.name for loss, *_ in self.losses]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError("two losses have one name", got=twice[0])

    @property
    def told(self) -> list[str]:
        """What of a run stood in no command line, for people."""
        told = [] if self.student is None else [f"a {type(self.student).__name__} in memory as its student"]
        kinds = [each if isinstance(each, type) else type(each) for each in self.callbacks]
        told += [f"the callback {kind.__name__}" for kind in kinds]
        return told + [
            f"the loss {loss.name} ({loss.formula}), weight {weight:g}"
            + "".join(f" by {text}" for text in schedule)
            for loss, weight, *schedule in self.losses
        ]


def _check_loss(pair: Any) -> None:
    """Whether it is a loss with its weight, under a name that is free."""
    if not (isinstance(pair, tuple) and len(pair) in (2, 3) and isinstance(pair[0], Loss)):
        raise UsageError(
            "a loss of one's own stands with its weight",
            expected="losses=[(Loss(name=..., ...), 0.5)], or with its schedule [(Loss(...), 0.5, 'linear:1:0')]",
            got=type(pair).__name__,
            do="Name losses of docs/losses.md in TrainConfig(losses=[...])",
        )
    name = pair[0].name
    if not _NAME.fullmatch(name) or name in LOSSES or name in _LOGGED:
        raise UsageError(
            "a loss of one's own needs a name of its own",
            expected="small letters, digits and _, and none that stands in docs/losses.md or in a log",
            got=name,
        )


NONE = OwnParts()
"""Nothing of one's own."""
