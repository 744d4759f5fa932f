"""Which bytes a token stands for, told by a tokenizer's vocabulary.

Of a byte-level BPE (GPT-2's and its heirs) every token *is* some bytes, and a text is its tokens' bytes one after the
other: that needs no text and no second tokenisation, and holds inside characters of several bytes. Of SentencePiece
(its spaces written as a bar, its rare bytes as `<0xE2>`) the bytes say what a token adds to a text, but for a space at
a text's edge. Of others (WordPiece) a vocabulary does not say it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from schemas.errors import StudentError

_FIRST = (b" ", b"\t", b"\n", b"\r")
"""Bytes before a word: no tokenizer that cuts a text into words joins them with the letters before."""
_BAR = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def check_fast(tokenizer: Any, where: str) -> None:
    """Only tokenizers of the `tokenizers` library tell which characters a token is from.

    Raises:
        StudentError: this is none.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise StudentError(
            "this tokenizer does not tell which characters a token is from",
            where=where,
            got=type(tokenizer).__name__,
            do="Choose a student with a fast tokenizer (a tokenizer.json)",
        )


def byte_tokens(tokenizer: Any) -> list[bytes] | None:
    """By id, the bytes that each token is; empty of ids without a token. None of a tokenizer that is not byte-level."""
    if "ByteLevel" not in _kinds(_settings(tokenizer).get("decoder")):
        return None
    found = _by_id(tokenizer)
    added = _added(tokenizer)
    table = _table()
    try:
        return [
            token.encode() if index in added else bytes(table[letter] for letter in token)
            for index, token in enumerate(found)
        ]
    except KeyError:
        return None


def token_strings(tokenizer: Any) -> list[tuple[bytes, str]] | None:
    """By id, what each token adds to a text, and what kind of token it is: `special NAME` of those that only a model
    writes, `byte` of a byte that is written as one, else empty. None where the vocabulary does not say it."""
    roles = _roles(tokenizer)
    exact = byte_tokens(tokenizer)
    if exact is not None:
        return [(value, roles.get(index, "")) for index, value in enumerate(exact)]
    if not {"Metaspace", "Replace"} & _kinds(_settings(tokenizer).get("decoder")):
        return None
    found = []
    for index, token in enumerate(_by_id(tokenizer)):
        byte = _BYTE.fullmatch(token)
        if index in roles or byte is None:
            found.append((token.replace(_BAR, " ").encode(), roles.get(index, "")))
        else:
            found.append((bytes([int(byte.group(1), 16)]), "byte"))
    return found


def word_starts(tokenizer: Any) -> Bool[np.ndarray, " V"] | None:
    """Which ids begin a word: those whose bytes begin with a space, a tab or the end of a line, and those that stand
    for no text, before which a word ends too (arXiv:2503.20083). None where the vocabulary does not say it."""
    if not getattr(tokenizer, "is_fast", False) or (strings := token_strings(tokenizer)) is None:
        return None
    return np.array([role.startswith("special") or text[:1] in _FIRST for text, role in strings], np.bool_)


def adds_space(tokenizer: Any) -> bool:
    """Whether a byte-level tokenizer puts a space before each text."""
    parts = _parts(_settings(tokenizer).get("pre_tokenizer"))
    return any(part.get("add_prefix_space", False) for part in parts if part.get("type") == "ByteLevel")


def edge_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer puts before a text, and behind it."""
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    inner = [place for place, kind in enumerate(special) if not kind]
    first, last = (inner[0], inner[-1] + 1) if inner else (len(ids), len(ids))
    return tuple(ids[:first]), tuple(ids[last:])


def written_bytes(tokenizer: Any) -> Bool[np.ndarray, " V"]:
    """Which ids are a byte that is written as one (`<0xE2>`)."""
    return np.array([_BYTE.fullmatch(token) is not None for token in _by_id(tokenizer)], np.bool_)


def _by_id(tokenizer: Any) -> list[str]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    found = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        found[index] = token
    return found


def _added(tokenizer: Any) -> set[int]:
    return {int(index) for index in tokenizer.added_tokens_decoder}


def _roles(tokenizer: Any) -> dict[int, str]:
    """Ids of tokens that stand for no text, by what they do: beginning, end, padding, unknown; else by their name."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = {index: f"special {tokenizer.added_tokens_decoder[index].content}" for index in special}
    for name in ("unk", "pad", "eos", "bos"):
        if (index := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            found[index] = f"special {'bos' if name == 'bos' else name}"
    end = getattr(tokenizer, "eos_token_id", None)
    if end is not None:  # one token may play several parts: that it ends a text is what a model is taught
        found[end] = "special eos"
    return found


def _settings(tokenizer: Any) -> dict[str, Any]:
    """What a fast tokenizer is made of, its vocabulary left out."""
    return _parsed(tokenizer.backend_tokenizer)


def _parsed(backend: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(backend.to_str())
    return {name: values.get(name) for name in ("decoder", "pre_tokenizer", "normalizer")}


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """A component and those that it is a sequence of."""
    if not isinstance(component, dict):
        return
    yield component
    for name in ("decoders", "pretokenizers", "normalizers"):
        for part in component.get(name, ()):
            yield from _parts(part)


def _kinds(component: Any) -> set[str]:
    return {str(part.get("type")) for part in _parts(component)}


@functools.cache
def _table() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones are themselves, the others follow from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}
