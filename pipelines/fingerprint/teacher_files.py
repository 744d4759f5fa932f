"""The files of a teacher's folder that decide what it says: those that `from_pretrained` opens, and their hashes.

Hashes are of files as they lie there, never of what a library would write: the next release writes one more key. JSON
counts by its content, less the keys that decide nothing. What `from_pretrained` would apply or pass over depending on
what else is installed, an adapter above all, is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers

from schemas.errors import UsageError
from schemas.identity import canonical_json

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

_NO_CONFIG = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash")
"""Keys of `config.json` that only say who wrote it; the dtype is the run's own."""

_NO_TOKENS = frozenset(
    (
        "_commit_hash",
        "_name_or_path",
        "backend",
        "chat_template",
        "clean_up_tokenization_spaces",
        "errors",
        "is_local",
        "local_files_only",
        "max_length",
        "model_input_names",
        "model_max_length",
        "name_or_path",
        "pad_to_multiple_of",
        "pad_token_type_id",
        "padding_side",
        "processor_class",
        "special_tokens_map_file",
        "stride",
        "tokenizer_file",
        "transformers_version",
        "verbose",
    )
)
"""Keys of `tokenizer_config.json` that decide no id of a text: places, versions, decoding, padding, which is ours; the
chat template has a hash of its own, and windows and token types stand in the spec."""
_NO_RULES = frozenset(("padding", "truncation"))
"""Keys of `tokenizer.json` that every call sets anew."""

_TOKENIZER_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PROCESSOR_FILES = ["preprocessor_config.json", "processor_config.json"]
"""What decides the pixels of an image."""
_TOKENIZER_FILES = (
    *_TOKENIZER_JSON,
    *("*vocab*.json", "encoder.json", "normalizer.json", "tekken.json"),
    *("*vocab*.txt", "merges.txt", "dict.txt", "vocab.bpe", "bpe.codes"),
    *("*.model", "*.model.v*", "*.spm", "*.tiktoken"),
)


def refuse_adapter(folder: str) -> None:
    """An adapter is applied where peft is installed, and passed over where it is not.

    Raises:
        UsageError: naming the adapter's file.
    """
    found = next((name for name in _ADAPTER if (Path(folder) / name).exists()), None)
    if found:
        raise UsageError(
            "the teacher's folder holds an adapter, which may or may not be applied",
            where=f"{folder}/{found}",
            do="Merge it into the weights first (peft: merge_and_unload, then save_pretrained), or take it away",
        )


def weight_files(folder: str, *, allow_pickle: bool = True) -> list[Path]:
    """The weight files that `from_pretrained` opens, by name: whatever else lies there is not the teacher's.

    Raises:
        UsageError: there are none, or one that the index names is missing.
    """
    named = read_config(folder).get("transformers_weights")
    candidates = [named] if isinstance(named, str) else [_SAFE, f"{_SAFE}.index.json"]
    if allow_pickle and not named:
        candidates += [_PICKLED, f"{_PICKLED}.index.json"]
    found = next((Path(folder) / name for name in candidates if (Path(folder) / name).is_file()), None)
    if found is None:
        pickled = any((Path(folder) / name).is_file() for name in (_PICKLED, f"{_PICKLED}.index.json"))
        raise UsageError(
            "the teacher's folder holds no weights",
            where=folder,
            expected=" or ".join(candidates),
            got=f"{_PICKLED}, which can run code when it is opened" if pickled else None,
            do="Say --allow_pickle if you trust it" if pickled else None,
        )
    return _indexed(found) if found.name.endswith(".index.json") else [found]


def _indexed(index: Path) -> list[Path]:
    """The shards that an index names."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        found = [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "the index of the teacher's weights is broken", where=index, got=repr(error)
        ) from error
    if missing := [path.name for path in found if not path.is_file()]:
        raise UsageError("the teacher's weights are not all there", where=index, got=f"no {missing[0]}")
    return found


def hash_weights(folder: str, *, allow_pickle: bool = True) -> str:
    """The hash of names and bytes of the weight files; read once a process."""
    return _hash_files(_stamped(weight_files(folder, allow_pickle=allow_pickle)))


def former_hash(folder: str) -> str | None:
    """What earlier releases hashed: every `.safetensors` file (else every `.bin`) of the folder."""
    for pattern in ("*.safetensors", "*.bin"):
        if found := sorted(Path(folder).glob(pattern)):
            return _hash_files(_stamped(found))
    return None


def read_config(folder: str) -> dict[str, Any]:
    """`config.json` as it lies there."""
    values, _ = transformers.PretrainedConfig.get_config_dict(folder, local_files_only=True)
    return dict(values)


def config_text(folder: str) -> str:
    """`config.json` less what only says who wrote it, as canonical JSON; numbers that JSON lacks by their names."""
    values = {key: value for key, value in read_config(folder).items() if key not in _NO_CONFIG}
    return canonical_json(plain(values)).decode("utf-8", "surrogatepass")


def plain(value: Any) -> Any:
    """A JSON value whose infinite numbers are written as transformers writes them: `{"__float__": "Infinity"}`."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": json.dumps(value)}
    return value


def hash_tokenizer(folder: str, more: Iterable[str] = ()) -> str:
    """The hash of the files that decide ids; `more` are names that the tokenizer's class knows beside the usual."""
    names = {path.name for pattern in _TOKENIZER_FILES for path in Path(folder).glob(pattern)}
    names |= {name for name in more if (Path(folder) / name).is_file()}
    return sha256(canonical_json({name: _content(Path(folder) / name) for name in sorted(names)}))


def _content(path: Path) -> str:
    """The hash of one file's content: JSON without the keys that decide nothing, else its bytes."""
    data = path.read_bytes()
    if path.suffix != ".json":
        return sha256(data)
    less = {"tokenizer_config.json": _NO_TOKENS, "tokenizer.json": _NO_RULES}.get(path.name, frozenset())
    try:
        value = json.loads(data)
        if isinstance(value, dict):
            value = {key: inner for key, inner in value.items() if key not in less}
        return sha256(canonical_json(plain(value)))
    except ValueError:
        return sha256(data)


def _stamped(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Path, size and time of files: the same stamp is the same content within one process."""
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


@functools.lru_cache(maxsize=8)
def _hash_files(stamped: tuple[tuple[str, int, int], ...]) -> str:
    state = hashlib.sha256()
    for path, _, _ in stamped:
        state.update(Path(path).name.encode() + b"\0")
        with Path(path).open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()


def sha256(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
