"""The README in Chinese is kept equal to the English one where a test can tell: code, sections, what is named."""

import re

from tests.docs.blocks import ROOT, blocks_of

ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh.md"))
_NAMED = re.compile(r"`([^`\n]+)`")


def read(page):
    return page.read_text(encoding="utf-8")


def code(page):
    return re.findall(r"^```.*?^```$", read(page), re.MULTILINE | re.DOTALL)


def prose(page):
    return re.sub(r"(?ms)^```.*?^```$", "", read(page))


def test_code_blocks_are_equal():
    assert code(CHINESE) == code(ENGLISH)
    assert len(code(ENGLISH)) == 4
    assert [(b.language, b.mark, b.why) for b in blocks_of(CHINESE)] == [
        (b.language, b.mark, b.why) for b in blocks_of(ENGLISH)
    ]


def test_sections_and_points_are_as_many():
    for pattern in (r"^## ", r"^- "):
        assert len(re.findall(pattern, prose(CHINESE), re.MULTILINE)) == len(
            re.findall(pattern, prose(ENGLISH), re.MULTILINE)
        )


def test_flags_files_and_numbers_are_the_same():
    assert set(_NAMED.findall(prose(CHINESE))) == set(_NAMED.findall(prose(ENGLISH)))


def test_each_links_to_the_other():
    assert "](README.zh.md)" in read(ENGLISH)
    assert "](README.md)" in read(CHINESE)
    assert sum("\u4e00" <= letter <= "\u9fff" for letter in read(CHINESE)) > 800
