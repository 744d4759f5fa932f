"""What a teacher's config says of its shape, before any weight is read: layers, widths, positions, vocabulary.

Configs name these things differently, leave them out, or mean less than they say. So each is asked for in one place,
and what cannot be told is one error that names the model. Widths of features come from a forward of the whole model
without weights (torch's meta device): a few seconds, and only where features are asked for.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.tasks.teacher_task import Settings, model_name
from pipelines.teacher.calls import MODEL_ERRORS
from schemas.errors import UsageError
from schemas.task import Score, Task
from schemas.tasks import NO_OBJECT, TASKS

_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "decoder_layers", "encoder_layers")
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "hidden_dim", "emb_dim", "model_dim")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_TRIED_SIZE = 224
"""Pixels of a side, where a config names none."""
_OFFSET = (
    *(
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
    ),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
"""Families that count positions from the padding's id + 1 on: as many rows of the table are never a token's."""


def text_config(config: Any) -> Any:
    """The part of a config that is about text.

    Raises:
        UsageError: there are several, and it does not say which one.
    """
    try:
        return config.get_text_config()
    except ValueError as error:
        raise UsageError(
            f"{model_name(config)} has no one text model",
            got=str(error).splitlines()[0],
            do="Use a causal language model or a classifier of texts",
        ) from error


def num_layers(config: Any) -> int:
    """Blocks of the text model; features count the embedding's output as layer 0.

    Raises:
        UsageError: the config does not say.
    """
    return _first(config, _LAYERS, "how many layers there are")


def hidden_size(config: Any) -> int:
    """Width of the text model's states inside; the last one's may differ.

    Raises:
        UsageError: the config does not say.
    """
    return _first(config, _WIDTHS, "how wide its states are")


def described(config: Any) -> dict[str, int]:
    """Layers and width for people, as far as the config tells them."""
    found = {}
    for name, ask in (("layers", num_layers), ("hidden_size", hidden_size)):
        with contextlib.suppress(UsageError):
            found[name] = ask(config)
    return found


def usable_length(config: Any) -> int | None:
    """The most tokens that the model has positions for, or None where it is not limited (-1, or nothing said)."""
    text = text_config(config)
    found = next(
        (v for name in _POSITIONS if isinstance(v := getattr(text, name, None), int) and v > 0), None
    )
    if found is not None and text.model_type in _OFFSET:
        padding = getattr(text, "pad_token_id", None)
        return found - (1 if padding is None else padding) - 1
    return found


def scored_width(task: Task, config: Any, max_length: int, score: Score) -> int:
    """V: ids of the vocabulary, or classes (and no object), or the tokens of a text; 0 where nothing is scored.

    Raises:
        UsageError: the config does not say.
    """
    if not task.has_positions:
        return 0
    if task.has_vocabulary:
        return _first(config, ("vocab_size",), "how many ids its vocabulary has")
    return max_length if task.classes_are_tokens else len(label_names(task, config, score))


def refuse_unfit(
    task: str, config: Any, tokenizer: Any, features: tuple[str, ...], settings: Settings
) -> None:
    """Refuses what config and tokenizer alone show to be no teacher for the task.

    Raises:
        UsageError: what the task itself refuses, an encoder-decoder with features, or a tokenizer with ids beyond the
            embedding.
    """
    TEACHER_TASKS[task].check(config, tokenizer, settings)
    name = model_name(config)
    if features and getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{name} is an encoder-decoder: its states are two lists, of two texts",
            got=", ".join(features),
            do="Leave --features out",
        )
    if TASKS[task].reads_images:
        return
    rows = getattr(text_config(config), "vocab_size", None)
    padding = getattr(tokenizer, "pad_token", None)
    beyond = {t: i for t, i in tokenizer.get_vocab().items() if isinstance(rows, int) and i >= rows}
    beyond.pop(padding, None)  # it only fills batches, and anything can
    beyond = {token: i for token, i in beyond.items() if not _is_rare(tokenizer, token, i)}
    if beyond:
        token = min(beyond, key=lambda found: beyond[found])
        raise UsageError(
            f"the tokenizer has {len(beyond)} tokens that {name} has no embedding for",
            expected=f"ids below {rows}",
            got=f"{token!r}: {beyond[token]}",
            do="Use the model's own tokenizer, or resize its embedding",
        )


def _is_rare(tokenizer: Any, token: str, token_id: int) -> bool:
    """Whether a token stands in a text only where somebody wrote it (Gemma-3's mark of a picture, which its text models
    lack): such a text is rejected alone."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(token_id)
    templates = getattr(tokenizer, "chat_template", None) or ""
    around = tokenizer("a", verbose=False)["input_ids"]
    return bool(getattr(added, "special", False)) and token not in str(templates) and token_id not in around


def state_widths(task: str, config: Any, *, trust_remote_code: bool = False) -> list[int]:
    """The width of each of the model's `hidden_states`, from a forward without weights; where the model cannot run
    without, as the config says. What is true is looked at again when the teacher is opened."""
    given = {"input_ids": torch.zeros(1, 8, dtype=torch.int64, device="meta")}
    if TASKS[task].reads_images:
        given = {"pixel_values": torch.zeros(1, *image_shape(config), device="meta")}
    try:
        with torch.device("meta"), torch.inference_mode():
            model = TEACHER_TASKS[task].auto.from_config(config, trust_remote_code=trust_remote_code).eval()
            output = model(**given, output_hidden_states=True)
            states = output.hidden_states
            # What an embedding is pooled from may be wider than the last stage.
            if not TASKS[task].has_positions:
                states = (*states[:-1], output.last_hidden_state)
        return [int(state.shape[1 if state.ndim == 4 else -1]) for state in states]
    except MODEL_ERRORS:
        return [hidden_size(config)] * (num_layers(config) + 1)


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of an image that a model can be tried with; what it is given, the processor says."""
    size = getattr(config, "image_size", None) or _TRIED_SIZE
    height, width = (size[0], size[-1]) if isinstance(size, list | tuple) else (size, size)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _first(config: Any, names: tuple[str, ...], what: str) -> int:
    text = text_config(config)
    found = next((v for name in names if isinstance(v := getattr(text, name, None), int) and v > 0), None)
    if found is None:
        raise UsageError(
            f"the config of {model_name(config)} does not say {what}", expected=f"one of {', '.join(names)}"
        )
    return found


def label_names(task: Task, config: Any, score: Score) -> tuple[str, ...]:
    """The name of each class, in order; of a detector with a softmax that of no object, too. None without classes."""
    if not task.has_named_classes:
        return ()
    named = tuple(str(config.id2label.get(index, f"LABEL_{index}")) for index in range(config.num_labels))
    return (*named, NO_OBJECT) if task.has_boxes and score == "softmax" else named
