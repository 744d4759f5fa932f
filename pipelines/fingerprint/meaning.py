"""Which flags of a corpus a task has a use for, and which it cannot do without."""

from __future__ import annotations

from pipelines.config import PrecomputeConfig
from schemas.errors import UsageError
from schemas.tasks import TASKS


def refuse_meaningless(config: PrecomputeConfig) -> None:
    """Flags that a task has no use for are refused, not ignored.

    Raises:
        UsageError: naming the flag; or the one that a task needs is not there.
    """
    task, corpus = TASKS[config.teacher.task], config.corpus
    given = [
        ("--label_field", corpus.label_field, task.reads_labels),
        ("--text_pair_field", corpus.text_pair_field, task.takes_pairs),
        ("--words_field", corpus.words_field, task.labels == "word"),
        ("--passages_field", corpus.passages_field, task.holds_texts),
        ("--messages_field", corpus.messages_field, task.labels not in ("word", "text")),
        ("--prompt_field", corpus.prompt_field, task.labels not in ("word", "text")),
        ("--features", config.features, not task.holds_texts),
        ("--stride", config.stride, not task.holds_texts),
    ]
    for flag in (name for name, value, has_meaning in given if value and not has_meaning):
        raise UsageError(f"{flag} has no meaning for {task.name}", do="Leave it out, or say another --task")
    if task.holds_texts and not corpus.passages_field:
        raise UsageError(
            f"{task.name} needs a query and its passages",
            expected="--text_field with the query, --passages_field with the list of passages",
            got="no --passages_field",
        )
