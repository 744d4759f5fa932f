"""Whether a student fits a cache, told from configs and tokenizers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from schemas.errors import StudentError
from schemas.rows.boxes import num_named
from schemas.spec import Spec
from schemas.task import Task
from trainer.students.student import own_padding
from trainer.students.trial import takes_token_types

_DECODER_HEADS = ("score",)
"""How transformers calls the head of a classifier that looks for a text's last token by its padding id."""


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


def check_config(
    config: Any, spec: Spec, vocabulary: Mapping[str, int], where: str, *, reads_again: bool = False
) -> None:
    """The embedding must hold every token's id, and the positions the cache's longest example; what a student
    `reads_again` is cut to its own length.

    Raises:
        StudentError: naming the field.
    """
    text = config.get_text_config()
    check_embedding(getattr(text, "vocab_size", None), spec, vocabulary, where, reads_again=reads_again)
    if reads_again:
        return
    longest = getattr(text, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < spec.max_length:
        raise StudentError(
            "the student is too short for the cache's examples",
            where=where,
            expected=f"max_position_embeddings of at least {spec.max_length}",
            got=longest,
        )
    _check_positions(text, spec, where)


def check_embedding(
    rows: int | None,
    spec: Spec,
    vocabulary: Mapping[str, int],
    where: str,
    *,
    reads_again: bool = False,
) -> None:
    """Every id that a cache's tokenizer may give needs an embedding; None is a model that looks none up. A language
    model's V bounds them: where the teacher lacked a token, no row has it. Not so of a student's own tokenizer.

    Raises:
        StudentError: there are too few.
    """
    bound = spec.vocab_size if spec.kind.has_vocabulary and not reads_again else math.inf
    largest = max((index for index in vocabulary.values() if index < bound), default=0)
    if rows is not None and rows <= largest:
        raise StudentError(
            "the student's vocabulary is too small for the tokenizer",
            where=where,
            expected=f"vocab_size of at least {largest + 1}",
            got=rows,
        )


def fit_tokenizer(tokenizer: Any, model: Any) -> None:
    """A student is called with what its tokenizer gives: BERT's gives token types, DistilBERT takes none."""
    names = [*tokenizer.model_input_names]
    if takes_token_types(model) or "token_type_ids" not in names:
        return
    names.remove("token_type_ids")
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def check_trainable(config: Any, task: Task, where: str) -> None:
    """What a config asks for that a student here cannot be.

    Raises:
        StudentError: an encoder-decoder where the task has no sources, or the other way round; quantised weights, or a
            router's loss.
    """
    if getattr(config, "is_encoder_decoder", False) != task.has_source and not task.has_boxes:
        both = "an encoder-decoder", "a model that is no encoder-decoder"
        raise StudentError(
            f"{both[task.has_source]} cannot be a student of {task.name}",
            where=where,
            got=config.model_type,
            do="Choose an encoder-decoder" if task.has_source else "Choose a decoder or an encoder",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise StudentError(
            "quantised weights cannot be trained",
            where=where,
            got="quantization_config in its config",
            do="Save the model dequantised first, or start from a config .json",
        )
    if getattr(config.get_text_config(), "output_router_logits", False):
        raise StudentError(
            "the student's config asks for its router's loss, which is not among the losses here",
            where=where,
            got="output_router_logits: true",
            do="Set it to false",
        )


def _check_positions(text: Any, spec: Spec, where: str) -> None:
    """Where positions are scaled by the longest row of a batch, short rows would learn what they are alone not told."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = part.get("rope_type", part.get("type"))
        before = part.get("original_max_position_embeddings") or getattr(
            text, "max_position_embeddings", None
        )
        if kind in ("dynamic", "longrope") and before and spec.max_length > before:
            raise StudentError(
                "the student's positions change with the longest text of a batch",
                where=where,
                expected=f"a cache of at most {before} tokens an example, or another rope_type than {kind}",
                got=spec.max_length,
            )


def check_labels(config: Any, spec: Spec, where: str) -> None:
    """A trained classifier must have the cache's classes, in the cache's order.

    Raises:
        StudentError: another number of classes, or other names.
    """
    if not spec.kind.has_named_classes:
        return
    number = num_named(spec)
    if config.num_labels != number:
        raise StudentError(
            "the student has another number of classes than the cache",
            where=where,
            expected=number,
            got=config.num_labels,
        )
    names = tuple(str(config.id2label.get(index)) for index in range(config.num_labels))
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    theirs = spec.label_names[:number]
    if theirs and not unnamed and names != theirs:
        raise StudentError(
            "the student's classes are not the cache's",
            where=where,
            expected=", ".join(theirs),
            got=", ".join(names),
        )


def check_padding(model: Any, pad_id: int, where: str) -> None:
    """A decoder that classifies looks for a text's last token by its own padding id: it must have one, and use it.

    Raises:
        StudentError: it has none, or another than texts are padded with.
    """
    own = own_padding(model)
    decides = any(hasattr(model, name) for name in _DECODER_HEADS)
    if decides and own != pad_id:
        raise StudentError(
            "the student needs a padding token, to find where a text ends",
            where=where,
            expected="pad_token_id in its config, an id of its embedding",
            got=own,
            do='Set "pad_token_id" in its config.json, to eos_token_id for instance; or train with batches of one text',
        )
