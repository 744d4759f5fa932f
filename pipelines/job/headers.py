"""The headers of tables, all of them, looked at before a run: what one does not name, none of its rows has.

It costs one open a file, and the first MiB of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.config import CorpusConfig
from pipelines.corpus.files import Piece, read_header
from pipelines.corpus.tables import TABLES
from schemas.errors import UsageError
from schemas.printable import printable

_FLAGS = (
    *("text", "text_pair", "target", "words", "passages", "image", "messages", "prompt", "completion"),
    *("label", "id"),
)
_NO_TEXTS = ("words", "image", "messages")
"""Whose fields hold no texts: no table can have them."""
_SHOWN = 30
"""Names of fields that a message lists."""


def fields_by_flag(corpus: CorpusConfig) -> Mapping[str, str]:
    """The fields that every document must have, by the flags that name them."""
    named = {f"--{flag}_field": getattr(corpus, f"{flag}_field") for flag in _FLAGS}
    return {flag: name for flag, name in named.items() if name in corpus.required_fields}


def check_headers(corpus: CorpusConfig, pieces: Sequence[Piece]) -> None:
    """Whether each table's header names the fields that are read.

    Raises:
        UsageError: one does not, or names none at all, or what is read cannot stand in a table.
        CorpusError: a file cannot be read.
    """
    needed = fields_by_flag(corpus)
    for piece in pieces:
        if piece.format not in TABLES:
            continue
        for flag in (f"--{kind}_field" for kind in _NO_TEXTS):
            if flag in needed:
                raise UsageError(
                    f"{flag}: a field of a table is text, and cannot be that",
                    where=printable(piece.path),
                    do="Write the corpus as JSONL or Parquet",
                )
        names = read_header(piece, corpus.max_line_bytes)
        for flag, name in needed.items():
            if name not in names:
                raise UsageError(
                    f"{flag} {printable(name)}: a table's header names no such field",
                    where=printable(piece.path),
                    expected="one of " + ", ".join(printable(one) for one in names[:_SHOWN]),
                    do=f"Say {flag} with one of them, or --format if this is none of {', '.join(TABLES)}",
                )
