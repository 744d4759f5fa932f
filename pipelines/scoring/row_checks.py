"""The writer keeps its own reader's rules: what would break one is rejected alone, with the rule as its reason.

Looked at twice: what the teacher is to be asked, before it is (a text without tokens, an id that no embedding has); and
what it answered, before it is sealed. A group that breaks a rule is halved until the examples that do stand alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from pipelines.corpus.examples import Example
from pipelines.scoring.encode import Encoded, encode, example_columns, without
from pipelines.teacher.model import Answer
from pipelines.tolerances import BAD_ANSWER, BAD_INPUT, NO_TOKENS
from schemas.errors import CorruptionError
from schemas.rows.checks import check_examples, check_targets
from schemas.spec import Spec

Reject = tuple[Example, str]


def askable(
    examples: Sequence[Example], spec: Spec, num_embeddings: int | None
) -> tuple[list[Example], list[Reject]]:
    """The examples that the teacher can be asked about, and the others with their reasons."""
    bad = _broken(examples, lambda part: _check_inputs(part, spec, num_embeddings))
    reasons = {index: BAD_INPUT if examples[index].num_tokens else NO_TOKENS for index in bad}
    fine = [example for index, example in enumerate(examples) if index not in reasons]
    return fine, [(examples[index], reason) for index, reason in reasons.items()]


def encode_sound(
    examples: Sequence[Example], answer: Answer, spec: Spec
) -> tuple[list[Encoded], list[Reject]]:
    """The rows of a batch that keep the reader's rules, and the examples that do not."""
    if not examples:
        return [], []
    try:
        encoded = encode(examples, answer, spec)
        encoded.rows.check("")
    except (CorruptionError, ValueError, OverflowError):
        if len(examples) == 1:
            return [], [(examples[0], BAD_ANSWER)]
        halves = [_half(examples, answer, first=first) for first in (True, False)]
        found = [encode_sound(*half, spec) for half in halves]
        return [*found[0][0], *found[1][0]], [*found[0][1], *found[1][1]]
    return [encoded], []


def _half(examples: Sequence[Example], answer: Answer, *, first: bool) -> tuple[list[Example], Answer]:
    keep = (np.arange(len(examples)) < len(examples) // 2) == first
    counts = np.array([example.num_positions for example in examples])
    return list(itertools.compress(examples, keep)), without(answer, keep, counts)


def _begun(examples: Sequence[Example], spec: Spec) -> Sequence[Example]:
    """What rules of a whole example can be asked of: a source whose target is still to be written has one token in its
    place."""
    if spec.generation is None or not spec.kind.has_source:
        return examples
    last = [np.int32(example.num_tokens - 1).tobytes() for example in examples]
    return [
        example._replace(input_ids=example.input_ids + bytes(4), position_index=place)
        for example, place in zip(examples, last, strict=True)
    ]


def _check_inputs(examples: Sequence[Example], spec: Spec, num_embeddings: int | None) -> None:
    """Asserts the rules for what a teacher is asked.

    Raises:
        CorruptionError, ValueError, OverflowError: one breaks a rule, or cannot be written as it is.
    """
    data = example_columns(_begun(examples, spec), spec)
    check_examples(spec, data, "")
    check_targets(spec, data, "")
    if num_embeddings is not None and data["input_ids"].values.max() >= num_embeddings:
        raise ValueError("an id that the teacher's embedding lacks")
    for name in ("document_id", "text", "text_pair"):
        for text in data.get(name, ()):
            (text or "").encode()
    for example in examples:
        _check_label(example, spec)


def _check_label(example: Example, spec: Spec) -> None:
    label = example.label
    if spec.kind.labels != "document" or label is None:
        return
    if spec.score == "softmax":
        fits = isinstance(label, int) and 0 <= label < spec.vocab_size
    else:
        values = np.asarray(label, np.float32)
        fits = values.size == spec.vocab_size and bool(np.isfinite(values).all())
    if not fits:
        raise ValueError("a label that is no class, or not finite")


def _broken(examples: Sequence[Example], check: Callable[[Sequence[Example]], None]) -> list[int]:
    """Places of the examples that a check refuses."""
    if not examples:
        return []
    try:
        check(examples)
    except (CorruptionError, ValueError, OverflowError):
        if len(examples) == 1:
            return [0]
    else:
        return []
    middle = len(examples) // 2
    return [*_broken(examples[:middle], check), *(middle + at for at in _broken(examples[middle:], check))]
