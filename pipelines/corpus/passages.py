"""Passages that a corpus has for each query, and how relevant it says that they are."""

from __future__ import annotations

import json
from typing import Any

from pipelines.rejects import BAD_PASSAGES, EMPTY, INVALID_UTF8, RejectedError, kind_of


def read_passages(value: Any, field: str) -> list[str]:
    """A query's passages, in the corpus's order; a text alone is one.

    Raises:
        RejectedError: there is none, or one is no text.
    """
    passages = [value] if isinstance(value, str) else value
    odd = [kind_of(one) for one in passages if not isinstance(one, str)] if isinstance(passages, list) else []
    if odd or not isinstance(passages, list):
        got = f"{kind_of(value)} that holds {odd[0]}" if odd else kind_of(value)
        raise RejectedError(BAD_PASSAGES, field=field, expected="a list of texts", got=got)
    if not passages or not all(one.strip() for one in passages):
        got = f"a blank one, of {len(passages)}" if passages else "none"
        raise RejectedError(EMPTY, field=field, expected="passages that are not blank", got=got)
    try:
        json.dumps(passages, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        expected, got = "texts of whole characters", "half a surrogate pair"
        raise RejectedError(INVALID_UTF8, field=field, expected=expected, got=got) from None
    return passages


def relevances(value: Any, field: str, count: int) -> tuple[float, ...]:
    """How relevant each passage is, as numbers; of one passage a number alone will do.

    Raises:
        RejectedError: there are not as many as passages, or one is no number.
    """
    values = value if isinstance(value, list) else [value]
    if len(values) != count:
        expected = f"a list of {count} numbers, one a passage"
        raise RejectedError(BAD_PASSAGES, field=field, expected=expected, got=kind_of(value))
    for at, one in enumerate(values, 1):
        if isinstance(one, bool) or not isinstance(one, int | float) or not abs(one) <= _MOST:
            expected, got = "numbers within float32", f"{kind_of(one)}, as label {at}"
            raise RejectedError(BAD_PASSAGES, field=field, expected=expected, got=got)
    return tuple(map(float, values))


_MOST = (2 - 2**-23) * 2.0**127
