"""Every block of shell or Python in README and docs: run, or parsed, or marked in its page with the reason.

Pages run on small models and a few texts, in this process, with two steps of training; all else is as it is written.
"""

import io
import re
import sys

import pytest
import torch
import transformers

import teachonce
from tests.docs import blocks, inputs
from tests.pipelines.remembered import remember

torch.set_num_threads(1)
PAGES = [blocks.ROOT / "README.md", *blocks.pages()]
BLOCKS = [block for page in PAGES for block in blocks.blocks_of(page)]
PARSED = [block for block in BLOCKS if block.language != "python" and not block.is_run]

SMALL = {
    "precompute": ["--no_progress"],
    "plan": ["--no_progress"],
    "train": ["--use_cpu", "--max_steps", "2", "--report_to", "none"],
    "evaluate": ["--speed_seconds", "0", "--eval_fraction", "0.3"],
}
"""What is added to a command, so that it takes seconds."""
SMALLER = {
    "layers=6": "layers=1",
    "layers=3": "layers=1",
    "--trials 40 --parallel 4": "--trials 2 --parallel 2",
    "hidden_states[6]": "hidden_states[2]",
    "max_steps=50": "max_steps=2",
    "max_length=128": "max_length=24",
}
"""What is written in another way for small models."""


@pytest.fixture(scope="module", autouse=True)
def _beam_asks_itself_once():
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield


def small(text):
    for written, less in SMALLER.items():
        text = text.replace(written, less)
    return text


def call(words, capsys):
    """One of our commands, as the shell would call it."""
    own = words[: words.index("--")] if "--" in words else words
    status = teachonce.main([*own, *SMALL.get(words[0], []), *words[len(own) :]])
    out, err = capsys.readouterr()
    assert (status, bool(out)) == (0, True), f"{words}: {err}"


def run_command(command, capsys):
    words = blocks.words_of(command)
    if words[0] == "teachonce":
        call(words[1:], capsys)
    elif words[:2] == ["pip", "install"]:
        blocks.check_pip(words)
    else:
        assert words[0] in ("printf", "cp"), f"{command}: neither ours nor marked in its page"
        blocks.by_shell(command)


def names_of(here):
    """What a page's Python takes for granted: a teacher's body, and its tokens of a text."""
    if not (here / "probe").exists():
        return {}
    tokens = transformers.AutoTokenizer.from_pretrained(here / "teacher")(["a new text"], return_tensors="pt")
    return {"body": transformers.AutoModel.from_pretrained(here / "teacher"), "tokens": tokens}


def run_block(block, here, capsys):
    if block.language == "python":
        exec(compile(small(block.text), block.name, "exec"), {"__name__": block.name, **names_of(here)})
        return
    for command in blocks.commands(block):
        run_command(small(command), capsys)


@pytest.mark.parametrize("page", inputs.PAGES)
def test_a_page_runs(tmp_path, monkeypatch, capsys, page):
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody types
    here = None
    for number, block in enumerate(blocks.blocks_of(blocks.ROOT / page)):
        begins = inputs.PAGES[page][number] if number < len(inputs.PAGES[page]) else None
        if begins is not None:
            here = tmp_path / f"{number}"
            here.mkdir()
            monkeypatch.chdir(here)
            begins(here)
            for command in (
                (here / "before.sh").read_text().splitlines() if (here / "before.sh").exists() else ()
            ):
                run_command(command, capsys)
        if block.is_run:
            assert here is not None, f"{block.name}: tests/docs/inputs.py says of no folder for it"
            run_block(block, here, capsys)


@pytest.mark.parametrize("block", PARSED, ids=lambda block: block.name)
def test_what_is_not_run_is_parsed(block):
    for words in blocks.ours_in(block):
        blocks.parse(words)
    for command in blocks.commands(block):
        if command.startswith("pip install"):
            blocks.check_pip(blocks.words_of(command))


def test_every_block_is_run_or_says_why_not():
    run = {block.name for block in BLOCKS if block.is_run and block.page in inputs.PAGES}
    assert [block.name for block in BLOCKS if block.is_run and block.name not in run] == []
    assert len(run) > 25
    for block in BLOCKS:
        if block.mark:
            assert len(block.why.split()) >= (1 if block.mark == "run by" else 3), block.name
        if block.mark == "run by":
            (test,) = re.findall(r"tests/[\w/]+\.py", block.why)
            source = (blocks.ROOT / test).read_text(encoding="utf-8")
            assert re.search(rf"{re.escape(block.page.rpartition('/')[2])}", source), (
                f"{test} does not read it"
            )


def test_a_wrong_block_is_seen():
    """Marks, abridged commands and languages are told apart; a flag that is none is refused."""
    shown = "```bash\nteachonce plan ... --keeep all\n```"
    (match,) = blocks._FENCE.finditer(f"<!-- parsed: a cloud -->\n{shown}\n")
    assert match.groups()[:3] == ("parsed", "a cloud", "bash")
    block = blocks.Block("page", 1, "bash", "teachonce train ... --losses kl=1\n", "", "")
    assert not block.is_run
    assert blocks.ours_in(block) == [["train", "...", "--losses", "kl=1"]]
    with pytest.raises(Exception, match="--keeep"):
        blocks.parse(["precompute", "...", "--keeep", "all"])
    with pytest.raises(AssertionError):
        blocks.parse(["verify", "cache", "--repare"])
    with pytest.raises(AssertionError):
        blocks.check_pip(["teachonce[trainer,lore]"])
