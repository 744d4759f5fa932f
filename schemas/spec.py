"""What a cache was made from and how it is kept: `Fingerprint`, `Spec`, and the `Header` that holds both on disk.

Three lists decide whether a run may add to a cache. *Fingerprint* (what the teacher says) and *spec* (how that is
kept) must be equal; *provenance* (device, library versions) is recorded with each run and may differ.
A header lists the `required_features` that a reader must know; one that it does not know is a refusal.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from schemas.errors import NEWER, CorruptionError, FormatError, UsageError
from schemas.features import Feature
from schemas.field_flags import told_by_flags
from schemas.fingerprint import Fingerprint
from schemas.generation import FEATURE as GENERATED
from schemas.generation import Generation
from schemas.identity import canonical_json, digest
from schemas.limits import OF_JSON, conform, conform_fields, parse_json, refuse_unless, shown, told
from schemas.policies import KeepAll, KeepPolicy, Threshold, is_sampling, max_kept, max_sampled, parse_keep
from schemas.task import Score, SettingValue, Task
from schemas.tasks import TASKS

FORMAT_VERSION = 1
CODE_STEP_NATS = 1 / 16
TOP_STEP_NATS = 1 / 64
SCALAR_STEP_NATS = 1 / 32
MAX_VOCAB = 2**24  # ids are ranked through tables of V numbers: 200 MB while a shard is written
MAX_LENGTH = 2**31 - 1  # tokens of an example: lists have offsets of 32 bits
MAX_FEATURES, MAX_TEMPERATURES = 1024, 64
MIN_TEMPERATURE, MAX_TEMPERATURE = 2.0**-10, 2.0**20
_MAX_SPEC_BYTES = 2**26  # the names of a million classes fit

Supervise = Literal["all", "assistant"]
Scalar = Literal["entropy", "gold", "logsumexp", "word_start"]
_KEEPS = ("all", "top_k", "top_p", "threshold", "sampled")
KNOWN_FEATURES = frozenset(
    [
        *(f"keep:{name}" for name in _KEEPS),
        *(f"score:{score}" for score in get_args(Score)),
        *(name for task in TASKS.values() for name in task.required_features),
        *(GENERATED, "scalar:word_start"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How the teacher's answers are kept. Fixed for the life of a cache."""

    task: str
    score: Score
    vocab_size: int
    """V: width of the teacher's head, padding rows included; 0 where nothing is scored."""
    keep: KeepPolicy
    max_length: int
    """Tokens of an example at most, special tokens included."""
    stride: int = 0
    """Tokens that a window shares with the one before it: context only, never positions."""
    supervise: Supervise = "all"
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures at which the cache can be asked; the first is 1."""
    scalars: tuple[Scalar, ...] = ("entropy", "gold")
    """What is stored of each position beside its entries; `logsumexp` at every temperature."""
    own_logits: bool = False
    """Whether drawn entries have their own log-probabilities stored."""
    sample_seed: int = 0
    """Decides, with example and position, what is drawn."""
    features: tuple[Feature, ...] = ()
    label_names: tuple[str, ...] = ()
    """Name of each class; empty for a vocabulary."""
    has_labels: bool = False
    """Whether documents are read with their labels, which are part of who they are."""
    has_token_type_ids: bool = False
    has_document_id: bool = False
    has_text: bool = False
    has_text_pair: bool = False
    task_settings: tuple[tuple[str, SettingValue], ...] = ()
    """What the task leaves to the user, each of its settings in order."""
    generation: Generation | None = None
    """How the teacher wrote the cache's texts; None: they are the corpus's."""
    code_step_nats: float = CODE_STEP_NATS
    top_step_nats: float = TOP_STEP_NATS
    scalar_step_nats: float = SCALAR_STEP_NATS

    def __post_init__(self) -> None:
        refuse_unless(self.task in TASKS, "task", self.task)
        settled = TASKS[self.task].settled(dict(self.task_settings))
        refuse_unless(settled == self.task_settings, "task_settings (all, in order)", self.task_settings)
        refuse_unless(self.score in self.kind.scores, f"score of {self.task}", self.score)
        least, most = (1, MAX_VOCAB) if self.kind.has_positions else (0, 0)
        refuse_unless(least <= self.vocab_size <= most, "vocab_size", self.vocab_size)
        refuse_unless(2 <= self.max_length <= MAX_LENGTH, "max_length (2 tokens at least)", self.max_length)
        refuse_unless(0 <= self.stride < self.max_length, "stride", self.stride)
        refuse_unless(self.supervise in get_args(Supervise), "supervise", self.supervise)
        distinct = len(set(self.temperatures)) == len(self.temperatures) <= MAX_TEMPERATURES
        serve = self.temperatures[:1] == (1.0,)
        serve = serve and all(MIN_TEMPERATURE <= t <= MAX_TEMPERATURE for t in self.temperatures)
        refuse_unless(serve and distinct, "temperatures (1 first, each once, above 0)", self.temperatures)
        refuse_unless(len(self.features) <= MAX_FEATURES, "features (so many)", len(self.features))
        own = not self.kind.classes_are_tokens or self.vocab_size == self.max_length
        refuse_unless(own, "vocab_size (max_length, where classes are tokens)", self.vocab_size)
        named = len(self.label_names)
        refuse_unless(named <= self.vocab_size, "label_names (more than classes)", named)
        columns = [feature.column for feature in self.features]
        refuse_unless(len(set(columns)) == len(columns), "features (each once)", columns)
        whole = self.score == "softmax" or isinstance(self.keep, KeepAll)
        refuse_unless(whole, "keep (only softmax scores can be cut)", str(self.keep))
        for name in ("code_step_nats", "top_step_nats", "scalar_step_nats"):
            refuse_unless(0 < getattr(self, name) <= 1, name, getattr(self, name))
        refuse_unless(-(2**63) <= self.sample_seed < 2**63, "sample_seed", self.sample_seed)
        writes = self.generation is None or self.kind.is_written
        refuse_unless(writes, f"generation (of {self.task})", self.generation)
        self._check_scalars()
        if not self.kind.has_positions:
            refuse_unless(bool(self.features), f"features of {self.task} (one at least)", self.features)
            plain = (self.temperatures, self.scalars) == ((1.0,), ())
            refuse_unless(plain, f"temperatures, scalars of {self.task}", (self.temperatures, self.scalars))

    def _check_scalars(self) -> None:
        """What is stored beside the entries must serve every declared temperature."""
        known = [name for name in get_args(Scalar) if name in self.scalars]
        fits = list(self.scalars) == known and ("word_start" not in known or self.kind.implies_places)
        refuse_unless(fits, f"scalars of {self.task} (in this order, each once)", self.scalars)
        warmer = len(self.temperatures) > 1
        refuse_unless("logsumexp" in self.scalars or not warmer, "scalars", self.scalars)
        known_draws = self.is_sampling or not self.own_logits
        refuse_unless(known_draws, "own_logits (only threshold and sampled draw entries)", True)
        if warmer and self.is_sampling:
            serves = isinstance(self.keep, Threshold)
            refuse_unless(serves, "temperatures (draws serve temperature 1 alone)", self.temperatures)
            refuse_unless(self.own_logits, "own_logits (a temperature needs it)", self.own_logits)

    @property
    def kind(self) -> Task:
        """What the task is."""
        return TASKS[self.task].of_settings(self.task_settings)

    def setting(self, name: str) -> SettingValue:
        """What a setting of the task was set to."""
        given = dict(self.task_settings)
        return given[name] if name in given else self.kind.default_of(name)

    @property
    def max_kept(self) -> int:
        """K: the most entries that a position can keep exactly."""
        return max_kept(self.keep, self.vocab_size, len(self.temperatures))

    @property
    def max_sampled(self) -> int:
        """The most sampled entries of a position."""
        return max_sampled(self.keep, self.vocab_size, len(self.temperatures))

    @property
    def max_entries(self) -> int:
        """The most entries of a position, exact and drawn: an id with p >= tau leaves so much less to draw."""
        exact = self.keep.k if isinstance(self.keep, Threshold) else self.max_kept
        return min(self.vocab_size, exact + self.max_sampled)

    @property
    def is_sampling(self) -> bool:
        """Whether entries are drawn, and weigh without bias."""
        return is_sampling(self.keep)

    @property
    def required_features(self) -> tuple[str, ...]:
        """What a reader must know to read this cache rightly."""
        keep = f"keep:{str(self.keep).partition(':')[0]}"
        written = (GENERATED,) if self.generation is not None else ()
        words = ("scalar:word_start",) if "word_start" in self.scalars else ()
        return (keep, f"score:{self.score}", *self.kind.required_features, *written, *words)

    def to_json(self) -> dict[str, Any]:
        values = {**dataclasses.asdict(self), "keep": str(self.keep)}
        # what came after the first caches stands in none that does without it: they keep their hashes
        later = {"task_settings": dict(values.pop("task_settings")), "generation": values.pop("generation")}
        return {**values, **{name: value for name, value in later.items() if value}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Spec:
        """The spec that `to_json` made this of.

        Raises:
            ValueError, UsageError: it says what no spec can.
        """
        keep = parse_keep(conform(str, value["keep"], "keep"))
        settings = conform(Mapping[str, Any], value.get("task_settings", {}), "task_settings")
        written = value.get("generation")
        generation = None if written is None else conform(Generation, written, "generation")
        made = {"keep": keep, "task_settings": tuple(settings.items()), "generation": generation}
        return cls(**conform_fields(cls, {**value, **made}, made=tuple(made)))

    @property
    def hash(self) -> str:
        """32 hex digits; part of every unit's name."""
        return digest(canonical_json(self.to_json()), "spec").hex()


@dataclass(frozen=True, kw_only=True)
class Header:
    """`_teachonce/spec.json`: created once with the cache, and never changed."""

    fingerprint: Fingerprint
    spec: Spec
    teacher: Mapping[str, Any]
    """For people: name, model class, parameters, layers, hidden size. Decides nothing."""
    tokenizer: Mapping[str, str]
    """SHA-256 of each file in `_teachonce/tokenizer/`, by name."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in self.tokenizer:
            path = PurePosixPath(name)
            inside = name == str(path) and path.name and not path.is_absolute() and ".." not in path.parts
            refuse_unless(bool(inside) and name.isprintable(), "a tokenizer file's name", name)

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "format_version": self.format_version,
            "required_features": list(self.spec.required_features),
            "fingerprint": dataclasses.asdict(self.fingerprint),
            "spec": self.spec.to_json(),
            "teacher": dict(self.teacher),
            "tokenizer": dict(self.tokenizer),
        }
        return {**body, "hash": digest(canonical_json(body), "header").hex()}

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Header:
        """Parses and checks a header.

        Raises:
            CorruptionError: the bytes are not the JSON that was written.
            FormatError: a newer format, or a required feature, field or value that this reader does not know.
        """
        with told("the spec is not what was written", where, _RESTORE, also=OF_JSON):
            body = parse_json(data, max_bytes=_MAX_SPEC_BYTES)
            recorded = body.pop("hash")
        _refuse_unknown(body, where)
        if digest(canonical_json(body), "header").hex() != recorded:
            raise CorruptionError("the spec does not match its own hash", where=where, do=_RESTORE)
        try:
            return cls._from_body(body)
        except (KeyError, TypeError, ValueError, UsageError) as error:
            got = str(error) if isinstance(error, ValueError | UsageError) else repr(error)
            raise FormatError(
                "this cache's spec says what this reader does not know", where=where, got=got, do=NEWER
            ) from error

    @classmethod
    def _from_body(cls, body: Mapping[str, Any]) -> Header:
        return cls(
            fingerprint=conform(Fingerprint, body["fingerprint"], "fingerprint"),
            spec=Spec.from_json(body["spec"]),
            teacher=conform(Mapping[str, Any], body["teacher"], "teacher"),
            tokenizer=conform(Mapping[str, str], body["tokenizer"], "tokenizer"),
            format_version=body["format_version"],
        )


def differences(
    ours: Header,
    theirs: Header,
    parts: Sequence[str] = ("fingerprint", "spec"),
    may_differ: Sequence[str] = (),
) -> list[str]:
    """One line for each field of these parts in which two headers differ: `FLAG: cache A, run B`."""
    lines = []
    for part in parts:
        a, b = ours.to_json()[part], theirs.to_json()[part]
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key) and key not in may_differ]
        lines += [line for key in keys for line in told_by_flags(part, key, a.get(key), b.get(key))]
    return lines


_RESTORE = "Restore the file from a copy; a cache whose spec is gone cannot be read"


def _refuse_unknown(body: Mapping[str, Any], where: str) -> None:
    version = body.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        what, got = "this cache has another format version", shown(version)
        raise FormatError(what, where=where, expected=FORMAT_VERSION, got=got, do=NEWER)
    asked = body.get("required_features")
    names = asked if isinstance(asked, list) else [asked]
    if unknown := sorted({str(name) for name in names} - KNOWN_FEATURES):
        raise FormatError(
            "this cache needs features that this reader does not know",
            where=where,
            got=shown(", ".join(unknown)).strip("'"),
            do=NEWER,
        )
