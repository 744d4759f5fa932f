"""A folder of the sentence-transformers library: what stands between a model's states and a text's embedding, as JSON.

`modules.json` lists modules that run one after the other: the model itself, its pooling, perhaps a linear map and a
division by the length. Both halves read it here, and students are written so; the library itself is not needed.
What a module does that is not known here is a refusal that names it: an embedding without it would be another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import UsageError
from schemas.features import Pooling
from schemas.limits import parse_json

MODULES = "modules.json"
_SETTINGS, _MODEL = "config_sentence_transformers.json", "sentence_bert_config.json"
_TYPES = "sentence_transformers.models."
_STATIC, _FOLDERS = "StaticEmbedding", {"Pooling": "1_Pooling", "Dense": "2_Dense"}
_MOST_BYTES = 2**20
_POOLINGS: Mapping[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_FLAGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "lasttoken"}
_FLAGS |= {"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean_tokens": "weightedmean"}
_IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True, kw_only=True)
class EmbeddingFolder:
    """How a text's embedding is made from a model's last hidden states."""

    pooling: Pooling
    normalize: bool = False
    """Whether it has length 1."""
    max_length: int | None = None
    """Tokens of a text at most, special tokens included; longer texts are cut."""
    prompt: str = ""
    """What is put before each text."""
    pools_prompt: bool = True
    """Whether the prompt's tokens have a part in the pooling."""
    dense: str | None = None
    """The folder, inside, of a linear map behind the pooling."""
    is_static: bool = False
    """Whether a table of embeddings stands for model and pooling (`StaticEmbedding`): only students are."""


def read_embedding_folder(folder: str | Path, *, is_static: bool = False) -> EmbeddingFolder | None:
    """What a folder's modules say, of a static model's where that is known to be one; None where it lists none.

    Raises:
        UsageError: a module that is not known here, or files that are none of the library's.
    """
    root = Path(folder)
    if not (root / MODULES).is_file():
        return None
    modules = _read(root / MODULES)
    try:
        found = {str(one["type"]).rsplit(".", 1)[-1]: str(one["path"]) for one in modules}
        kinds = [str(one["type"]).rsplit(".", 1)[-1] for one in modules]
    except (TypeError, KeyError) as error:
        raise _refused(root / MODULES, "a list of modules, each with type and path") from error
    first = [_STATIC] if is_static else ["Transformer", "Pooling"]
    known = [[*first, *dense, *last] for dense in ([], ["Dense"]) for last in ([], ["Normalize"])]
    if kinds not in known or found[first[0]]:
        expected = f"{first[0]} in the folder itself, {''.join(f'{n}, ' for n in first[1:])}perhaps Dense and Normalize"
        got = ", ".join(f"{kind} in {found[kind] or '.'}" for kind in kinds)
        raise _refused(root / MODULES, expected, got=got)
    if is_static:
        prompt = _prompt(_read_if(root / _SETTINGS), root / _SETTINGS)
        normalize, dense = "Normalize" in found, found.get("Dense")
        return EmbeddingFolder(
            pooling="mean", normalize=normalize, prompt=prompt, dense=dense, is_static=True
        )
    pooling = _object(root / found["Pooling"] / "config.json")
    model = _read_if(root / _MODEL)
    if model.get("do_lower_case"):
        raise _refused(root / _MODEL, "do_lower_case: false, a text as it is written", got="true")
    longest = model.get("max_seq_length")
    return EmbeddingFolder(
        pooling=_pooling(pooling, root / found["Pooling"] / "config.json"),
        normalize="Normalize" in found,
        max_length=longest if isinstance(longest, int) and longest > 0 else None,
        prompt=_prompt(_read_if(root / _SETTINGS), root / _SETTINGS),
        pools_prompt=bool(pooling.get("include_prompt", True)),
        dense=found.get("Dense"),
    )


def check_dense(folder: str | Path, name: str) -> None:
    """Whether a linear map's folder holds nothing but that.

    Raises:
        UsageError: what stands behind it is not the identity.
    """
    path = Path(folder) / name / "config.json"
    activation = str(_object(path).get("activation_function", _IDENTITY))
    if activation.rsplit(".", 1)[-1] != "Identity":
        raise _refused(path, "a linear map alone: activation_function Identity", got=activation)


def write_embedding_folder(
    folder: Path, found: EmbeddingFolder, *, width: int, dense_width: int | None
) -> None:
    """Writes the modules of a model whose states are so wide. The weights of the map are the caller's to write."""
    first = [_STATIC] if found.is_static else ["Transformer", "Pooling"]
    names = [*first, *["Dense"] * (dense_width is not None), *["Normalize"] * found.normalize]
    modules: list[dict[str, Any]] = [
        {"idx": n, "name": str(n), "path": _FOLDERS.get(name, ""), "type": _TYPES + name}
        for n, name in enumerate(names)
    ]
    modules[-1]["path"] = f"{len(names) - 1}_Normalize" if found.normalize else modules[-1]["path"]
    _write(folder / MODULES, modules)
    pooling = {f"pooling_mode_{flag}": _POOLINGS.get(mode) == found.pooling for flag, mode in _FLAGS.items()}
    if not found.is_static:
        pooled = {"word_embedding_dimension": width, **pooling, "include_prompt": True}
        _write(folder / _FOLDERS["Pooling"] / "config.json", pooled)
    if dense_width is not None:
        dense = {
            "in_features": width,
            "out_features": dense_width,
            "bias": True,
            "activation_function": _IDENTITY,
        }
        _write(folder / "2_Dense/config.json", dense)
    if (
        found.normalize
    ):  # the library wants a folder for each module; a store or an archive keeps none that is empty
        _write(folder / modules[-1]["path"] / "config.json", {})
    prompts = {"prompts": {"teacher": found.prompt}, "default_prompt_name": "teacher"} if found.prompt else {}
    _write(folder / _SETTINGS, {"similarity_fn_name": "cosine", **prompts})
    if not found.is_static:
        _write(folder / _MODEL, {"max_seq_length": found.max_length, "do_lower_case": False})


def _prompt(settings: Mapping[str, Any], path: Path) -> str:
    """The one that stands before each text where nobody says another."""
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise _refused(path, "a default_prompt_name that is among its prompts", got=repr(name))
    return str(prompts[name])


def _pooling(config: Mapping[str, Any], path: Path) -> Pooling:
    """The one way in which states are pooled."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(f"pooling_mode_{flag}")]
    modes = list(modes) if isinstance(modes, list) else [modes]
    if len(modes) != 1 or str(modes[0]) not in _POOLINGS:
        got = " and ".join(map(str, modes)) or "none"
        raise _refused(path, f"one pooling of {', '.join(_POOLINGS)}", got=got)
    return _POOLINGS[str(modes[0])]


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes(), max_bytes=_MOST_BYTES)
    except (OSError, ValueError) as error:
        raise _refused(path, "the JSON of a sentence-transformers folder", got=str(error)) from error


def _read_if(path: Path) -> Mapping[str, Any]:
    return _object(path) if path.is_file() else {}


def _object(path: Path) -> Mapping[str, Any]:
    found = _read(path)
    if not isinstance(found, dict):
        raise _refused(path, "a JSON object")
    return found


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _refused(path: Path, expected: str, got: str | None = None) -> UsageError:
    return UsageError(
        "this sentence-transformers folder makes its embeddings in a way that is not known here",
        where=path,
        expected=expected,
        got=got,
        do="Take modules.json away to use the model alone, with a pooling of your own",
    )
