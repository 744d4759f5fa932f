"""What ids mean, for people: class names from the spec, or tokens from the cached `tokenizer.json`.

Read without `tokenizers` or `transformers`, which a reader of a cache need not have; so a token's text is what its
vocabulary entry says, which is not always what it adds to a decoded text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from schemas.cache import Cache
from schemas.limits import OF_JSON, parse_json, told
from schemas.versions.header import TOKENIZER_FOLDER

TOKENIZER_JSON = "tokenizer.json"


def id_texts(cache: Cache) -> dict[int, str]:
    """The text of each id that a position may keep; empty where the cache cannot tell."""
    if cache.spec.label_names:
        return dict(enumerate(cache.spec.label_names))
    return token_texts(cache) if cache.spec.kind.has_vocabulary else {}


def token_texts(cache: Cache) -> dict[int, str]:
    """The text of each token id; empty where the tokenizer has no `tokenizer.json`."""
    if TOKENIZER_JSON not in cache.header.tokenizer:
        return {}
    where = f"{cache.storage.root}/{TOKENIZER_FOLDER}/{TOKENIZER_JSON}"
    with told("the cache's tokenizer is not one", where, also=OF_JSON):
        return texts_of(parse_json(cache.tokenizer_file(TOKENIZER_JSON)))


def texts_of(tokenizer: Mapping[str, Any]) -> dict[int, str]:
    """Id to text from a parsed `tokenizer.json` (BPE, WordPiece, WordLevel or Unigram)."""
    readable = _from_byte_letters if _is_byte_level(tokenizer) else _from_sentencepiece
    found = {index: readable(token) for token, index in _vocabulary(tokenizer.get("model") or {})}
    added = tokenizer.get("added_tokens") or ()
    return found | {token["id"]: token["content"] for token in added}


def _vocabulary(model: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, Mapping):
        return iter(vocabulary.items())
    return ((entry[0], index) for index, entry in enumerate(vocabulary))


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    decoder = tokenizer.get("decoder") or {}
    return any(part.get("type") == "ByteLevel" for part in (decoder, *decoder.get("decoders", ())))


def _byte_of_letter() -> dict[str, int]:
    """The letters that byte-level BPE (GPT-2) writes bytes with: printable Latin-1 as it is, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


_BYTES = _byte_of_letter()


def _from_byte_letters(token: str) -> str:
    if not all(letter in _BYTES for letter in token):
        return token
    return bytes(_BYTES[letter] for letter in token).decode("utf-8", "backslashreplace")


def _from_sentencepiece(token: str) -> str:
    return token.replace("\u2581", " ")
