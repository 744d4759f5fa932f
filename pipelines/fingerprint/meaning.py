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
        ("--messages_field", corpus.messages_field, task.labels not in ("word", "answer")),
        ("--prompt_field", corpus.prompt_field, task.labels not in ("word", "answer")),
    ]
    for flag in (name for name, value, has_meaning in given if value and not has_meaning):
        raise UsageError(f"{flag} has no meaning for {task.name}", do="Leave it out, or say another --task")
    if task.needs_pairs and not corpus.text_pair_field:
        raise UsageError(
            f"{task.name} needs a question and its context",
            expected="--text_field with the question, --text_pair_field with the context",
            got="no --text_pair_field",
        )
