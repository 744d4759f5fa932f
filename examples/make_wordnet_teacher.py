"""Makes the WordNet example's teacher: all-MiniLM-L6-v2, fine-tuned to tell a gloss's class, one of 45.

Why: no classifier of that kind can be had from a package registry, and a teacher must not have seen what its students
are measured on. So it is made here, by a plain loop, from the glosses that the trainer will not hold out: the split
asks `schemas.identity` for each gloss, just as precompute and trainer do. It draws on all of WordNet, four times what
it takes, while its students get a corpus of `--glosses`: a teacher that has read more is what distillation is for.
What it guarantees: no held-out gloss, and no text that only reads like one (other case or spaces, another label), is
in the training part, checked before anything is trained; fixed seeds. What it costs: about four minutes on two quiet
cores.

    python benchmarks/assets.py data --only minilm
    python benchmarks/assets.py data --only wordnet
    python examples/make_wordnet_teacher.py --data data --out teacher

The embeddings stay as they are: they are half of the weights, learn little in so short a time, and would take a third
of it. Glosses are cut at 64 tokens, which one in two thousand reaches.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from transformers.utils import logging

from schemas.identity import document_hash, is_held_out

HERE = Path(__file__).resolve().parent
EVAL_FRACTION = 0.15
"""The share of glosses, by hash, that neither teacher nor students are trained on."""
GLOSSES, STEPS, SEED = 8_000, 1_600, 0
BATCH, RUN = 16, 64
"""Glosses of a batch, and batches whose glosses are sorted by length together."""
RATE, HEAD_RATE = 3e-4, 3e-3
"""Of the layers, and of pooler and classifier, which sentence embeddings never trained."""
MAX_TOKENS = 64


class Gloss(NamedTuple):
    """A document: a definition, and the lexicographer file that it stands in."""

    text: str
    label: str


class Split(NamedTuple):
    """The two sides of some glosses."""

    training: list[Gloss]
    held_out: list[Gloss]


class Accuracy(NamedTuple):
    """Of a model on the held-out side."""

    glosses: int
    accuracy: float


def read_glosses(path: Path) -> list[Gloss]:
    """Each text once, in the order of the file; texts that stand under two labels are left out."""
    alike: dict[str, list[Gloss]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for line in file:
            gloss = Gloss(**json.loads(line))
            alike[as_read(gloss.text)].append(gloss)
    return [found[0] for found in alike.values() if len({gloss.label for gloss in found}) == 1]


def as_read(text: str) -> str:
    """What the uncased tokenizer makes no difference within."""
    return " ".join(text.lower().split())


def class_names(glosses: Sequence[Gloss]) -> list[str]:
    """The classes, by name: a label's number is its place here."""
    return sorted({gloss.label for gloss in glosses})


def sample(glosses: Sequence[Gloss], count: int) -> list[Gloss]:
    """A random part; a larger one begins with the smaller."""
    shuffled = list(glosses)
    random.Random(SEED).shuffle(shuffled)
    return shuffled[:count]


def split(glosses: Sequence[Gloss], names: Sequence[str]) -> Split:
    """As the trainer splits, by the hash of a labelled document.

    Raises SystemExit if a text of the training side reads like one of the held-out side.
    """
    sides: tuple[list[Gloss], list[Gloss]] = ([], [])
    for gloss in glosses:
        digest = document_hash({"text": gloss.text}, label=names.index(gloss.label))
        sides[is_held_out(digest, EVAL_FRACTION)].append(gloss)
    shared = {as_read(g.text) for g in sides[0]} & {as_read(g.text) for g in sides[1]}
    if shared:
        raise SystemExit(f"held-out texts are in the training part too: {sorted(shared)[:3]}")
    return Split(*sides)


def open_minilm(folder: Path, names: Sequence[str]) -> tuple[Any, Any]:
    """MiniLM with a new head for the classes, and its tokenizer."""
    set_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type="single_label_classification",
        dtype=torch.float32,
    )
    model.base_model.embeddings.requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder)


def batches(glosses: Sequence[Gloss], steps: int) -> Iterator[list[Gloss]]:
    """`steps` batches, epoch after epoch: glosses of about one length, in an order of its own in each epoch."""
    chance, queue = random.Random(SEED), list[list[Gloss]]()
    for _ in range(steps):
        if not queue:
            order = list(glosses)
            chance.shuffle(order)
            runs = [sorted(run, key=lambda gloss: len(gloss.text)) for run in cut(order, BATCH * RUN)]
            queue = [batch for run in runs for batch in cut(run, BATCH)]
            chance.shuffle(queue)
        yield queue.pop()


def cut(glosses: list[Gloss], size: int) -> list[list[Gloss]]:
    return [glosses[start : start + size] for start in range(0, len(glosses), size)]


def logits(model: Any, tokenizer: Any, glosses: Sequence[Gloss]) -> Tensor:
    """What the model says of some glosses: float32 `[B, V]`."""
    texts = [gloss.text for gloss in glosses]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    found: Tensor = model(**inputs).logits
    return found


def labels(glosses: Sequence[Gloss], names: Sequence[str]) -> Tensor:
    return torch.tensor([names.index(gloss.label) for gloss in glosses])


def train(model: Any, tokenizer: Any, glosses: Sequence[Gloss], names: Sequence[str], steps: int) -> None:
    """Fine-tunes in place by AdamW; the rate warms up over a tenth of the steps, then falls to nothing."""
    head = [*model.base_model.pooler.parameters(), *model.classifier.parameters()]
    layers = list(model.base_model.encoder.parameters())
    groups = [{"params": layers, "lr": RATE}, {"params": head, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    model.train()
    recent, began = list[float](), time.monotonic()
    for step, batch in enumerate(batches(glosses, steps), start=1):
        loss = torch.nn.functional.cross_entropy(logits(model, tokenizer, batch), labels(batch, names))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*layers, *head], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent = [*recent[-199:], loss.item()]
        if step % 200 == 0 or step == steps:
            mean = sum(recent) / len(recent)
            print(f"step {step:5,}  loss {mean:.3f} nats  {time.monotonic() - began:5.0f} s", flush=True)


@torch.no_grad()
def measure(model: Any, tokenizer: Any, glosses: Sequence[Gloss], names: Sequence[str]) -> Accuracy:
    """How many glosses it files right."""
    model.eval()
    right = 0
    for batch in cut(sorted(glosses, key=lambda gloss: len(gloss.text)), BATCH):
        right += int((logits(model, tokenizer, batch).argmax(-1) == labels(batch, names)).sum())
    return Accuracy(len(glosses), right / max(1, len(glosses)))


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """A plain transformers folder; the tokenizer comes last, so that a folder which has it is whole."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def is_there(folder: Path) -> bool:
    """Whether a teacher was made there, to its end."""
    return (folder / "tokenizer.json").is_file()


def make_teacher(data: Path, folder: Path, count: int, steps: int) -> Accuracy:
    """Everything: read, split and check, train, save, and measure what was saved."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began = time.monotonic()
    glosses = read_glosses(data / "wordnet.jsonl")
    names = class_names(glosses)
    training = split(glosses, names).training
    held_out = split(sample(glosses, count), names).held_out
    print(f"glosses: {len(training):,} to train on, none of them held out; {len(held_out):,} to measure on")
    model, tokenizer = open_minilm(data / "minilm", names)
    train(model, tokenizer, training, names, steps)
    save(model, tokenizer, folder)
    saved = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    found = measure(saved, tokenizer, held_out, names)
    seconds = time.monotonic() - began
    print(f"held out: {found.glosses:,} glosses, accuracy {found.accuracy:.2%}; {seconds:.0f} s")
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What this script and the example that runs it share."""
    made = "made by benchmarks/assets.py (default: data)"
    parser.add_argument("--data", type=Path, default=HERE.parent / "data", metavar="DIR", help=made)
    corpus = f"of the students' corpus, on whose held-out part the teacher is measured ({GLOSSES:,})"
    parser.add_argument("--glosses", type=int, default=GLOSSES, metavar="N", help=corpus)
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"of the teacher ({STEPS})")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of torch (default: 2)")


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuses data that are not there, and numbers below 1; sets the threads."""
    for name, needed in (("minilm", "minilm/config.json"), ("wordnet", "wordnet.jsonl")):
        if not (arguments.data / needed).is_file():
            made = f"python benchmarks/assets.py {arguments.data} --only {name}"
            parser.error(f"--data: no {arguments.data / needed}. Make it: {made}")
    for name in ("glosses", "steps", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    torch.set_num_threads(arguments.threads)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    arguments = parser.parse_args(argv)
    check_flags(parser, arguments)
    make_teacher(arguments.data, arguments.out, arguments.glosses, arguments.steps)


if __name__ == "__main__":
    main()
