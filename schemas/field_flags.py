"""Which flag decides each field of fingerprint and spec: what differs is told in the words of the command line.

A field that is not here cannot be told: a test fails until it is. What no flag decides alone names what does.
"""

from __future__ import annotations

from collections.abc import Mapping

FLAGS: Mapping[str, Mapping[str, str]] = {
    "fingerprint": {
        "weights": "--teacher, its weights",
        "config": "--teacher, its config",
        "tokenizer": "--teacher, its tokenizer",
        "chat_template": "--teacher, its chat template",
        "dtype": "--dtype",
        "remote_code": "--trust_remote_code, the teacher's own code",
    },
    "spec": {
        "task": "--task",
        "score": "--score",
        "vocab_size": "--teacher, the width of its head",
        "keep": "--keep",
        "max_length": "--max_length",
        "stride": "--stride",
        "supervise": "--supervise",
        "temperatures": "--temperatures",
        "scalars": "--scalars",
        "own_logits": "--own_logits",
        "sample_seed": "--sample_seed",
        "features": "--features, --feature_dtype",
        "label_names": "--teacher, its labels",
        "has_labels": "--label_field",
        "has_token_type_ids": "--teacher, whether its tokenizer tells first from second texts",
        "has_document_id": "--id_field",
        "has_text": "--keep_text",
        "has_text_pair": "--keep_text of --text_pair_field",
        "task_settings": "the task's own flags",
        "generation": "--generate, --max_new_tokens",
        "code_step_nats": "this release's codec",
        "top_step_nats": "this release's codec",
        "scalar_step_nats": "this release's codec",
    },
}
"""By part of a header and field."""


def told_by_flags(part: str, field: str, ours: object, theirs: object) -> list[str]:
    """`FLAG: cache A, run B`; of a task's settings, whose names are flags, a line each that differs."""
    if field == "task_settings":
        a, b = (value if isinstance(value, Mapping) else {} for value in (ours, theirs))
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        return [f"--{name}: cache {_word(a.get(name))}, run {_word(b.get(name))}" for name in names]
    return [f"{FLAGS[part][field]}: cache {_word(ours)}, run {_word(theirs)}"]


def _word(value: object) -> str:
    """As people say it: whether there is something, or what."""
    if isinstance(value, bool):
        return "with it" if value else "without it"
    if isinstance(value, list | tuple):
        return " ".join(_word(item) for item in value) or "nothing"
    if isinstance(value, Mapping) and "pooling" in value:
        return f"{value['pooling']}:{value['layer']} as {value['dtype']}"
    return "nothing" if value is None else str(value)
