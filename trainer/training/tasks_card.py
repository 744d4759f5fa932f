"""Model cards of a student of several tasks: in each task's folder, with the file that trains them all again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from schemas.cache import Cache
from schemas.printable import printable
from trainer.checkpoints.records import Record
from trainer.training.arguments import StudentArguments
from trainer.training.model_card import LOOP, card, changed, deciding, write_card
from trainer.training.tasks_config import OWN, TasksConfig

_LEFT_OUT = ("local_cache", "local_cache_gb", "memory_cache_gb", "allow_new_data")


def save_task_cards(
    config: TasksConfig,
    arguments: StudentArguments,
    caches: Mapping[str, Cache],
    records: Mapping[str, Record],
    history: list[dict[str, Any]],
) -> None:
    """Writes each task's card into its folder, unless an edited one stands there."""
    folder, repeat = Path(str(arguments.output_dir)), _repeat(config, arguments)
    for name, record in records.items():
        write_card(folder / name, card(name, caches[name], record, _own(history, name), repeat))


def _own(history: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """What was measured of one task, by the names that it would have alone."""
    start = f"eval_{task}_"
    found = []
    for line in history:
        own = {
            f"eval_{key.removeprefix(start)}": value for key, value in line.items() if key.startswith(start)
        }
        if own:
            found.append({"step": line.get("step", 0), **own})
    return found


def _repeat(config: TasksConfig, arguments: StudentArguments) -> list[str]:
    text = yaml.safe_dump(_file(config, arguments), sort_keys=False, allow_unicode=True)
    lines = "\n".join(map(printable, text.splitlines()))
    return [
        "With this file as `tasks.yaml`:",
        f"```yaml\n{lines}\n```",
        "```bash\nteachonce train --tasks tasks.yaml --output_dir again\n```",
    ]


def _file(config: TasksConfig, arguments: StudentArguments) -> dict[str, Any]:
    """The file of `--tasks` that asks for the same."""
    common = {name: value for name, value in changed(config.first) if name not in {*OWN, *_LEFT_OUT}}
    loop = {*LOOP, *deciding(arguments)}
    common |= {name: _plain(value) for name, value in changed(arguments) if name in loop}
    if config.uncertainty:
        common["uncertainty"] = True
    if config.shares is None and config.sampling != 1:
        common["sampling"] = config.sampling
    tasks = {}
    for name, one in config.tasks.items():
        tasks[name] = {key: _plain(value) for key, value in changed(one) if key in OWN}
        if config.shares is not None:
            tasks[name]["share"] = config.shares[name]
    return {**common, "tasks": tasks}


def _plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return getattr(value, "value", value)
