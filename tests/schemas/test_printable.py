"""`printable`: nothing that a terminal obeys is left, and no ordinary text is touched."""

import sys
import unicodedata

import pytest

from schemas.printable import printable

HOSTILE = {
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "link": "\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\",
    "csi": "\x1b[2J\x1b[31m",
    "c1 csi": "\x9b31m",
    "overwrite": "real\rfake\x08\x08",
    "bidi": "a\u202eb\u2066c\u2069",
    "line ends": "a\nb\u2028c\x85d",
    "nothing to see": "a\u200bb\ufeff\U000e0041",
    "no utf-8": "a\udcff.jsonl",
}
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
ORDINARY = (
    "Grüße, naïve, plain \\ and [red]",
    "日本語 한국어 中文 ไทย",
    "नमस्ते \u200d \u200c",
    "👩\u200d👩\u200d👧 ❤️",
    "\u0600\u06dd\u0627 עברית",
)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_terminal_obeys_is_shown_as_an_escape(text):
    shown = printable(text)
    assert "\\" in shown
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text):
    assert printable(text) == text


def test_no_control_and_no_surrogate_is_left_of_all_of_unicode():
    shown = printable("".join(map(chr, range(sys.maxunicode + 1))))
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(char) for char in shown} & _TURNING


def test_escapes_read_as_python_writes_them():
    assert printable("\x1b\x9b\n\r\t\u202e\U000e0041\udcff") == r"\x1b\x9b\n\r\t\u202e\U000e0041\udcff"
