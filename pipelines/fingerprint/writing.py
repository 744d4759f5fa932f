"""How a teacher that writes begins and ends: what the spec says of its texts beside what the user asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from pipelines.config import PrecomputeConfig
from pipelines.tasks.seq2seq_lm import target_prefix
from schemas.errors import UsageError, one_line
from schemas.generation import Generation
from schemas.tasks import TASKS


def written_by(
    config: PrecomputeConfig, folder: str, model_config: Any, tokenizer: Any, max_length: int
) -> Generation | None:
    """How the teacher writes, with the tokens that end its texts; None where the corpus has the texts.

    Raises:
        UsageError: no prompt would have room beside its answer; or a tokenizer of targets that cannot be begun.
    """
    if config.generation is None:
        return None
    if max_length <= config.generation.max_new_tokens:
        raise UsageError(
            "--max_length leaves no room for a prompt beside its answer",
            expected=f"more than the {config.generation.max_new_tokens} of --max_new_tokens",
            got=max_length,
            do="Lower --max_new_tokens",
        )
    ends = end_ids(folder, model_config, tokenizer)
    if TASKS[config.teacher.task].has_source:
        target_prefix(tokenizer, ends)
    return replace(config.generation, end_ids=ends)


def end_ids(folder: str, model_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a text, ascending: as the teacher's generation_config.json says, else its config, else the
    tokenizer.

    Raises:
        UsageError: the file is none.
    """
    found = None
    path = Path(folder) / "generation_config.json"
    if path.is_file():
        try:
            found = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                "the teacher's generation_config.json cannot be read",
                where=path,
                got=one_line(error),
                do="Mend it, or take it away: then the config says what ends a text",
            ) from error
    for other in (getattr(model_config.get_text_config(), "eos_token_id", None), tokenizer.eos_token_id):
        found = other if found is None else found
    ids = found if isinstance(found, list | tuple) else [] if found is None else [found]
    return tuple(sorted({int(one) for one in ids}))
