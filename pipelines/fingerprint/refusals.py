"""What flags and task alone show to be a mistake, before a spec is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.config import PrecomputeConfig
from schemas.errors import UsageError
from schemas.task import Task
from schemas.tasks import ANSWERS, TASKS
from schemas.token_bytes import word_starts


def refuse_no_words(config: PrecomputeConfig, tokenizer: Any) -> None:
    """What begins a word is told by a causal language model's vocabulary, or not at all.

    Raises:
        UsageError: `--scalars word_start` is asked for, and cannot be.
    """
    if config.scalars is None or "word_start" not in config.scalars:
        return
    if not TASKS[config.teacher.task].implies_places:
        raise UsageError(f"--scalars word_start has no meaning for {config.teacher.task}", do="Leave it out")
    begins = word_starts(tokenizer)
    if begins is None or not begins.any():
        raise UsageError(
            "--scalars word_start needs a tokenizer whose vocabulary says which tokens begin a word",
            expected="a fast one that is byte-level or of SentencePiece's kind",
            got=type(tokenizer).__name__,
            do="Leave word_start out",
        )


def refuse_no_embedding(task: Task, features: Sequence[str]) -> None:
    """Where nothing is scored, the first feature is what the cache is for: of the last layer, as embeddings are.

    Raises:
        UsageError: there is none.
    """
    if task.has_positions or (features and features[0].endswith(":-1")):
        return
    raise UsageError(
        f"{task.name} needs an embedding",
        expected="as the first of --features mean:-1, cls:-1 or last:-1; or a teacher's folder with modules.json",
        got=features[0]
        if features
        else "no --features, and a folder that does not say how states are pooled",
    )


def refuse_meaningless(config: PrecomputeConfig) -> None:
    """Flags that a task has no use for are refused, not ignored.

    Raises:
        UsageError: naming the first of them; or what the task needs is not there.
    """
    task, corpus = TASKS[config.teacher.task], config.corpus
    _refuse_moved_objects(config)
    converses, scores, reads = task.takes_conversations, task.has_positions, not task.reads_images
    given = [
        ("--image_field", corpus.image_field, task.reads_images),
        ("--text_field", corpus.text_field != "text", reads),
        ("--max_length", config.max_length, reads),
        ("--keep_text", config.keep_text, reads),
        ("--supervise", config.supervise != "all", reads),
        ("--label_field", corpus.label_field, task.reads_labels),
        ("--text_pair_field", corpus.text_pair_field, task.takes_pairs),
        ("--target_field", corpus.target_field, task.has_source),
        ("--words_field", corpus.words_field, task.labels == "word"),
        ("--passages_field", corpus.passages_field, task.holds_texts),
        ("--messages_field", corpus.messages_field, converses),
        ("--prompt_field", corpus.prompt_field, converses),
        ("--keep", config.keep, scores),
        ("--scalars", config.scalars, scores),
        ("--own_logits", config.own_logits, scores),
        ("--temperatures", config.temperatures != (1.0,), scores),
        ("--score", config.score, scores),
        ("--stride", config.stride, scores and reads and not task.holds_texts and not task.has_source),
        ("--features", config.features, not task.holds_texts),
    ]
    for flag in (name for name, value, has_meaning in given if value and not has_meaning):
        raise UsageError(f"{flag} has no meaning for {task.name}", do="Leave it out, or say another --task")
    if config.supervise == "assistant" and not (corpus.messages_field or corpus.prompt_field):
        raise UsageError(
            "--supervise assistant has no effect on texts without answers",
            do="Leave it out, or say --messages_field or --prompt_field",
        )
    if task.has_source and corpus.target_field is None and config.generation is None:
        do = "Say --target_field, beside --text_field; or --generate, and the teacher writes them"
        raise UsageError(f"{task.name} needs targets", do=do)
    if task.needs_pairs and not corpus.text_pair_field:
        raise UsageError(
            f"{task.name} needs a question and its context",
            expected="--text_field with the question, --text_pair_field with the context",
            got="no --text_pair_field",
        )
    if config.task_settings.get(ANSWERS) and not (config.keep_text and corpus.label_field):
        raise UsageError(
            f"--{ANSWERS} keeps where answers stand in the text",
            expected="--keep_text, and --label_field with the answers",
            got="no --keep_text" if corpus.label_field else "no --label_field",
        )
    if task.reads_images and not corpus.image_field:
        raise UsageError(f"{task.name} needs images", do="Say --image_field, with the field that holds them")
    if task.holds_texts and not corpus.passages_field:
        raise UsageError(
            f"{task.name} needs a query and its passages",
            expected="--text_field with the query, --passages_field with the list of passages",
            got="no --passages_field",
        )


def _refuse_moved_objects(config: PrecomputeConfig) -> None:
    reads = TASKS[config.teacher.task].labels == "objects" and config.corpus.label_field
    if reads and int(config.task_settings.get("views", 1)) > 1:
        raise UsageError(
            "a view that is cut or mirrored has other objects than its image",
            got=f"--views {config.task_settings['views']} with --label_field",
            do="Leave --label_field out: the teacher says what is in each view; or leave --views out",
        )
