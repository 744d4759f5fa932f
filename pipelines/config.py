"""What a precompute run is told: one frozen value, refused at construction when it makes no sense."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from schemas.features import FeatureDtype
from schemas.generation import Generation
from schemas.policies import KeepPolicy
from schemas.shards.rewrite import ROW_GROUP_TOKENS, UNIT_TOKENS
from schemas.spec import Scalar, Supervise
from schemas.task import Score, SettingValue
from schemas.tasks import TASKS

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "float16"]
DeviceMap = Literal["auto", "balanced", "sequential"]
CorpusFormat = Literal["auto", "jsonl", "text", "csv", "tsv", "parquet", "tar", "image"]

MAX_LINE_BYTES = 64 * 2**20
"""Holds the longest document (`max_document_chars`) also where each of its characters is escaped."""
_ACCELERATOR = re.compile(r"type:[a-z0-9-]+;count:[1-9][0-9]*(;[a-z0-9_-]+(:[a-z0-9._-]+)?)*")
SAMPLE_TOKENS = 8192
"""That a plan has scored, where nothing else is said."""
MIN_TEMPERATURE = 0.1
"""At T a stored log-probability is off by half a step divided by T: at 0.1 weights sum up to 1.003, at 0.02 to 1.04."""
_RAM = re.compile(r"[1-9][0-9]*(\.[0-9]+)?[KMGTP]i?B")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which teacher, and how it is run."""

    path: str
    """A folder, or a name on the Hugging Face hub (`name@revision` pins one)."""
    task: str
    """A name in `schemas.tasks.TASKS`."""
    dtype: Dtype = "float32"
    device: Device = "auto"
    device_map: DeviceMap | None = None
    """How one teacher is spread over all of a machine's accelerators; None: it is on one."""
    compile: bool = False
    """Whether torch compiles the model: minutes once a process, then faster."""
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    """Whether weights may come from pickled `.bin` files, which can run code when opened."""

    def __post_init__(self) -> None:
        _refuse_unless(bool(self.path), "teacher", self.path)
        _refuse_unless(self.task in TASKS, "task", self.task)
        _refuse_unless(self.dtype in get_args(Dtype), "dtype", self.dtype)
        _refuse_unless(self.device in get_args(Device), "device", self.device)
        _refuse_unless(self.device_map in (None, *get_args(DeviceMap)), "device_map", self.device_map)
        both = (self.device, self.device_map)
        _refuse_unless(self.device_map is None or self.device != "cpu", "device, device_map", both)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where the documents are, and which of their fields are what."""

    files: tuple[str, ...]
    """Paths or globs, on any filesystem that Beam knows, or of a data set of the hub (`hf://datasets/OWNER/NAME/...`)."""
    format: CorpusFormat = "auto"
    """`auto` goes by the name: `.jsonl`/`.json`/`.ndjson`, `.txt`, `.csv`, `.tsv`, `.parquet`, `.tar`, each also `.gz`
    or `.zst`; and `.jpg`, `.png` and their like."""
    text_field: str = "text"
    text_pair_field: str | None = None
    target_field: str | None = None
    """What a teacher of two halves is to say to the text, which is its source."""
    words_field: str | None = None
    """The text as a list of words, whose labels are a list too."""
    passages_field: str | None = None
    """The texts that are scored beside the text, each alone."""
    image_field: str | None = None
    """An image, in place of any text."""
    messages_field: str | None = None
    prompt_field: str | None = None
    completion_field: str | None = None
    label_field: str | None = None
    id_field: str | None = None
    tools_field: str = "tools"
    """Which field of a record the chat template reads as `tools`."""
    max_document_chars: int = 10_000_000
    """Longer documents are rejected."""
    max_line_bytes: int = MAX_LINE_BYTES
    """Longer lines, and rows of tables of more, are rejected, and never held whole."""

    def __post_init__(self) -> None:
        _refuse_unless(bool(self.files), "corpus", self.files)
        _refuse_unless(self.format in get_args(CorpusFormat), "format", self.format)
        _refuse_unless(self.max_document_chars >= 1, "max_document_chars", self.max_document_chars)
        _refuse_unless(self.max_line_bytes >= 1, "max_line_bytes", self.max_line_bytes)
        pair = (self.prompt_field, self.completion_field)
        _refuse_unless(self.prompt_field is not None or pair == (None, None), "completion_field alone", pair)
        alone = self.messages_field is None and self.tools_field != "tools"
        _refuse_unless(not alone, "tools_field (without --messages_field)", self.tools_field)
        kinds = ("messages", "prompt", "text_pair", "words", "passages", "target", "image")
        names = [f"{kind}_field" for kind in kinds]
        given = [value for value in (getattr(self, name) for name in names) if value]
        _refuse_unless(len(given) <= 1, ", ".join(names), given)

    @property
    def is_answered(self) -> bool:
        """Whether its documents have answers to what they ask."""
        return self.prompt_field is None or self.completion_field is not None

    @property
    def required_fields(self) -> tuple[str, ...]:
        """The fields that every document must have."""
        content: tuple[str | None, ...] = (self.text_field, self.text_pair_field)
        content += (self.passages_field, self.target_field)
        if self.messages_field:
            content = (self.messages_field,)
        elif self.prompt_field:
            content = (self.prompt_field, self.completion_field)
        elif self.words_field or self.image_field:
            content = (self.words_field or self.image_field,)
        return tuple(name for name in (*content, self.label_field, self.id_field) if name)


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """One run of `teachonce precompute`."""

    corpus: CorpusConfig
    teacher: TeacherConfig
    cache: str
    task_settings: Mapping[str, SettingValue] = field(default_factory=dict)
    """What the task leaves to the user (`schemas.tasks`); those that are not given have their defaults."""
    keep: KeepPolicy | None = None
    """None: `threshold:1/32` of a vocabulary, every score of classes."""
    features: tuple[str, ...] = ()
    """`pooling:layer` each, for instance `mean:-1`; negative layers count from the last."""
    feature_dtype: FeatureDtype = "int8"
    temperatures: tuple[float, ...] = (1.0,)
    scalars: tuple[Scalar, ...] | None = None
    """None: entropy and gold; logsumexp too where every score is kept, or a temperature other than 1 is declared."""
    own_logits: bool = False
    """On by itself as soon as a temperature other than 1 is declared."""
    sample_seed: int = 0
    generation: Generation | None = None
    """How the teacher answers prompts itself; None: the corpus has the answers."""
    score: Score | None = None
    """None: what the teacher's config says (`problem_type`)."""
    max_length: int | None = None
    """None: what the tokenizer and the model allow, at most 1,024 tokens."""
    stride: int = 0
    supervise: Supervise = "all"
    keep_text: bool = False
    batch_tokens: int | None = None
    """Padded tokens of a batch; None: 4,096 on a CPU, found by trial on an accelerator, from 65,536 on."""
    unit_tokens: int = UNIT_TOKENS
    row_group_tokens: int = ROW_GROUP_TOKENS
    accelerator: str | None = None
    """Accelerator of the machines that run the teacher, on engines that give each step its own machines (Dataflow):
    `type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver`."""
    min_ram: str | None = None
    """Memory of those machines, for instance `64GB`."""
    max_reject_fraction: float = 0.001
    prune: bool = False
    """Whether rows leave whose document is not in the corpus."""
    max_prune_fraction: float = 0.05
    """Of the cache's rows; above it the run is refused."""
    replace: bool = False
    """Whether the old rows leave of documents that stand in the corpus with the same id and other content."""
    retry_rejects: bool = False
    """Whether to try again what the teacher could not score before."""
    max_hours: float | None = None
    """After so long no new unit is begun, and what is finished is committed."""
    max_drift_kl: float = 0.005
    """Largest mean KL, in nats, between cache and teacher on another device or other library versions; of sigmoid and
    identity scores, the mean over texts of the largest difference of a logit."""
    workers: int = 1
    """Processes of this machine, each with a teacher of its own: worker i on `cuda:i`, or sharing the CPU's cores."""
    beam_options: tuple[str, ...] = ()
    """Flags for Beam, as behind `--` on the command line."""
    show_progress: bool = True

    def __post_init__(self) -> None:
        _refuse_unless(bool(self.cache), "cache", self.cache)
        _refuse_unless(self.unit_tokens >= 1, "unit_tokens", self.unit_tokens)
        _refuse_unless(self.row_group_tokens >= 1, "row_group_tokens", self.row_group_tokens)
        _refuse_unless(0 <= self.max_reject_fraction <= 1, "max_reject_fraction", self.max_reject_fraction)
        _refuse_unless(self.batch_tokens is None or self.batch_tokens >= 1, "batch_tokens", self.batch_tokens)
        enough = self.max_length is None or self.max_length >= 2
        _refuse_unless(enough, "max_length (2 tokens at least)", self.max_length)
        serve = all(MIN_TEMPERATURE <= t < math.inf for t in self.temperatures)
        _refuse_unless(serve, f"temperatures (from {MIN_TEMPERATURE:g} on)", self.temperatures)
        _refuse_unless(self.stride >= 0, "stride", self.stride)
        _refuse_unless(0 <= self.max_prune_fraction <= 1, "max_prune_fraction", self.max_prune_fraction)
        _refuse_unless(not self.replace or self.corpus.id_field is not None, "replace without id_field", True)
        _refuse_unless(self.max_hours is None or self.max_hours > 0, "max_hours", self.max_hours)
        _refuse_unless(self.max_drift_kl >= 0, "max_drift_kl", self.max_drift_kl)
        _refuse_unless(_matches(_ACCELERATOR, self.accelerator), "accelerator", self.accelerator)
        _refuse_unless(_matches(_RAM, self.min_ram), "min_ram", self.min_ram)
        _refuse_unless(self.workers >= 1, "workers", self.workers)
        self._check_generation()
        TASKS[self.teacher.task].settled(self.task_settings)
        both = (self.workers, self.teacher.device_map)
        _refuse_unless(self.workers == 1 or self.teacher.device_map is None, "workers, device_map", both)

    def _check_generation(self) -> None:
        corpus, generation = self.corpus, self.generation
        answered = corpus.is_answered or generation is not None
        _refuse_unless(answered, "prompt_field (without completion_field or --generate)", corpus.prompt_field)
        if generation is None:
            return
        _refuse_unless(TASKS[self.teacher.task].is_written, "generate (of this task)", self.teacher.task)
        _refuse_unless(corpus.target_field is None, "generate (beside target_field)", corpus.target_field)
        asks = bool(corpus.prompt_field or corpus.messages_field) or TASKS[self.teacher.task].has_source
        _refuse_unless(asks, "generate (without --prompt_field or --messages_field)", str(generation))
        _refuse_unless(
            corpus.completion_field is None, "generate (beside completion_field)", corpus.completion_field
        )
        _refuse_unless(self.stride == 0, "stride (a prompt is one window)", self.stride)
        room = self.max_length is None or generation.max_new_tokens < self.max_length
        _refuse_unless(room, "max_length (no more than --max_new_tokens)", self.max_length)


def _matches(pattern: re.Pattern[str], value: str | None) -> bool:
    return value is None or pattern.fullmatch(value) is not None


def _refuse_unless(condition: bool, field: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{field} cannot be {value!r}")
