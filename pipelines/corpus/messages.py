"""Conversations: whole message objects, and what else of a record the chat template reads.

All keys of a message go to the template, as in transformers, which leaves out those that are null. What the template
sees decides the document's hash; a conversation of plain `{role, content}` messages has the hash that it always had.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pipelines.rejects import (
    BAD_FIELD,
    BAD_MESSAGES,
    EMPTY,
    FIELD_MISSING,
    INVALID_UTF8,
    NOT_A_STRING,
    RejectedError,
    kind_of,
)

KWARGS = "chat_template_kwargs"
"""Field of a record with variables for the template, by the custom of other trainers."""
_LISTS = ("tools", "documents")
_RESERVED = {
    *("messages", "conversations", "chat_template", "tokenize"),
    *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
}
"""What a conversation's rendering decides itself."""


def read_messages(value: Any, field: str) -> list[dict[str, Any]]:
    """The messages of a conversation, less what is null.

    Raises:
        RejectedError: naming the message by its place.
    """
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        expected = "a list of message objects"
        raise RejectedError(NOT_A_STRING, field=field, expected=expected, got=kind_of(value))
    if not value:
        raise RejectedError(EMPTY, field=field, expected="a list of message objects", got="an empty list")
    found = [{name: part for name, part in message.items() if part is not None} for message in value]
    for place, message in enumerate(found):
        _check_message(message, f"{field}[{place}]")
    refuse_unplain(found, field)
    return found


def _check_message(message: Mapping[str, Any], field: str) -> None:
    if "role" not in message:
        names = "role and content, or more"
        raise RejectedError(
            FIELD_MISSING, field=f"{field}.role", expected=f"a message with {names}", got="no role"
        )
    _check_string(message["role"], f"{field}.role")
    content = message.get("content")
    if content is None and not _says_more(message):
        raise RejectedError(
            FIELD_MISSING, field=f"{field}.content", expected="a string", got="null or nothing"
        )
    if isinstance(content, list):
        _check_parts(content, f"{field}.content")
    elif content is not None and not isinstance(content, dict):
        _check_string(content, f"{field}.content", blank=_says_more(message))


def _says_more(message: Mapping[str, Any]) -> bool:
    """Whether a message says something beside its role and content: calls, reasoning, which call it answers."""
    return any(
        value not in ("", [], {}) for name, value in message.items() if name not in ("role", "content")
    )


def _check_string(value: Any, field: str, *, blank: bool = False) -> None:
    if not isinstance(value, str):
        raise RejectedError(NOT_A_STRING, field=field, expected="a string", got=kind_of(value))
    if not value.strip() and not blank:
        raise RejectedError(EMPTY, field=field, expected="a string that is not blank", got="a blank one")


def _check_parts(parts: list[Any], field: str) -> None:
    """A content of parts must be text alone: the teacher is shown nothing else."""
    for place, part in enumerate(parts):
        is_text = isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str))
        if not is_text or (isinstance(part, dict) and part.get("type", "text") != "text"):
            got = "a part of another type" if isinstance(part, dict) else kind_of(part)
            raise RejectedError(
                BAD_MESSAGES, field=f"{field}[{place}]", expected="a part of type text", got=got
            )
    if not parts:
        raise RejectedError(EMPTY, field=field, expected="parts of type text", got="an empty list")


def read_given(fields: Mapping[str, Any], names: Collection[str], tools_field: str) -> dict[str, Any]:
    """What else of a record goes to the template: `names` are the variables that it reads.

    Lists of tools and documents, and the variables in `chat_template_kwargs`, may stand there as JSON in a string.
    """
    given = {}
    for name in sorted(names):
        field = tools_field if name == "tools" else name
        value = fields.get(field)
        if value is not None:
            given[name] = _structured(value, name, field)
    given |= given.pop(KWARGS, {})
    if taken := _RESERVED & set(given):
        expected = "variables of the template"
        raise RejectedError(BAD_FIELD, field=KWARGS, expected=expected, got=min(taken))
    refuse_unplain(given, ", ".join(given))
    return given


def _structured(value: Any, name: str, field: str) -> Any:
    kind = dict if name == KWARGS else list if name in _LISTS else None
    if kind is None:
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = "no JSON"
    holds = isinstance(value, kind) and (kind is dict or all(isinstance(one, dict) for one in value))
    if not holds:
        expected = "an object" if kind is dict else "a list of objects"
        raise RejectedError(
            BAD_FIELD, field=field, expected=f"{expected}, or JSON of one", got=kind_of(value)
        )
    return value


def refuse_unplain(value: Any, field: str) -> None:
    """Rejects what JSON cannot hold: bytes, dates, NaN, half a surrogate pair, endless depth."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        expected, got = "strings of whole characters", "half a surrogate pair"
        raise RejectedError(INVALID_UTF8, field=field, expected=expected, got=got) from None
    except (TypeError, ValueError, RecursionError):
        got = "a value that JSON cannot hold"
        raise RejectedError(BAD_FIELD, field=field, expected="plain JSON", got=got) from None
