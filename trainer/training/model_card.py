"""`README.md` beside a finished student: a model card as the Hugging Face hub has them, which says how to repeat it.

It is no part of the student's manifest, so that it may be edited: its last line is a hash of what stands above, and a
card whose text does not match it is somebody's own and stays. The licence is left open: it is the teacher's and the
corpus's to decide.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from schemas.cache import Cache
from schemas.errors import one_line
from schemas.printable import printable
from trainer.checkpoints.records import Record
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.settings import decide_weights

CARD_NAME = "README.md"
_SEAL = re.compile(rb"<!-- teachonce:(?P<hash>[0-9a-f]{64}) -->\n\Z")
LOOP = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
)
_OF_MACHINE = ("local_cache", "local_cache_gb", "memory_cache_gb")
_BY_PRESET = ("losses", "temperature", "feature_loss", "stages")
_log = logging.getLogger(__name__)


def save_card(
    config: TrainConfig,
    arguments: StudentArguments,
    cache: Cache,
    record: Record,
    history: list[dict[str, Any]],
) -> None:
    """Writes the card into the output folder, unless an edited one stands there; says so, and where it cannot."""
    folder = Path(str(arguments.output_dir))
    write_card(folder, card_text(config, arguments, cache, record, history))


def write_card(folder: Path, text: str) -> None:
    """Writes a card into a student's folder, unless an edited one stands there; says so, and where it cannot."""
    place = folder / CARD_NAME
    try:
        if place.exists() and not is_untouched(place.read_bytes()):
            _log.warning("%s is not as teachonce wrote it: it stays, and may tell of an earlier run", place)
            return
        place.write_bytes(sealed(text))
    except OSError as error:
        _log.warning("no model card was written: %s: %s", place, one_line(error))


def sealed(text: str) -> bytes:
    """The text with a hash of itself as its last line."""
    data = text.rstrip("\n").encode() + b"\n\n"
    return data + f"<!-- teachonce:{hashlib.sha256(data).hexdigest()} -->\n".encode()


def is_untouched(data: bytes) -> bool:
    """Whether a card is as `sealed` made it."""
    found = _SEAL.search(data)
    return found is not None and hashlib.sha256(data[: found.start()]).hexdigest() == found["hash"].decode()


def card_text(
    config: TrainConfig,
    arguments: StudentArguments,
    cache: Cache,
    record: Record,
    history: list[dict[str, Any]],
) -> str:
    """The card, with its metadata."""
    repeat = [*_beside(config), f"```bash\n{command(config, arguments)}\n```"]
    return card(Path(str(arguments.output_dir)).name, cache, record, history, repeat)


def card(
    name: str, cache: Cache, record: Record, history: list[dict[str, Any]], repeat: Sequence[str]
) -> str:
    """A student's card, of what decided its weights, what was measured, and how to repeat it."""
    library = "peft" if record.lora else "transformers"
    data = ModelCardData(library_name=library, tags=["distillation", "teachonce"])
    teacher = cache.header.teacher
    rows = {
        "teacher": f"{teacher.get('name', 'unnamed')} ({teacher.get('architecture', 'unknown')})",
        "task": cache.spec.task,
        "keep policy": cache.spec.to_json()["keep"],
        "fingerprint": cache.fingerprint.hash,
        **{
            f"cache {one['path']}": f"version {one['version']}, header {one['header_hash']}"
            for one in record.caches
        },
        "begun as": record.student,
        "losses": " ".join(f"{name}={weight:g}" for name, weight in record.losses.items()),
        "temperature": record.temperature,
        "held out": f"{record.eval_fraction:g} of the documents, by their hash",
        "run": record.run,
        **record.settings,
    }
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_cell(name)}",
        "A student that was distilled by `teachonce` from what its teacher said once, kept in a cache. Whose licence "
        "holds for it, teacher and corpus decide: none is named here.",
        _table(("", ""), rows),
        "## Measured on the held-out part",
        _metrics(history),
        "## How to repeat it",
        *repeat,
        "On the same release, with the same number of ranks. `teachonce evaluate --cache CACHE --student STUDENT` "
        "measures it.",
    ]
    return str(ModelCard("\n\n".join(parts)))


def command(config: TrainConfig, arguments: StudentArguments) -> str:
    """The call that trains this student again, into a folder of another name."""
    words = ["teachonce", "train"]
    left_out = ("allow_new_data", *_OF_MACHINE, *(_BY_PRESET if config.preset else ()))
    told = [(n, v) for n, v in changed(config) if n not in left_out]
    told += [(n, v) for n, v in changed(arguments) if n in {*LOOP, *deciding(arguments)}]
    for name, value in told:
        each = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(_word, each)]
    return printable(shlex.join([*words, "--output_dir", "again"]))


def _beside(config: TrainConfig) -> list[str]:
    """What the call cannot say; nothing of a run that a command line began."""
    told = [_cell(text) for text in config.own.told]
    return [f"From Python, with {'; with '.join(told)}, which the call cannot say:"] if told else []


def changed(values: Any) -> Iterator[tuple[str, Any]]:
    """Fields that are not as their defaults are."""
    for field in fields(values):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(values, field.name)
        if field.init and value not in (None, []) and value != default:
            yield field.name, value


def deciding(arguments: StudentArguments) -> tuple[str, ...]:
    """Settings of the loop that decide weights."""
    return tuple(decide_weights(arguments))


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(getattr(value, "value", value))


def _metrics(history: list[dict[str, Any]]) -> str:
    measured = [line for line in history if any(name.startswith("eval_") for name in line)]
    if not measured:
        return "Nothing was measured while it was trained."
    own = {n.removeprefix("eval_"): v for n, v in measured[-1].items() if n.startswith("eval_")}
    speeds = ("runtime", "samples_per_second", "steps_per_second")
    shown = {name: f"{value:.6g}" for name, value in own.items() if name not in speeds}
    return _table(("metric", f"after step {measured[-1].get('step', 0)}"), shown)


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())])


def _cell(value: Any) -> str:
    """Within one cell, and nothing that Markdown or HTML reads."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", printable(str(value)))
