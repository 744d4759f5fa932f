"""Nothing that a terminal obeys is printed by any verb, whatever texts, names, ids and arguments hold."""

import io
import json
import os
import re
import sys
import warnings
from dataclasses import replace

import pytest

import teachonce
from schemas import Cache
from schemas.cli.terminal import guarded_streams
from schemas.printable import OBEYED, printable
from tests import synthetic
from tests.pipelines import models
from tests.pipelines.helpers import write_jsonl
from tests.synthetic import SPECS, add, begin, random_rows

CLIPBOARD = "\x1b]52;c;cm0gLXJm\x07"
HOSTILE = f"{CLIPBOARD}\x1b]8;;http://x\x1b\\l\x9b31m\x1b[31mred\rover\b\b\u202etxt[red]x[/red][link=http://x]y[/link]\nz"
NAME = HOSTILE.replace("/", "|").replace("\\", "|")
"""As a file's name."""


class Screen(io.StringIO):
    """A terminal that takes colours, or a pipe."""

    encoding = "utf-8"

    def __init__(self, *, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture(params=["pipe", "terminal"])
def call(request, monkeypatch):
    """Runs a verb; its status and what reached stdout and stderr, which must hold nothing that is obeyed."""

    def run(*arguments):
        terminal = request.param == "terminal"
        monkeypatch.setenv("TERM", "xterm-256color")
        out, err = Screen(terminal=terminal), Screen(terminal=terminal)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        status = teachonce.main([str(argument) for argument in arguments])
        harmless(out.getvalue(), err.getvalue())
        return status, out.getvalue(), err.getvalue()

    return run


def harmless(out, err):
    left = re.sub(r"\x1b\[[0-9;]*m|\n", "", out) + re.sub(r"\x1b\[[KA]|[\r\n]", "", err)
    assert not OBEYED.findall(left), repr(left)
    for text in (out, err):
        assert "\x1b[31m" not in text
        assert "\x1b]" not in text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A cache whose texts, ids, label names, teacher, tokens, run and reject reasons are all hostile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "WORDS", (HOSTILE,))
        made = {}
        for name in ("texts", "classes"):
            folder = tmp_path_factory.mktemp("hostile") / name
            spec = SPECS[name]
            if spec.label_names:
                spec = replace(spec, label_names=tuple(f"{n}{HOSTILE}" for n in spec.label_names))
            rows = random_rows(spec, 6).rows
            vocabulary = {HOSTILE: 0, "b": 1}
            patch.setitem(synthetic.TOKENIZER["model"], "vocab", vocabulary)
            patch.setitem(
                synthetic.TOKENIZER_FILES, "tokenizer.json", json.dumps(synthetic.TOKENIZER).encode()
            )
            add(begin(folder, rows.spec), None, [rows], run=f"r{HOSTILE}", rejects={HOSTILE: 3})
            made[name] = folder
        return made


@pytest.mark.parametrize("name", ["texts", "classes"])
def test_what_a_cache_holds(hostile, call, name, tmp_path):
    status, out, _ = call("inspect", hostile[name], "--rows", "3")
    assert status == 0
    assert "]52;c;" in out.replace("\n", "")
    assert "[red]" in out
    status, out, _ = call("inspect", hostile[name], "--rows", "3", "--json")
    found = json.loads(out)
    assert (status, {row["text"] for row in found["rows"]} - {None}) == (0, {HOSTILE})
    assert found["rejects"] == {HOSTILE: 3}
    for flags in (["verify"], ["vacuum", "--older_than=0d"], ["export", "--out", tmp_path / NAME]):
        assert call(flags[0], hostile[name], *flags[1:])[0] == 0


def test_what_a_folder_holds(own_cache, call, tmp_path):
    root = os.fsencode(own_cache.storage.root)
    for name in (os.fsencode(NAME), b"no-utf8-\xff\x9b"):
        with open(os.path.join(root, name), "wb"):
            pass
    status, out, _ = call("vacuum", own_cache.storage.root, "--older_than", "0d")
    assert (status, "no-utf8-\\udcff" in out) == (0, True)
    assert printable(NAME) in out
    status, _, err = call("export", own_cache.storage.root, "--out", own_cache.storage.root)
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        *([verb, HOSTILE] for verb in teachonce.VERBS),
        *([verb, f"--{HOSTILE}={HOSTILE}"] for verb in teachonce.VERBS),
        ["inspect", "/nowhere", "--rows", HOSTILE],
        ["inspect", "s3://" + HOSTILE],
        ["inspect", "file://[" + HOSTILE],
        ["inspect", "no-utf8-\udcff"],
        ["vacuum", "/nowhere", f"--older_than={HOSTILE}"],
        ["forget", "/nowhere", f"--ids={HOSTILE}"],
        ["thin", "/nowhere", f"--keep={HOSTILE}", "--out=/nowhere/else"],
        [
            "precompute",
            f"--corpus={HOSTILE}",
            f"--teacher={HOSTILE}",
            "--task=causal-lm",
            f"--cache={HOSTILE}",
        ],
        ["train", f"--cache={HOSTILE}", f"--student={HOSTILE}", f"--output_dir={HOSTILE}", "--losses=kl=1"],
        ["evaluate", f"--cache={HOSTILE}", f"--student={HOSTILE}"],
    ],
    ids=repr,
)
def test_what_was_typed(call, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    assert status in (1, 2)
    assert (out, err.count("\n")) == ("", 1), err


def test_a_file_of_flags(call, tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text(json.dumps({HOSTILE: HOSTILE}))
    status, _, err = call("train", path)
    assert (status, err.count("\n")) == (2, 1)


def test_a_corpus_and_what_is_forgotten_of_it(tmp_path, call):
    """Texts, ids, fields and file names on their way through a run, its rejects, and `forget`."""
    records = [{"id": f"{i}{HOSTILE}", "text": f"{HOSTILE} {i} is what it says"} for i in range(4)]
    write_jsonl(tmp_path / f"{NAME}.jsonl", [*records, {"id": HOSTILE, "text": 7}, b"{" + HOSTILE.encode()])
    teacher = models.causal_teacher(tmp_path / "teacher")
    cache = tmp_path / "cache"
    flags = [f"--corpus={tmp_path}/*.jsonl", f"--teacher={teacher}", "--task=causal-lm", f"--cache={cache}"]
    flags += ["--id_field=id", "--keep_text", "--max_length=64", "--max_reject_fraction=1"]
    status, out, err = call("precompute", *flags)
    assert status == 0, err
    assert Cache.open(cache).totals.examples >= 4
    assert call("precompute", *flags, f"--text_field={HOSTILE}", "--max_reject_fraction=0.1")[0] in (1, 2, 3)
    status, out, _ = call("inspect", cache, "--rows", "4")
    assert (status, "]52;c;" in out.replace("\n", "")) == (0, True)
    ids = tmp_path / "ids.txt"
    ids.write_text(f"0{CLIPBOARD}\x1b[31m\u202e\n{CLIPBOARD}\n", encoding="utf-8")
    status, out, _ = call("forget", cache, "--ids", ids)
    assert (status, "kept out all the same: 2 ids" in out) == (0, True)


def test_what_libraries_write_of_themselves(monkeypatch):
    out, err = Screen(terminal=False), Screen(terminal=True)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with guarded_streams(), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning(UserWarning(HOSTILE), UserWarning, "x.py", 1)
        print(HOSTILE)
        print("\r\x1b[K 50%|", file=sys.stderr)
        sys.stdout.writelines([HOSTILE, "\udcff"])
    harmless(out.getvalue(), err.getvalue())
    assert sys.stdout is out
    assert "\r\x1b[K 50%|" in err.getvalue()
