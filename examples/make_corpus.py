"""Makes `corpus.jsonl.zst`, the demo's corpus: a few hundred pages of the PostgreSQL 15 documentation.

Why: the demo needs real English text that may be shipped. What it guarantees: the same package gives the
same bytes, and no page of the corpus shares a passage of 200 characters with any other page of the
documentation, so that what is held out is unseen by a teacher that was trained on all the rest.
What it costs: ten seconds on one core, no network.

The pages come from a Debian package, unpacked with no rights at all:

    apt-get download postgresql-doc-15 && dpkg-deb -x postgresql-doc-15_*.deb DIR
    python examples/make_corpus.py DIR
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import zstandard

from schemas.identity import document_hash, is_held_out

HELD_OUT_FRACTION = 0.05
PASSAGE_CHARS = 200
"""No passage as long as this may stand both in a page of the corpus and in another page."""
PAGE_CHARS = range(1_500, 12_001)
"""Pages shorter than this are tables of contents; longer ones would fill the held-out part alone."""

_PAGES = Path("usr/share/doc/postgresql-doc-15/html")
_NOT_PROSE = {"bookindex.html", "legalnotice.html"}
_NAVIGATION = re.compile(r'<div[^>]*class="nav(?:header|footer)".*?</div>', re.DOTALL)
_HEAD = re.compile(r"<head>.*?</head>", re.DOTALL)
_BLOCKS = frozenset(["p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd"])
_LINES = _BLOCKS | {"div", "table", "tr", "br", "pre", "hr"}


class _PageText(HTMLParser):
    """Collects a page's text: one line a block, blanks folded except inside `<pre>`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._pre_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._pre_depth += tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._pre_depth -= tag == "pre"
        self._break(tag)

    def handle_data(self, data: str) -> None:
        self.parts.append(data if self._pre_depth else re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        if tag in _LINES:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")


def page_text(html: str) -> str:
    """The text of one page, without navigation; lines carry no needless blanks, and none is empty."""
    parser = _PageText()
    parser.feed(_HEAD.sub("", _NAVIGATION.sub("", html)))
    parser.close()
    lines = (re.sub(r"\s+", " ", line).strip() for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


def read_pages(root: Path) -> dict[str, str]:
    """File name -> text of every page under an unpacked package, by name. Raises SystemExit if there is none."""
    files = sorted((root / _PAGES).glob("*.html"))
    if not files:
        raise SystemExit(
            f"no PostgreSQL pages: {root / _PAGES} holds no *.html. "
            "Unpack the Debian package postgresql-doc-15 into a folder and name it."
        )
    texts = ((file.name, page_text(file.read_text("utf-8"))) for file in files)
    return {name: text for name, text in texts if name not in _NOT_PROSE and text}


def passages(text: str, length: int, *, step: int) -> Iterator[str]:
    """The passages of `length` characters that begin at every `step`-th character of the folded text."""
    folded = " ".join(text.split())
    return (folded[i : i + length] for i in range(0, len(folded) - length + 1, step))


def distinct_pages(pages: Mapping[str, str], *, passage_chars: int = PASSAGE_CHARS) -> set[str]:
    """The names of the pages that share no passage of `passage_chars` characters with any other page.

    Every passage contains a block of half its length that begins at a multiple of that half. So the search
    for such blocks, which is quick, finds every shared passage (and drops a few pages that share less).
    """
    half = passage_chars // 2
    owner: dict[str, str] = {}
    shared: set[str] = set()
    for name, text in pages.items():
        for block in passages(text, half, step=half):
            if owner.setdefault(block, name) != name:
                shared |= {name, owner[block]}
    for name, text in pages.items():
        for passage in passages(text, half, step=1):
            if owner.get(passage, name) != name:
                shared |= {name, owner[passage]}
    return set(pages) - shared


def text_hash(text: str) -> bytes:
    """The hash by which the held-out split goes."""
    return document_hash({"text": text})


def held_out(text: str) -> bool:
    """Whether the demo holds this document out."""
    return is_held_out(text_hash(text), HELD_OUT_FRACTION)


def choose(pages: Mapping[str, str]) -> list[str]:
    """The texts of all distinct pages of middle length, by name."""
    return [pages[name] for name in sorted(distinct_pages(pages)) if len(pages[name]) in PAGE_CHARS]


def write_corpus(path: Path, texts: Sequence[str]) -> bytes:
    """Writes one JSON object a line, compressed; returns the bytes written."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    data = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(lines.encode("utf-8"))
    path.write_bytes(data)
    return data


def read_corpus(path: Path) -> list[str]:
    """The documents of a corpus that `write_corpus` wrote."""
    lines = zstandard.ZstdDecompressor().decompress(path.read_bytes()).decode("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def report(texts: Sequence[str], data: bytes) -> Iterator[str]:
    """What was made, for a person: counts, sizes and the hash that tells whether two runs agree."""
    apart = [text for text in texts if held_out(text)]
    yield f"documents {len(texts):,}, characters {sum(map(len, texts)):,}"
    yield f"held out  {len(apart):,}, characters {sum(map(len, apart)):,}"
    yield f"bytes {len(data):,}, sha256 {hashlib.sha256(data).hexdigest()}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Make the demo's corpus from the PostgreSQL documentation.")
    parser.add_argument("root", type=Path, help="folder into which postgresql-doc-15 was unpacked")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("corpus.jsonl.zst"))
    args = parser.parse_args(argv)
    texts = choose(read_pages(args.root))
    for line in report(texts, write_corpus(args.output, texts)):
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
