"""What a record says its image is: encoded bytes, bare or as Hugging Face `datasets` keeps them."""

from __future__ import annotations

import hashlib
from typing import Any

from pipelines.rejects import EMPTY, NOT_AN_IMAGE, RejectedError, kind_of


def read_image(value: Any, field: str) -> tuple[bytes, dict[str, Any]]:
    """An image's bytes, and what stands for them in a document's hash. That they are an image, nobody knows yet.

    Raises:
        RejectedError: they are not bytes, or none.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        got = "an object without bytes" if isinstance(value, dict) else kind_of(value)
        raise RejectedError(NOT_AN_IMAGE, field=field, expected="an encoded image, as bytes", got=got)
    if not data:
        raise RejectedError(EMPTY, field=field, expected="an encoded image", got="no bytes")
    return data, {"image": hashlib.sha256(data).hexdigest()}
