"""Who the teacher is: the hashes of everything that decides what it says, and the spec that a run asks for.

A hub name is resolved to a commit once, before the run; workers open what they find at that commit and check it
against the fingerprint. Cost: one SHA-256 pass over the weights (about 1 GB/s), once a process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import transformers

from pipelines.config import CorpusConfig, PrecomputeConfig, TeacherConfig
from pipelines.fingerprint.hub_names import locate
from pipelines.fingerprint.refusals import refuse_meaningless, refuse_no_embedding, refuse_no_words
from pipelines.fingerprint.teacher_files import (
    PROCESSOR_FILES,
    config_text,
    hash_tokenizer,
    hash_weights,
    read_config,
    refuse_adapter,
    sha256,
    weight_files,
)
from pipelines.fingerprint.writing import written_by
from pipelines.tasks.image_classification import timm_config
from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.tasks.teacher_task import Settings
from pipelines.teacher import config_shapes
from schemas.errors import TeachonceError, UsageError
from schemas.features import Feature, Pooling
from schemas.fingerprint import Fingerprint
from schemas.identity import canonical_json
from schemas.policies import KeepAll, KeepPolicy, Threshold, default_keep
from schemas.spec import Header, Scalar, Spec
from schemas.task import Score, Task
from schemas.tasks import TASKS

MAX_LENGTH = 1024


@dataclass(frozen=True, kw_only=True)
class ResolvedTeacher:
    """A teacher that was found: a local folder, its config and its tokenizer, or what else makes its inputs."""

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
    folder, name = locate(config.path)
    refuse_adapter(folder)
    try:
        options = {"trust_remote_code": config.trust_remote_code, "local_files_only": True}
        model_config = transformers.AutoConfig.from_pretrained(folder, **options)
        tokenizer = TEACHER_TASKS[config.task].opens(folder, **options)
    except TeachonceError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise UsageError(
            "the teacher's config or tokenizer cannot be opened",
            where=config.path,
            got=str(error).strip().splitlines()[0] if str(error).strip() else repr(error),
            do="It must be a folder that AutoConfig and AutoTokenizer open, or of images AutoImageProcessor",
        ) from error
    return ResolvedTeacher(
        folder=folder,
        name=name,
        config=model_config,
        tokenizer=tokenizer,
        tokenizer_files=tokenizer_files(tokenizer),
    )


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """The files that `save_pretrained` writes, by name; of an image processor of timm's, which writes none, the part of
    its model's config that it is opened from."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        if (told := timm_config(tokenizer)) is not None:
            Path(folder, "config.json").write_bytes(canonical_json(told))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def make_header(config: PrecomputeConfig, teacher: ResolvedTeacher) -> Header:
    """The header that this run asks for.

    Raises:
        UsageError: flags that do not fit the teacher.
    """
    weights = weight_files(teacher.folder, allow_pickle=config.teacher.allow_pickle)
    spec, depth = make_spec(config, teacher), {}
    if spec.kind.reads_images and spec.features:  # what stages there are, a config may not say
        depth["layers"] = len(config_shapes.state_widths(spec.task, teacher.config)) - 1
    return Header(
        fingerprint=make_fingerprint(config.teacher, teacher.folder, teacher.tokenizer),
        spec=spec,
        teacher={
            "name": teacher.name,
            "architecture": (teacher.config.architectures or [type(teacher.config).__name__])[0],
            **config_shapes.described(teacher.config),
            **depth,
            "weight_bytes": sum(path.stat().st_size for path in weights),
            "config": config_text(teacher.folder),
        },
        tokenizer={name: sha256(data) for name, data in teacher.tokenizer_files.items()},
    )


def make_fingerprint(config: TeacherConfig, folder: str, opened: Any) -> Fingerprint:
    """Hashes of weights, config, tokenizer, chat template and remote code, and the dtype.

    Raises:
        UsageError: weights are missing, or code lies where no hash covers it.
    """
    template = getattr(opened, "chat_template", None) or ""
    code = sorted(Path(folder).glob("*.py")) if config.trust_remote_code else []
    _refuse_code_elsewhere(config, folder)
    named = dict(getattr(opened, "vocab_files_names", {})).values()
    more = [name for name in named if isinstance(name, str)]
    more += PROCESSOR_FILES if TASKS[config.task].reads_images else []
    return Fingerprint(
        weights=hash_weights(folder, allow_pickle=config.allow_pickle),
        config=sha256(config_text(folder).encode("utf-8", "surrogatepass")),
        tokenizer=hash_tokenizer(folder, more),
        chat_template=sha256(canonical_json(template)) if template else "",
        dtype=config.dtype,
        remote_code=sha256(b"".join(path.read_bytes() for path in code)) if code else "",
    )


def _refuse_code_elsewhere(config: TeacherConfig, folder: str) -> None:
    """Code that a config takes from another repository may change there, and nothing here would tell."""
    named = str(read_config(folder).get("auto_map") or "")
    if config.trust_remote_code and "--" in named:
        raise UsageError(
            "the teacher's code lies in another repository, whose changes no fingerprint covers",
            where=folder,
            got=named,
            do="Copy the .py files into the teacher's folder and name them in auto_map without a repository",
        )


def make_spec(config: PrecomputeConfig, teacher: ResolvedTeacher) -> Spec:
    """The spec that flags and teacher's config make together.

    Raises:
        UsageError: a flag that does not fit the teacher.
    """
    score, corpus, task = score_of(config, teacher.config), config.corpus, TASKS[config.teacher.task]
    refuse_meaningless(config)
    defaults = TEACHER_TASKS[task.name].defaults(teacher.folder, config.task_settings)
    keep = config.keep or default_keep(task.has_vocabulary)
    settings = task.settled({**defaults.settings, **config.task_settings})
    pairs = any((corpus.text_pair_field, corpus.passages_field, corpus.target_field))
    features = config.features or defaults.features
    max_length = config.max_length or _longest(task, teacher, defaults.max_length or MAX_LENGTH)
    vocab_size = config_shapes.scored_width(task, teacher.config, max_length, score)
    config_shapes.refuse_unfit(task.name, teacher.config, teacher.tokenizer, features, dict(settings))
    refuse_no_embedding(task, features)
    refuse_no_words(config, teacher.tokenizer)
    prefix = TEACHER_TASKS[task.name].prefix(dict(settings))
    if not task.reads_images:
        _refuse_cramped(max_length, config, teacher.tokenizer, prefix=prefix)
    try:
        return Spec(
            task=task.name,
            score=score,
            vocab_size=vocab_size,
            keep=keep,
            max_length=max_length,
            stride=config.stride,
            supervise=config.supervise,
            temperatures=config.temperatures,
            scalars=_scalars(config, keep, task) if score == "softmax" else (),
            own_logits=config.own_logits or (isinstance(keep, Threshold) and len(config.temperatures) > 1),
            sample_seed=config.sample_seed,
            features=tuple(_feature(text, config, teacher.config, dict(settings)) for text in features),
            label_names=config_shapes.label_names(task, teacher.config, score),
            has_labels=corpus.label_field is not None,
            has_token_type_ids="token_type_ids" in teacher.tokenizer.model_input_names
            and not task.has_source,
            has_document_id=corpus.id_field is not None,
            has_text=config.keep_text,
            has_text_pair=config.keep_text and pairs,
            task_settings=settings,
            generation=written_by(config, teacher.folder, teacher.config, teacher.tokenizer, max_length),
        )
    except ValueError as error:
        raise UsageError("the flags make no spec", got=str(error)) from error


def _scalars(config: PrecomputeConfig, keep: KeepPolicy, task: Task) -> tuple[Scalar, ...]:
    """Those asked for, and what the temperatures need; whole distributions are few and small, and store all; so do
    windows whose logits are compared with each other's."""
    wanted = set(config.scalars if config.scalars is not None else ("entropy", "gold"))
    whole = config.scalars is None and (isinstance(keep, KeepAll) or task.classes_are_tokens)
    if whole or len(config.temperatures) > 1:
        wanted.add("logsumexp")
    return tuple(name for name in get_args(Scalar) if name in wanted)


def _refuse_cramped(max_length: int, config: PrecomputeConfig, tokenizer: Any, *, prefix: str) -> None:
    """A window must have room for a token of its own beside its special tokens, those before each text and those of the
    window before."""
    special = 0
    if corpus_kind(config.corpus) != "messages":
        pair = bool(config.corpus.text_pair_field or config.corpus.passages_field)
        special = tokenizer.num_special_tokens_to_add(pair=pair)
        special += TASKS[config.teacher.task].needs_pairs  # a first text of one token
        if prefix:
            special += len(tokenizer(prefix, add_special_tokens=False, verbose=False)["input_ids"])
    if max_length - special - config.stride < 1:
        raise UsageError(
            "--max_length leaves no room for text",
            expected=f"more than {special} special tokens"
            + (" and those of the prompt" if prefix else "")
            + f" and a stride of {config.stride}",
            got=max_length,
        )


def score_of(config: PrecomputeConfig, model_config: Any) -> Score:
    """softmax, sigmoid (multi-label) or identity (regression): as asked, or as the model's config says."""
    if config.score is not None:
        return config.score
    scores = TASKS[config.teacher.task].scores
    if len(scores) == 1:
        return scores[0]
    if (own := TEACHER_TASKS[config.teacher.task].score) is not None:
        return own(model_config)
    kinds: dict[str, Score] = {"multi_label_classification": "sigmoid", "regression": "identity"}
    implied: Score = "identity" if model_config.num_labels == 1 else "softmax"
    return kinds.get(model_config.problem_type or "", implied)


def _feature(text: str, config: PrecomputeConfig, model_config: Any, settings: Settings) -> Feature:
    """A feature, as wide as the cache keeps it."""
    found = parse_feature(text, config, model_config)
    return replace(found, width=TEACHER_TASKS[config.teacher.task].feature_width(found.width, settings))


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
        widths = config_shapes.state_widths(
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
    """How documents become tokens: `messages`, `passages`, `prompt`, `target`, `image` or `text`."""
    kinds = ("messages", "passages", "prompt", "target", "image")
    return next((kind for kind in kinds if getattr(corpus, f"{kind}_field")), "text")


def _longest(task: Task, teacher: ResolvedTeacher, most: int) -> int:
    """What tokenizer and model allow, at most so many tokens; of images the least that there is."""
    if task.reads_images:
        return 2
    positions = config_shapes.usable_length(teacher.config) or most
    return int(min(teacher.tokenizer.model_max_length, positions, most))
