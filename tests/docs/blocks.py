"""The blocks of a page, what a page says of them, and how they are run or parsed.

A block in shell or Python is run, in a clean folder, page by page and in order (`tests/docs/test_blocks.py`), unless a
comment before it says otherwise:

    <!-- run by: tests/... -->   that test runs it
    <!-- parsed: why -->         its `teachonce` lines go through the command's own parsers, and Beam's, and no further
    <!-- not run: why -->        it holds nothing of ours

A command with `...` in it is abridged, and parsed. A line of `pip install` is looked up in setup.py and not run.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

import teachonce
from pipelines.engine.beam_options import parse_beam_options
from schemas import network

ROOT = Path(teachonce.__file__).parent
DOCS = ROOT / "docs"
SHELL = ("bash", "sh", "console", "shell")
EXTRAS = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
_FENCE = re.compile(
    r"(?:<!-- (run by|parsed|not run): ((?:(?!-->).)+?) -->\n)?^```([\w{}-]*)\n(.*?)^```$", re.M | re.S
)
_REST = {
    "precompute": ["--corpus", "c", "--teacher", "t", "--task", "causal-lm", "--cache", "c"],
    "train": ["--cache", "c", "--student", "s", "--output_dir", "o"],
}
"""What `...` stands for."""
_WITH_A_TEACHER = {"inspect": "pipelines.cli.inspect_flags", "verify": "pipelines.cli.run_flags"}
"""Verbs whose flags are others where a teacher is asked."""


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    mark: str
    why: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether it is run: a command that is abridged is not, and a line of pip is not either."""
        if self.mark or self.language == "python":
            return not self.mark
        calls = ours_in(self)
        return bool(calls) and not any("..." in words for words in calls)


def pages() -> list[Path]:
    """Every page that people read, without the decisions."""
    return [page for page in sorted(DOCS.rglob("*.md")) if not {"decisions", "_build"} & set(page.parts)]


def blocks_of(page: Path) -> list[Block]:
    """A page's blocks in shell or Python; one without a language is shell where it begins with a command of ours."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        mark, why, language, body = match.groups()
        language = "bash" if not language and body.startswith("teachonce ") else language
        line = text[: match.start(4)].count("\n")
        if language in SHELL or language == "python":
            found.append(Block(str(page.relative_to(ROOT)), line, language, body, mark or "", why or ""))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a block, a line each; comments and prompts are gone."""
    text = re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE).replace("\\\n", " ")
    parts = (part.strip() for line in text.splitlines() for part in re.split(r"&&", line))
    return [part for part in parts if part and not part.startswith("#")]


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def ours_in(block: Block) -> list[list[str]]:
    """Every call of `teachonce`, wherever on a line, up to where the shell goes on."""
    found = []
    for command in commands(block):
        start = re.search(r"(?<![\w/.-])teachonce (?=[a-z])", command)
        if start is not None and re.match(r"[a-z]+\b(?!:)", command[start.end() :]):
            words = words_of(command[start.start() :].rstrip(")\"'"))
            end = next((i for i, word in enumerate(words) if word in ("|", "||", ";", ">", "\\")), len(words))
            found.append(words[1:end])
    return found


def filled(words: list[str]) -> list[str]:
    """A call with what its `...` stands for."""
    if "..." not in words:
        return words
    at = words.index("...")
    rest = _REST[words[0]] if "--cache" not in words else _REST[words[0]][:-2]
    return [*words[:at], *rest, *words[at + 1 :]]


def parse(words: list[str]) -> None:
    """Refuses a call that the command's own parsers refuse; nothing is opened."""
    verb, *rest = filled(words)
    home = _WITH_A_TEACHER.get(verb) if "--teacher" in rest else None
    home = home or teachonce.VERBS[verb].flags
    if home is None:
        check_named(verb, rest)
        return
    nothing = re.compile("(?!)")  # a page's names need not be the hub's, nor the hub be asked
    with mock.patch.multiple(network, _NAME=nothing, HUB_SCHEME="nowhere://"):
        found = getattr(importlib.import_module(home), verb)(rest)
    if isinstance(found, tuple):
        parse_beam_options(found[1])


def check_named(verb: str, words: list[str]) -> None:
    """Every flag is one that the verb's help names."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        importlib.import_module(home_of(verb)).__dict__[verb](["--help"])
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= set(re.findall(r"--[\w-]+", told.getvalue())), (verb, words)


def home_of(verb: str) -> str:
    return teachonce.VERBS[verb].module


def check_pip(words: list[str]) -> None:
    """The extras that a page asks for are there."""
    asked = {extra for word in words for extra in re.findall(r"teachonce\[([\w,]+)\]", word)}
    assert {extra for one in asked for extra in one.split(",")} <= EXTRAS, words


def by_shell(command: str) -> None:
    """A line of the shell's own, such as a `printf` into a file."""
    subprocess.run(["bash", "-ec", command], check=True, capture_output=True, timeout=60)
