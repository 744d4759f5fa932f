"""Opening what others made: a model folder, a hub name, a cache's tokenizer. They are data; their code is never run.

transformers runs Python that lies beside a model when its config names it (`auto_map`) and somebody says yes. Nobody is
asked here: `trust_remote_code=False` is said outright with every call, and what would need code is refused by name.
Weights are read from safetensors alone, for a pickle is code too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.hub import extract_commit_hash

from schemas.cache import Cache
from schemas.cli.logs import is_watched
from schemas.cli.progress import downloaded, printed
from schemas.errors import StudentError, UsageError, one_line
from schemas.network import why_no_hub

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


def open_config(source: str, revision: str | None = None) -> Any:
    """A folder's or hub name's config; of the hub's at a revision, where one is told.

    Raises:
        UsageError: it cannot be opened, or asks for code.
    """
    _check_folder(source)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise UsageError("this is no model folder: it has no config.json", where=source)
    at = _at(source, revision)
    values, _ = _opened("config", source, lambda: PreTrainedConfig.get_config_dict(source, **at))
    refuse_code(values, f"{source} (config.json)")
    return _opened(
        "config", source, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False, **at)
    )


def open_tokenizer(source: str, revision: str | None = None, *, of_adapter: bool = False) -> Any:
    """A folder's or hub name's tokenizer; `of_adapter` says that the folder may hold an adapter.

    Raises:
        UsageError: it cannot be opened, or asks for code.
    """
    _check_folder(source, may_be_adapter=of_adapter)
    at = _at(source, revision)
    values = _opened("tokenizer", source, lambda: get_tokenizer_config(source, trust_remote_code=False, **at))
    refuse_code(values, f"{source} (tokenizer_config.json)")
    return _opened(
        "tokenizer", source, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False, **at)
    )


def cached_tokenizer(cache: Cache) -> Any:
    """The teacher's tokenizer, from the cache.

    Raises:
        StudentError: the cache holds none, or it asks for code.
        UsageError: it cannot be opened.
    """
    names = cache.header.tokenizer
    if not names:
        raise StudentError(
            "the cache holds no tokenizer, so no student can be known to fit it", where=cache.storage.root
        )
    code = sorted(name for name in names if name.endswith((".py", ".pyc", ".pkl", ".so")))
    if code:
        raise _code(f"{cache.storage.root} (its tokenizer)", ", ".join(code))
    with tempfile.TemporaryDirectory() as folder:
        saved = cache.save_tokenizer(folder)
        for path in sorted(Path(saved).rglob("*.json")):
            refuse_code(_json_of(path), f"{cache.storage.root} (its tokenizer's {path.name})")
        try:
            return open_tokenizer(str(saved))
        except UsageError as error:
            raise UsageError(
                "the cache's tokenizer cannot be opened", where=cache.storage.root, got=error.got
            ) from error


def open_weights(
    kind: Any, source: str, config: Any, loading: Mapping[str, Any] | None = None
) -> tuple[Any, list[str]]:
    """A model in float32, and the names of those of its weights that the folder does not hold.

    `loading` is what `from_pretrained` is told besides: a revision, or that weights are held in fewer bits.

    Raises:
        UsageError: it cannot be opened, or its weights are pickled.
    """
    _check_weights(source)
    if (Path(source).expanduser() / GENERATION_CONFIG_NAME).exists():
        # transformers takes its defaults in place of one that is broken, without a word.
        _opened(
            GENERATION_CONFIG_NAME,
            source,
            lambda: GenerationConfig.from_pretrained(source, trust_remote_code=False),
        )
    options = {
        "config": config,
        "dtype": torch.float32,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        **(loading or {}),
    }
    options = {**_at(source, None), **options}
    fetched = not Path(source).expanduser().exists() and not options.get("local_files_only")
    with printed(
        lambda: downloaded(source), enabled=fetched and not is_watched()
    ):  # there its client has a bar
        model, told = _opened("weights", source, lambda: kind.from_pretrained(source, **options))
    return model, sorted(told["missing_keys"])


def refuse_code(values: Any, where: str) -> None:
    """Refuses a config that names Python of its own, or kernels to be fetched.

    Raises:
        UsageError: naming the key.
    """
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        if key == "auto_map" and value:
            raise _code(where, f"auto_map ({_first(value)})")
        if key in ("attn_implementation", "_attn_implementation") and "/" in str(value):
            raise _code(where, f"{key} ({value})")
        refuse_code(value, where)


def _first(value: Any) -> str:
    return str(next(iter(value.values()), "")) if isinstance(value, Mapping) else str(value)


def _code(where: str, got: str) -> UsageError:
    return UsageError(
        "it asks for Python code of its own, which is never run here (trust_remote_code=False)",
        where=where,
        got=got,
        do="Use a model and tokenizer whose classes are transformers' own: where transformers has the class, delete "
        "auto_map from the folder's config",
    )


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def hub_commit(source: str) -> str | None:
    """The commit at which a hub name's config was just opened; None of a folder."""
    if Path(source).expanduser().is_dir():
        return None
    found = try_to_load_from_cache(source, "config.json")
    commit: str | None = extract_commit_hash(found, None) if isinstance(found, str) else None
    return commit


def _at(source: str, revision: str | None) -> dict[str, Any]:
    """At which revision; and without a network only what was downloaded before, at once."""
    found: dict[str, Any] = {} if revision is None else {"revision": revision}
    if not Path(source).expanduser().exists() and why_no_hub() is not None:
        found["local_files_only"] = True
    return found


def _check_folder(source: str, *, may_be_adapter: bool = False) -> None:
    """What is plainly a path, or is there, must be a folder with a model; a cache and an adapter are not one."""
    path = Path(source).expanduser()
    if not path.exists():
        if source.startswith(("/", ".", "~")) or source.count("/") > 1:
            raise UsageError("there is no such model folder", where=source)
        return
    if not path.is_dir():
        raise UsageError(
            "this is a file and no model folder", where=source, do="A config to start from ends in .json"
        )
    if (path / "_teachonce").is_dir():
        raise UsageError(
            "this is a cache and no model folder", where=source, do="Caches are named by --cache"
        )
    if (path / "adapter_config.json").is_file() and not may_be_adapter:
        raise UsageError(
            "this folder holds an adapter and no model of its own, which only evaluate --student opens",
            where=source,
            do="Merge it into its base model first (peft: merge_and_unload) and save that",
        )


def _check_weights(source: str) -> None:
    """Pickled weights are named as what they are; transformers only says that it found no others."""
    path = Path(source).expanduser()
    if not path.is_dir() or any(any(path.glob(pattern)) for pattern in _WEIGHTS):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    raise UsageError(
        "the model's weights are pickled, which is code" if pickles else "this folder holds no weights",
        where=source,
        expected="model.safetensors",
        got=", ".join(pickles) or None,
        do="Save it again with transformers' save_pretrained, where you trust it" if pickles else None,
    )


def _opened(what: str, source: str, how: Callable[[], Any]) -> Any:
    """A library's call, whose every failure is one line."""
    try:
        return how()
    except Exception as error:
        raise UsageError(
            f"the model's {what} cannot be opened",
            where=source,
            got=one_line(error).rstrip("."),
            do="Name a model folder, a hub name, a config .json, or shrink:layers=N with --teacher",
        ) from error
