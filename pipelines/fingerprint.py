"""Who the teacher is: the hashes of everything that decides what it says, and the spec that a run asks for.

A hub name is resolved to a commit once, before the run; workers open what they find at that commit and check it
against the fingerprint. Cost: one SHA-256 pass over the weights (about 1 GB/s), once a process.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipelines import shapes
from pipelines.config import CorpusConfig, PrecomputeConfig, TeacherConfig
from schemas.errors import UsageError
from schemas.identity import canonical_json
from schemas.policies import KeepAll, KeepPolicy, Threshold, default_keep
from schemas.spec import Feature, Fingerprint, Header, Pooling, Scalar, Score, Spec

MAX_LENGTH = 1024
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, kw_only=True)
class ResolvedTeacher:
    """A teacher that was found: a local folder, its config and its tokenizer."""

    folder: str
    name: str
    """What people call it: the folder's name, or the hub's with the commit."""
    config: Any
    tokenizer: Any
    tokenizer_files: Mapping[str, bytes]


def resolve(config: TeacherConfig) -> ResolvedTeacher:
    """Finds the teacher's files, and opens its config and tokenizer.

    Raises:
        UsageError: there is no such folder or hub name, or it does not hold a model with a tokenizer.
    """
    folder, name = _locate(config.path)
    try:
        options = {"trust_remote_code": config.trust_remote_code, "local_files_only": True}
        model_config = transformers.AutoConfig.from_pretrained(folder, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            "the teacher's config or tokenizer cannot be opened",
            where=config.path,
            got=str(error).strip().splitlines()[0] if str(error).strip() else repr(error),
            do="It must be a folder that AutoConfig and AutoTokenizer open",
        ) from error
    return ResolvedTeacher(
        folder=folder,
        name=name,
        config=model_config,
        tokenizer=tokenizer,
        tokenizer_files=tokenizer_files(tokenizer),
    )


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """The files that `save_pretrained` writes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def make_header(config: PrecomputeConfig, teacher: ResolvedTeacher) -> Header:
    """The header that this run asks for.

    Raises:
        UsageError: flags that do not fit the teacher.
    """
    files = {name: _sha256(data) for name, data in teacher.tokenizer_files.items()}
    return Header(
        fingerprint=make_fingerprint(config.teacher, teacher.folder, files, teacher.tokenizer),
        spec=make_spec(config, teacher),
        teacher={
            "name": teacher.name,
            "architecture": (teacher.config.architectures or [type(teacher.config).__name__])[0],
            **shapes.described(teacher.config),
            "weight_bytes": sum(path.stat().st_size for path in _weights(teacher.folder)),
        },
        tokenizer=files,
    )


def make_fingerprint(
    config: TeacherConfig, folder: str, tokenizer: Mapping[str, str], opened: Any
) -> Fingerprint:
    """Hashes of weights, config, tokenizer, chat template and remote code, and the dtype."""
    template = opened.chat_template or ""
    code = sorted(Path(folder).glob("*.py")) if config.trust_remote_code else []
    return Fingerprint(
        weights=_hash_files(tuple((str(p), *_stamp(p)) for p in _weights(folder))),
        config=_sha256(canonical_json(shapes.finite_json(_deciding_config(folder)))),
        tokenizer=_sha256(canonical_json(dict(tokenizer))),
        chat_template=_sha256(canonical_json(template)) if template else "",
        dtype=config.dtype,
        remote_code=_sha256(b"".join(path.read_bytes() for path in code)) if code else "",
    )


def make_spec(config: PrecomputeConfig, teacher: ResolvedTeacher) -> Spec:
    """The spec that flags and teacher's config make together.

    Raises:
        UsageError: a flag that does not fit the teacher.
    """
    score, corpus = score_of(config, teacher.config), config.corpus
    vocab_size = shapes.scored_width(config.teacher.task, teacher.config)
    keep = config.keep or (default_keep(vocab_size) if score == "softmax" else KeepAll())
    pairs = corpus.text_pair_field is not None
    max_length = config.max_length or _longest(teacher)
    _refuse_meaningless(config)
    shapes.refuse_unfit(config.teacher.task, teacher.config, teacher.tokenizer, config.features)
    _refuse_cramped(max_length, config, teacher.tokenizer)
    try:
        return Spec(
            task=config.teacher.task,
            score=score,
            vocab_size=vocab_size,
            keep=keep,
            max_length=max_length,
            stride=config.stride,
            supervise=config.supervise,
            temperatures=config.temperatures,
            scalars=_scalars(config, keep) if score == "softmax" else (),
            own_logits=config.own_logits or (isinstance(keep, Threshold) and len(config.temperatures) > 1),
            sample_seed=config.sample_seed,
            features=tuple(parse_feature(text, config, teacher.config) for text in config.features),
            label_names=_label_names(teacher.config) if config.teacher.task != "causal-lm" else (),
            has_labels=corpus.label_field is not None,
            has_token_type_ids="token_type_ids" in teacher.tokenizer.model_input_names,
            has_document_id=corpus.id_field is not None,
            has_text=config.keep_text,
            has_text_pair=config.keep_text and pairs,
        )
    except ValueError as error:
        raise UsageError("the flags make no spec", got=str(error)) from error


def _scalars(config: PrecomputeConfig, keep: KeepPolicy) -> tuple[Scalar, ...]:
    """Those asked for, and what the temperatures need; whole distributions are few and small, and store all."""
    wanted = set(config.scalars if config.scalars is not None else ("entropy", "gold"))
    whole = config.scalars is None and isinstance(keep, KeepAll)
    if whole or len(config.temperatures) > 1:
        wanted.add("logsumexp")
    return tuple(name for name in get_args(Scalar) if name in wanted)


def _refuse_meaningless(config: PrecomputeConfig) -> None:
    """Flags that a causal LM has no use for are refused, not ignored."""
    given = {"--label_field": config.corpus.label_field, "--text_pair_field": config.corpus.text_pair_field}
    for flag in (name for name, value in given.items() if value and config.teacher.task == "causal-lm"):
        raise UsageError(f"{flag} has no meaning for causal-lm", do="Leave it out, or say another --task")


def _refuse_cramped(max_length: int, config: PrecomputeConfig, tokenizer: Any) -> None:
    """A window must have room for a token of its own beside its special tokens and those of the window before."""
    special = 0
    if corpus_kind(config.corpus) != "messages":
        special = tokenizer.num_special_tokens_to_add(pair=config.corpus.text_pair_field is not None)
    if max_length - special - config.stride < 1:
        raise UsageError(
            "--max_length leaves no room for text",
            expected=f"more than {special} special tokens and a stride of {config.stride}",
            got=max_length,
        )


def score_of(config: PrecomputeConfig, model_config: Any) -> Score:
    """softmax, sigmoid (multi-label) or identity (regression): as asked, or as the model's config says."""
    if config.score is not None:
        return config.score
    if config.teacher.task == "causal-lm":
        return "softmax"
    kinds: dict[str, Score] = {"multi_label_classification": "sigmoid", "regression": "identity"}
    implied: Score = "identity" if model_config.num_labels == 1 else "softmax"
    return kinds.get(model_config.problem_type or "", implied)


def parse_feature(text: str, config: PrecomputeConfig, model_config: Any) -> Feature:
    """`pooling:layer`; a negative layer counts from the last, -1.

    Raises:
        UsageError: it is none, or the teacher has no such layer.
    """
    pooling, _, layer_text = text.partition(":")
    try:
        if pooling not in get_args(Pooling):
            raise ValueError(f"no such pooling: {pooling}")
        layer = int(layer_text)
        widths = shapes.state_widths(
            config.teacher.task, model_config, trust_remote_code=config.teacher.trust_remote_code
        )
        layer = layer + len(widths) if layer < 0 else layer
        if layer >= len(widths):
            raise ValueError(f"the teacher has layers 0 to {len(widths) - 1}")
        return Feature(
            pooling=pooling,  # type: ignore[arg-type]  # checked above
            layer=layer,
            width=widths[layer],
            dtype=config.feature_dtype,
        )
    except ValueError as error:
        raise UsageError(
            "--features names no feature",
            expected="mean:L, cls:L or last:L",
            got=f"{text!r} ({error})",
        ) from error


def corpus_kind(corpus: CorpusConfig) -> str:
    """How documents become tokens: `messages`, `prompt` or `text`."""
    if corpus.messages_field:
        return "messages"
    return "prompt" if corpus.prompt_field else "text"


def _locate(path: str) -> tuple[str, str]:
    folder = Path(path)
    if folder.is_dir():
        return str(folder.resolve()), folder.resolve().name
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UsageError("--teacher: no such folder", where=path)
    name, _, revision = path.partition("@")
    try:
        found = Path(snapshot_download(name, revision=revision or None))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise UsageError(
            "--teacher is neither a folder nor a model of the hub",
            where=path,
            got=str(error).strip().splitlines()[0],
        ) from error
    return str(found), f"{name}@{found.name}"


def _longest(teacher: ResolvedTeacher) -> int:
    """What tokenizer and model allow, at most `MAX_LENGTH`."""
    positions = shapes.usable_length(teacher.config) or MAX_LENGTH
    return int(min(teacher.tokenizer.model_max_length, positions, MAX_LENGTH))


def _label_names(model_config: Any) -> tuple[str, ...]:
    return tuple(
        str(model_config.id2label.get(index, f"LABEL_{index}")) for index in range(model_config.num_labels)
    )


def _deciding_config(folder: str) -> dict[str, Any]:
    """The config as it is on disk, less what only says who wrote it."""
    values, _ = transformers.PretrainedConfig.get_config_dict(folder, local_files_only=True)
    ignored = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash")
    return {key: value for key, value in values.items() if key not in ignored}


def _weights(folder: str) -> list[Path]:
    """The weight files that `from_pretrained` opens: safetensors where there are any."""
    for pattern in _WEIGHTS:
        found = sorted(Path(folder).glob(pattern))
        if found:
            return found
    raise UsageError("the teacher's folder holds no weights", where=folder, expected=" or ".join(_WEIGHTS))


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file: the same stamp is the same content within one process."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _hash_files(stamped: tuple[tuple[str, int, int], ...]) -> str:
    state = hashlib.sha256()
    for path, _, _ in stamped:
        state.update(Path(path).name.encode() + b"\0")
        with Path(path).open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
