"""What comes from a text, a name or another library, as characters that a terminal only prints.

A corpus, a cache and a path may hold what a terminal obeys: escape sequences that set the clipboard, hide a link or
overwrite a line; controls of the C1 range, which some terminals take for the same; marks that turn the direction of
what follows. Each is shown as an escape, as Python's `repr` would. So are characters without a picture that hide in a
name (U+200B, U+FEFF, tags), and the lone surrogates that stand for a file name's bytes which are no UTF-8. Text in any
script stays as it is, with the joiners that scripts and emoji need (U+200C, U+200D).

Everything that people are shown goes through `printable` at the door that prints it. Doing it twice changes nothing.
"""

from __future__ import annotations

import re

OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the direction of text
    "\u2028\u2029"  # line ends of their own
    "\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # without a picture
    "\ud800-\udfff]"  # surrogates: no character
)
"""One character that is not shown as it is."""


def printable(text: str) -> str:
    """The text with controls, marks of direction and lone surrogates as `\\n`, `\\x1b`, `\\u202e`."""
    return OBEYED.sub(escape, text)


def escape(match: re.Match[str]) -> str:
    """What stands for a match of `OBEYED`."""
    return match[0].encode("unicode_escape", "surrogatepass").decode()
