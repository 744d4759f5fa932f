"""Writes `docs/models.md`: which model classes work. `python -m tests.architectures.table`, some minutes long."""

import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers

from schemas.errors import one_line
from tests.architectures.tiny_models import NAMES
from tests.architectures.trial import RESET, TASKS, Outcome, tried

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
INTRO = """# Models

What every language model class of transformers {version} comes to: made tiny and random, asked as a teacher, and cut to
a student of fewer layers. Written by `make models`; `make test` tries ten families of it, and CI all.

- **teacher**: *yes* says that every cached score of a few short texts, padded into one batch where that is safe, was
  compared with a float32 forward of the plain model, one text at a time: within the 1/32 nat that the codes cost, of
  ids with a probability above 1e-6. What is refused is refused when the teacher is opened, before anything is scored.
- **student**: *yes* says that `--student shrink:layers=N` of it was trained for a step, saved, and opened by plain
  transformers, whole and with the same logits{exceptions}. A refusal says what to do instead.
- *skipped* says why no tiny model of the class could be made here; it is not known to fail.

Encoders that are causal language models too were tried with `is_decoder` (`causal`) set in their configs.

Teachers of the other tasks are compared with plain forwards in the tests of these tasks, a few families each:
token-classification BERT, RoBERTa, DistilBERT; question-answering these and ELECTRA; pair-score BERT, RoBERTa,
DistilBERT; feature-extraction BERT, RoBERTa, MPNet, Llama; seq2seq-lm T5, BART, Marian, M2M100, mBART;
image-classification ViT, ConvNeXt, ResNet, MobileNetV2, and timm's ViT; image-feature-extraction the first four;
object-detection YOLOS, DETR, Table Transformer, Conditional DETR, Deformable DETR, RT-DETR, D-FINE.
"""
_HEAD = "| model type | class | teacher | student |\n|---|---|---|---|\n"
_ROW = re.compile(r"\| `([^`]+)` \| `[^`]+` \| (.*) \| (.*) \|")


def outcomes_of(page: str) -> dict[tuple[str, str], Outcome]:
    """What a page says of each task's model types."""
    found, task = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            task = line.removeprefix("## ").split(":")[0]
        elif row := _ROW.fullmatch(line):
            found[task, row[1]] = Outcome(*(_read(cell) for cell in row.groups()[1:]))
    return found


def page_of(found: dict[tuple[str, str], Outcome]) -> str:
    """The page that says this."""
    lost = "".join(
        f" (but for ids {ids} of `{name}`: transformers zeroes them)" for name, ids in RESET.items()
    )
    parts = [INTRO.format(version=transformers.__version__, exceptions=lost)]
    for task in TASKS:
        rows = {name: found[task, name] for name in NAMES[task]}
        parts.append(
            f"## {task}: {_counts(rows)}\n\n{_HEAD}{''.join(_row(task, *row) for row in rows.items())}"
        )
    return "\n".join(parts)


def _counts(rows: dict[str, Outcome]) -> str:
    sides = [Counter(outcome[side].split(":")[0] for outcome in rows.values()) for side in (0, 1)]
    teachers, students = (f"{side['yes']} work, {side['refused']} are refused" for side in sides)
    return f"{len(rows)} model types; as teachers {teachers}, {sides[0]['skipped']} skipped; as students {students}"


def _row(task: str, name: str, outcome: Outcome) -> str:
    return f"| `{name}` | `{NAMES[task][name]}` | {' | '.join(map(_written, outcome))} |\n"


def _written(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")


def _read(cell: str) -> str:
    return cell.replace("\\|", "|").replace("&lt;", "<")


def outcome(task: str, name: str) -> Outcome:
    """What a class comes to; also `fails: ...`, which is a fault of ours that a test finds too."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return tried(task, name, Path(folder)).outcome
    except Exception as error:  # noqa: BLE001  the other classes are tried all the same
        return Outcome(f"fails: {type(error).__name__}: {one_line(error)[:100]}", "-")


def try_all() -> dict[tuple[str, str], Outcome]:
    """Every class of every task, with a line to see that it goes on."""
    found = {}
    for task in TASKS:
        for name in NAMES[task]:
            found[task, name] = outcome(task, name)
            print(f"{task} {name}: {' / '.join(found[task, name])}", file=sys.stderr)
    return found


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # nothing here has to outlive a power failure
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    everything = try_all()
    PAGE.write_text(page_of(everything))
    sys.exit(any(found.teacher.startswith("fails") for found in everything.values()))
