"""Whether an answer is the right one, by its words: exact match and F1, as the language's own scripts count them.

English and its like as SQuAD's script does (arXiv:1606.05250): lower case, without punctuation and articles, F1 of the
bags of words. Texts with Chinese characters or kana as CMRC 2018's does, which DRCD is measured with too
(arXiv:1810.07366): each such character is a word, no article goes, and F1 is of the longest stretch that both have.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

_MARKS = (
    "-:_*^/\\~`+=\uff0c\u3002\uff1a\uff1f\uff01\u201c\u201d\uff1b\u2019\u300a\u300b\u2026\u00b7\u3001"
    "\u300c\u300d\uff08\uff09\uff0d\uff5e\u300e\u300f"
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_HAN_OR_KANA = re.compile(
    "[\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_MARKS = str.maketrans("", "", _MARKS)


def by_characters(text: str) -> bool:
    """Whether a text is of a language that is written without blanks between words."""
    return _HAN_OR_KANA.search(text) is not None


def words(text: str) -> list[str]:
    """A text's words, as SQuAD's script has them."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def characters(text: str) -> list[str]:
    """A text's characters, where they are words, and its other words by blanks, without CMRC's punctuation."""
    return _HAN_OR_KANA.sub(lambda found: f" {found[0]} ", text.lower().translate(_NO_MARKS)).split()


def exact_match_and_f1(told: str, right: str, *, chinese: bool) -> tuple[float, float]:
    """Of an answer that was told, beside the right one; an empty text says that there is none."""
    ours, theirs = ((characters if chinese else words)(text) for text in (told, right))
    if not ours or not theirs:
        return (float(ours == theirs),) * 2
    shared = _longest(ours, theirs) if chinese else sum((Counter(ours) & Counter(theirs)).values())
    return float(ours == theirs), 2 * shared / (len(ours) + len(theirs))


def _longest(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How long the longest stretch is that stands in both."""
    return SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size
