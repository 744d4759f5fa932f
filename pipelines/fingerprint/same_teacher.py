"""Whether a teacher is the one that made a cache, where the hashes of its files differ.

Files are written again by other releases of the library, and earlier releases of this project hashed other things. So
a difference of hashes is looked into before it is a refusal, and only what can be shown is accepted:

* tokenizer: the cache holds its own. Both are opened here, and must give equal ids on a broad probe, and agree in their
  vocabulary, added tokens, special tokens and what they add around a text;
* weights: the hash that earlier releases took, of every weight file of the folder, is equal;
* config: the cache holds the config's text. Both are opened here, and must be equal in all that decides something.

Cost: nothing where hashes are equal; else two tokenizers opened, a second or two a run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from pipelines.fingerprint.fingerprint import ResolvedTeacher
from pipelines.fingerprint.probe import PROBES
from pipelines.fingerprint.teacher_files import config_text, former_hash, plain, sha256
from schemas.errors import one_line
from schemas.fingerprint import Fingerprint
from schemas.identity import canonical_json
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.header import read_tokenizer_file

_UNSAID = frozenset(
    (
        "_name_or_path",
        "_commit_hash",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "torchscript",
        "attn_implementation",
        "_attn_implementation",
        "id2label",
        "label2id",
    )
)
"""Keys of an opened config that change no score; the names of labels stand in the spec."""
_PIECES = 4096
"""Entries of the vocabulary that are written out as a probe."""


def reconciled(
    storage: Storage, cache: Header, asked: Fingerprint, teacher: ResolvedTeacher
) -> tuple[Fingerprint, list[str]]:
    """The run's fingerprint with the cache's hash wherever both are shown to mean the same; and why others are not."""
    ours, told = cache.fingerprint, []
    checks: Mapping[str, Callable[[], list[str]]] = {
        "tokenizer": lambda: _other_tokenizer(storage, cache, teacher),
        "weights": lambda: _other_weights(ours, teacher.folder),
        "config": lambda: _other_config(cache, teacher.folder),
    }
    for name, look in checks.items():
        if getattr(ours, name) == getattr(asked, name):
            continue
        if lines := look():
            told += [f"{name}: {line}" for line in lines]
        else:
            asked = replace(asked, **{name: getattr(ours, name)})
    return asked, told


def _other_weights(cache: Fingerprint, folder: str) -> list[str]:
    return [] if former_hash(folder) == cache.weights else ["other files or other bytes"]


def _other_config(cache: Header, folder: str) -> list[str]:
    """In what the two configs differ, as this library opens them."""
    stored = cache.teacher.get("config")
    if not isinstance(stored, str):
        return ["another, and this cache holds no copy to compare with"]
    try:
        ours, theirs = (_opened(text) for text in (stored, config_text(folder)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RecursionError) as error:
        return [f"the cache's copy cannot be opened ({one_line(error)})"]
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    return [f"{name}: cache {_short(ours.get(name))}, teacher {_short(theirs.get(name))}" for name in names]


def _opened(text: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    found: dict[str, Any] = _said(plain(json.loads(config.to_json_string(use_diff=False))))
    return found


def _said(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _said(inner) for key, inner in value.items() if key not in _UNSAID}
    return [_said(inner) for inner in value] if isinstance(value, list) else value


def _other_tokenizer(storage: Storage, cache: Header, teacher: ResolvedTeacher) -> list[str]:
    """In what the cache's tokenizer and the teacher's differ; nothing where they give equal ids."""
    former = {name: sha256(data) for name, data in teacher.tokenizer_files.items()}
    if sha256(canonical_json(former)) == cache.fingerprint.tokenizer:
        return []  # what earlier releases hashed: the files that the library writes
    if cache.spec.kind.reads_images:
        return [] if former == dict(cache.tokenizer) else ["another image processor"]
    try:
        stored = _stored_tokenizer(storage, cache)
    except Exception as error:  # noqa: BLE001  the tokenizers library raises nothing narrower
        return [f"the cache's cannot be opened ({one_line(error)})"]
    return other_ids(stored, teacher.tokenizer)


def _stored_tokenizer(storage: Storage, cache: Header) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for name in cache.tokenizer:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read_tokenizer_file(storage, cache, name))
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )


def other_ids(cache: Any, teacher: Any) -> list[str]:
    """In what two open tokenizers differ: one line each, empty where they give equal ids."""
    found = [
        f"{name}: cache {_short(ours)}, teacher {_short(theirs)}"
        for name, ours, theirs in zip(_NAMES, _rules(cache), _rules(teacher), strict=True)
        if ours != theirs
    ]
    if found:
        return found
    for text in _probes(teacher):
        ours, theirs = _ids(cache, text), _ids(teacher, text)
        if ours != theirs:
            return [f"the ids of {text[:40]!r}: cache {_short(ours)}, teacher {_short(theirs)}"]
    return []


_NAMES = ("vocabulary", "added tokens", "special tokens", "tokens around a text", "tokens around a pair")


def _rules(tokenizer: Any) -> tuple[Any, ...]:
    """What decides ids, as far as a tokenizer tells."""
    added = {
        index: (str(token), token.special, token.lstrip, token.rstrip, token.single_word, token.normalized)
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    around = [tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)]
    return tokenizer.get_vocab(), added, sorted(tokenizer.all_special_ids), *around


def _ids(tokenizer: Any, text: str) -> list[list[int]]:
    """Ids with and without special tokens, and as the second of a pair."""
    return [
        list(tokenizer(*given, add_special_tokens=special)["input_ids"])
        for given, special in (((text,), True), ((text,), False), (("a", text), True))
    ]


def _probes(tokenizer: Any) -> Iterator[str]:
    """Texts of every kind; each added token inside a text; and entries from all of the vocabulary, written out."""
    yield from PROBES
    for token in tokenizer.added_tokens_decoder.values():
        yield f"a {token} b{token}c"
    ids = range(0, len(tokenizer), max(1, len(tokenizer) // _PIECES))
    for start in range(0, len(ids), 64):
        yield tokenizer.decode(list(ids[start : start + 64]))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
