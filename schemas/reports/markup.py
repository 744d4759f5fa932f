"""HTML of texts that anybody may have written: every text goes through `shown`, and nothing else makes characters.

What a terminal would obey is an escape here too, so marks of direction turn nothing; `<bdi>` keeps letters that run
from right to left to themselves.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NewType

from schemas.printable import printable

Html = NewType("Html", str)


def shown(text: object) -> Html:
    """A text as HTML that shows it and does nothing else; for an attribute's value too."""
    return Html(html.escape(printable(str(text)), quote=True))


def foreign(text: object, classes: str = "") -> Html:
    """A text of a corpus, a path or a name: apart from what stands around it."""
    return element("bdi", shown(text), **({"class": classes} if classes else {}))


def element(tag: str, *inner: Html, **attributes: str) -> Html:
    """`<tag ...>inner</tag>`."""
    told = "".join(f' {name.replace("_", "-")}="{shown(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{told}>{''.join(inner)}</{tag}>")


def joined(parts: Iterable[Html]) -> Html:
    """One after the other."""
    return Html("\n".join(parts))


def table(names: Sequence[str], rows: Iterable[Sequence[Html]], **attributes: str) -> Html:
    """A table that scrolls by itself where it is too wide for the page."""
    head = element("tr", *(element("th", shown(name), scope="col") for name in names))
    body = joined(element("tr", *(element("td", cell) for cell in row)) for row in rows)
    inner = element("table", element("thead", head), element("tbody", body), **attributes)
    return element("div", inner, **{"class": "wide", "tabindex": "0"})


def pairs(rows: Iterable[tuple[str, str]]) -> Html:
    """Names and values."""
    inner = (
        part for name, value in rows for part in (element("dt", shown(name)), element("dd", foreign(value)))
    )
    return element("dl", *inner)


def data(name: str, value: Any) -> Html:
    """A value for a script, as JSON that no HTML parser finds a tag in; its texts as `shown` has them, for Vega makes
    expressions of titles, and what ends a line ends these too."""
    text = json.dumps(_printable(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Html(f'<script type="application/json" id="{shown(name)}">{text}</script>')


def _printable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {printable(str(name)): _printable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(one) for one in value]
    return printable(value) if isinstance(value, str) else value
