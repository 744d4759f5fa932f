"""`inspect --browse`: the example that was asked for, by commands on stdin; and nothing of a corpus moves anything."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import numpy as np
import pytest

import teachonce
from schemas import Cache
from schemas.printable import OBEYED
from tests import synthetic
from tests.synthetic import SPECS, add, begin, make_cache, random_rows

ESCAPES = [
    "\x1b]52;c;cm0gLXJm\x07",  # the clipboard
    "\x1b]8;;http://x\x1b\\click\x1b]8;;\x1b\\",  # a link
    "\x1b[2J\x1b[1;1H",  # the screen
    "\x9b31mred",  # C1
    "a\rb\b\b\x7f",
    "\u202etxt.exe\u2066",  # the direction of text
    "\u2028\u2029\u0085",  # line ends
    "[red]x[/red][link=http://x]y[/link][/]",  # rich's markup
    ":smile: \\[b]",
    "\x00\ufeff\u200b",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    """24 examples in four row groups of two shards, with texts and ids of documents."""
    return make_cache(tmp_path_factory.mktemp("browse") / "c", SPECS["texts"])


@pytest.fixture
def browse(monkeypatch, capsys):
    """What is shown after commands, told as lines."""

    def run(path, *lines: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert teachonce.main(["inspect", str(path), "--browse"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def shown(out: str) -> list[str]:
    """Ids of the examples, in the order in which they were shown."""
    return re.findall(r"^example ([0-9a-f]{32})", out, re.MULTILINE)


def in_order(cache: Cache) -> list[tuple[str, str, float, str]]:
    """Of each example its id, its document's id, its mean entropy and its text, straight from the rows."""
    found = []
    for rows in cache.read_all():
        for index, name in enumerate(rows.example_ids):
            row = rows.take(np.array([index]))
            document = bytes(row.array("document_hash")[0]).hex()
            mean = float(np.mean(row.entropy())) if len(row.entropy()) else float("nan")
            found.append((name.hex(), document, mean, str(row.array("text")[0] or "")))
    return found


def test_one_after_the_other_and_by_number(cache, browse) -> None:
    ids = [one[0] for one in in_order(cache)]
    out = browse(cache.storage.root, "", "n", "p", "g 24", "n", "g 0", "g x", "nonsense", "g 2")
    assert shown(out) == [ids[0], ids[1], ids[2], ids[1], ids[23], ids[1]]
    for told in (
        "24 examples",
        "24 of 24",
        "no such example: expected 1 to 24, got 25",
        "got 0",
        "no such command",
    ):
        assert told in out
    assert "next example" in browse(cache.storage.root, "h", "q", "n")
    assert len(shown(browse(cache.storage.root, "q", "n"))) == 1


def test_what_is_shown_is_what_rows_shows(cache, browse, capsys) -> None:
    assert teachonce.main(["inspect", str(cache.storage.root), "--rows", "24"]) == 0
    tables = capsys.readouterr().out
    parts = re.split(r"^\d+ of 24\n", browse(cache.storage.root, *[""] * 23), flags=re.MULTILINE)[1:]
    assert len(parts) == 24
    whole = [part for part in parts if "┏" in part and "; m for more" not in part]
    assert len(whole) > 10
    assert not [part for part in whole if part not in tables]


def test_search_by_text_id_and_entropy(cache, browse) -> None:
    every = in_order(cache)
    ids = [one[0] for one in every]
    plain = [name for name, _, _, text in every[1:] if "plain" in text] + [every[0][0]] * (
        "plain" in every[0][3]
    )
    out = browse(cache.storage.root, "/ PLAIN", *["r"] * (len(plain) - 1))
    assert shown(out)[1:] == plain
    assert shown(browse(cache.storage.root, f"id {ids[7][:12]}", "r"))[1:] == [ids[7], ids[7]]
    documents = [document for _, document, _, _ in every]
    first = next(i for i in [*range(1, 24), 0] if documents[i].startswith(documents[5]))
    assert shown(browse(cache.storage.root, f"id {documents[5]}"))[1] == ids[first]
    assert "document_id: plain" in browse(cache.storage.root, "id plai").split("\n2 of 24")[-1]
    means = [one[2] for one in every]
    bound = sorted(mean for mean in means if mean == mean)[-3]
    above = [ids[i] for i in [*range(1, 24), 0] if means[i] > bound]
    assert shown(browse(cache.storage.root, f"e > {bound!r}", *["r"] * (len(above) - 1)))[1:] == above
    below = next(ids[i] for i in [*range(1, 24), 0] if means[i] < bound)
    assert shown(browse(cache.storage.root, f"e<{bound!r}"))[1] == below
    out = browse(cache.storage.root, "/ nowhere at all", "e > 99", "e > x", "r")
    assert out.count("no example is so") == 3
    assert "no entropy" in out


def test_a_long_example_is_shown_in_parts(tmp_path, browse, monkeypatch) -> None:
    monkeypatch.setattr("schemas.cli.browse._POSITIONS", 6)
    cache = make_cache(tmp_path / "c", synthetic.causal_spec(), num_rows=8)
    sizes = [len(row.position_index()) for row in _rows(cache)]
    longest = int(np.argmax(sizes))
    assert sizes[longest] > 6
    out = browse(cache.storage.root, f"g {longest + 1}", "m")
    assert f"positions 1 to 6 of {sizes[longest]}" in out
    first, more = out.split(f"\n{longest + 1} of 8\n")[1:]
    rows = [len(re.findall(r"^│ +\d+ │", part, re.MULTILINE)) for part in (first, more)]
    assert rows == [6, min(6, sizes[longest] - 6)]


def _rows(cache: Cache):
    for rows in cache.read_all():
        yield from (rows.take(np.array([index])) for index in range(len(rows)))


def test_flags_without_effect_and_an_empty_stdin(cache, browse, capsys) -> None:
    for flag in (["--json"], ["--rows", "2"]):
        assert teachonce.main(["inspect", str(cache.storage.root), "--browse", *flag]) == 2
        assert "no effect with --browse" in capsys.readouterr().err
    assert len(shown(browse(cache.storage.root))) == 1


def test_a_cache_without_entropies_says_so(tmp_path, browse) -> None:
    spec = synthetic.class_spec(score="sigmoid")
    assert "keeps no entropies" in browse(make_cache(tmp_path / "c", spec).storage.root, "e > 1")


@pytest.mark.parametrize("text", ESCAPES)
@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_of_a_corpus_moves_anything(tmp_path, monkeypatch, browse, text: str, terminal: bool) -> None:
    """In texts, ids of documents, tokens of the vocabulary and commands; also where colours are taken."""
    monkeypatch.setattr(synthetic, "WORDS", (text,))
    monkeypatch.setitem(synthetic.TOKENIZER["model"], "vocab", {text: 0, "b": 1})
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    rows = random_rows(SPECS["texts"], 4).rows
    folder = tmp_path / "c"
    add(begin(folder, rows.spec), None, [rows])
    out = browse(folder, "", f"/ {text}", f"id {text}", text, f"g {text}", "m")
    left = re.sub(r"\x1b\[[0-9;]*m|\n", "", out) if terminal else out.replace("\n", "")
    assert not OBEYED.findall(left)
    assert "\x1b[31m" not in out
    assert "\x1b]" not in out
    if text.startswith(("[", ":")):
        assert text in out.replace("\\\\", "\\")


def test_commands_that_are_no_utf8_end_nothing(cache) -> None:
    """In a process of its own: bytes on a pipe."""
    line = [sys.executable, "-m", "teachonce", "inspect", str(cache.storage.root), "--browse"]
    done = subprocess.run(line, input=b"/ \xff\xfe\nn\n", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"no example is so" in done.stdout
    assert len(shown(done.stdout.decode())) == 2
