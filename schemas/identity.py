"""Who is who: the hashes that name documents, examples and units, and the held-out split.

Content decides, never place: a document that moved, or that stands in the corpus twice, has one hash.
All hashes are BLAKE2b; 128 bits make a collision among 10^9 examples less likely than 10^-20.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

HASH_BYTES = 16
"""Bytes of a document's, an example's and a unit's hash."""
DEFAULT_EVAL_FRACTION = 0.05
"""Share of documents held out where nothing else is said: shards and the index count their rows at this one."""


_quoted = json.encoder.encode_basestring
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return _CANONICAL.encode(value).encode("utf-8", "surrogatepass")


def digest(data: bytes | memoryview, person: str) -> bytes:
    """The 16-byte BLAKE2b hash of `data`, in the domain `person` (at most 16 ASCII letters)."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES, person=person.encode()).digest()


def document_hash(
    content: Mapping[str, Any], *, key: str = "", label: int | float | list[float] | list[int] | None = None
) -> bytes:
    """The hash of a document: its key (the `--id_field` value, or empty), its content and its label.

    `content` is what the teacher is shown, for instance `{"text": "..."}` or `{"messages": [...]}`.
    """
    return digest(_document_json(content, key, label), "document")


def _document_json(content: Mapping[str, Any], key: str, label: Any) -> bytes:
    """`canonical_json` of all three; of texts with a class or without a label put together from its parts, for a short
    text in a third of the time."""
    if not (label is None or type(label) is int) or not all(type(text) is str for text in content.values()):
        return canonical_json([key, content, label])
    fields = ",".join(f"{_quoted(name)}:{_quoted(content[name])}" for name in sorted(content))
    text = f"[{_quoted(key)},{{{fields}}},{'null' if label is None else label}]"
    return text.encode("utf-8", "surrogatepass")


def example_id(document: bytes, *, window_index: int, tokenised_how: bytes) -> bytes:
    """The 16-byte id of one example: its document's hash, which window it is, and how it was tokenised."""
    return digest(document + window_index.to_bytes(4, "little") + tokenised_how, "example")


def unit_name(example_ids: Iterable[bytes], spec_hash: str) -> str:
    """The name of the unit of work that scores exactly these examples under this spec: 32 hex digits."""
    return digest(b"".join(sorted(example_ids)) + spec_hash.encode("ascii"), "unit").hex()


def unit_number(example: bytes, num_units: int) -> int:
    """Which of `num_units` equal ranges of id space an example falls into: units are random samples."""
    return int.from_bytes(example[:8], "big") * num_units >> 64


def is_held_out(document: bytes, fraction: float) -> bool:
    """Whether a document belongs to the held-out part; a function of its hash and the fraction alone.

    All windows of a document stand on one side, and a smaller fraction's part lies inside a larger one's.
    """
    return int.from_bytes(document[8:16], "little") < held_out_below(fraction)


def held_out(document_hash: UInt8[np.ndarray, "R 16"], fraction: float) -> Bool[np.ndarray, " R"]:
    """`is_held_out` of each row."""
    words = np.ascontiguousarray(document_hash[:, 8:16]).view("<u8")[:, 0]
    below: np.ndarray[Any, Any] = words < np.uint64(held_out_below(fraction))
    return below


def held_out_below(fraction: float) -> int:
    """The whole number below which a document's hash puts it on the held-out side.

    Raises:
        ValueError: the fraction is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction of documents must be in [0, 1], but got {fraction!r}")
    return int(fraction * 2**64)
