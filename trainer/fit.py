"""Whether a student fits a cache, told from configs and tokenizers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.errors import StudentError
from schemas.spec import Spec


def check_vocabulary(student: Mapping[str, int], cache: Mapping[str, int], where: str) -> None:
    """Token -> id maps must be equal: a cache's ids are the teacher's.

    Raises:
        StudentError: counting the tokens that differ, and naming one.
    """
    if student == cache:
        return
    different = sorted(
        token for token in student.keys() | cache.keys() if student.get(token) != cache.get(token)
    )
    token = different[0]
    raise StudentError(
        "the student's tokenizer is not the cache's",
        where=where,
        expected=f"the same id for every token (for instance {token!r}: {cache.get(token)})",
        got=f"{len(different)} tokens that differ ({token!r}: {student.get(token)})",
        do="Choose a student of the teacher's family, or start one from a config .json",
    )


def check_config(config: Any, spec: Spec, vocabulary: Mapping[str, int], where: str) -> None:
    """The embedding must hold every token's id, and the positions the cache's longest example.

    Raises:
        StudentError: naming the field.
    """
    text = config.get_text_config()
    largest = max(vocabulary.values(), default=0)
    if text.vocab_size <= largest:
        raise StudentError(
            "the student's vocabulary is too small for the tokenizer",
            where=where,
            expected=f"vocab_size of at least {largest + 1}",
            got=text.vocab_size,
        )
    longest = getattr(text, "max_position_embeddings", None)
    if longest is not None and longest < spec.max_length:
        raise StudentError(
            "the student is too short for the cache's examples",
            where=where,
            expected=f"max_position_embeddings of at least {spec.max_length}",
            got=longest,
        )


def check_labels(config: Any, spec: Spec, where: str) -> None:
    """A trained classifier must have the cache's classes, in the cache's order.

    Raises:
        StudentError: another number of classes, or other names.
    """
    if spec.task == "causal-lm":
        return
    if config.num_labels != spec.vocab_size:
        raise StudentError(
            "the student has another number of classes than the cache",
            where=where,
            expected=spec.vocab_size,
            got=config.num_labels,
        )
    names = tuple(config.id2label[index] for index in range(config.num_labels))
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    if spec.label_names and not unnamed and names != spec.label_names:
        raise StudentError(
            "the student's classes are not the cache's",
            where=where,
            expected=", ".join(spec.label_names),
            got=", ".join(names),
        )
