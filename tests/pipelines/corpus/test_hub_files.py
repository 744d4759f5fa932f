"""Data sets of the hub as a corpus: the hub's own client against a hub on this machine, and none at all."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from pipelines.config import CorpusConfig
from pipelines.corpus import files, hub_files
from pipelines.fingerprint.hub_names import locate
from schemas import Cache
from schemas.errors import CorpusError, UsageError
from tests import hub_server
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents, write_jsonl

SET = "hf://datasets/people/texts"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    write_jsonl(folder / "data" / "a.jsonl", documents(6))
    pq.write_table(pa.table({"text": ["one two", "three"], "other": [1, 2]}), folder / "data" / "b.parquet")
    (folder / "data" / "c.csv.gz").write_bytes(gzip.compress(b"text,n\nfour five,1\n"))
    (folder / "README.md").write_text("# Texts")
    with hub_server.serving(folder) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        place = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + place)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield served


def found(*patterns):
    return files.find_pieces(CorpusConfig(files=patterns))


def texts(pieces):
    values = [record.value for piece in pieces for record in files.read_piece(piece, ["text"])]
    return [(json.loads(value) if isinstance(value, bytes) else value)["text"] for value in values]


def test_files_are_listed_at_their_commit_and_read(hub):
    at = f"{SET}@{hub_server.COMMIT}/data"
    expected = [f"{at}/a.jsonl", f"{at}/b.parquet", f"{at}/c.csv.gz"]
    assert [piece.path for piece in found(f"{SET}/data/*")] == expected
    with pytest.raises(UsageError, match=r"name tells no format: .*README\.md"):
        found(f"{SET}/**")


@pytest.mark.parametrize("pattern", ["data/*", "data/[abc].*", "**/?.*"])
def test_every_format_is_read(hub, pattern):
    expected = [d["text"] for d in documents(6)] + ["one two", "three", "four five"]
    assert texts(found(f"{SET}/{pattern}")) == expected
    assert texts(found(f"{SET}@main/{pattern}")) == expected


def test_a_file_of_many_blocks_and_pieces_is_read_once(hub, monkeypatch):
    monkeypatch.setattr(hub_files, "_BLOCK_BYTES", 700)
    monkeypatch.setattr(files, "PIECE_BYTES", 1000)
    many = [{"text": f"{i} " * (i % 40 + 1)} for i in range(200)]
    write_jsonl(hub.folder / "many.jsonl", many)
    pieces = found(f"{SET}/many.jsonl")
    assert len(pieces) > 5
    assert texts(pieces) == [record["text"] for record in many]


WRONG = {
    f"{SET}/*.csv": "at its top are README.md, data",
    f"{SET}/none.jsonl": "at its top are README.md, data",
    f"{SET}@v9/*": "revision not found",
    "hf://datasets/people/others/*": "repository not found",
    "hf://datasets/pe ople/texts/*": "cannot be listed",
    SET: "expected hf://datasets/OWNER/NAME",
    "hf://people/texts/*": "expected hf://datasets/OWNER/NAME",
    "hf://": "expected hf://datasets/OWNER/NAME",
}


@pytest.mark.parametrize("pattern", WRONG)
def test_a_wrong_name_is_one_line(hub, pattern):
    with pytest.raises(UsageError, match="--corpus") as told:
        found(pattern)
    assert WRONG[pattern] in str(told.value)
    assert "\n" not in str(told.value)


def test_a_private_set_needs_its_token(hub, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(UsageError, match="not public needs HF_TOKEN"):
        found(f"{SET}/data/*")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert len(texts(found(f"{SET}/data/*"))) == 9


@pytest.mark.parametrize(
    ("answer", "words"),
    [((200, b"x" * 5000), "5000 came"), ((206, b"short"), "5 came"), ((403, b""), "403")],
)
def test_a_hub_that_gives_something_else_is_an_error(hub, answer, words):
    """Blocks are asked for: a server that answers with the whole file would double its beginning."""
    pieces = found(f"{SET}/data/a.jsonl")
    hub.instead = lambda name: answer
    with pytest.raises(CorpusError, match=words) as told:
        texts(pieces)
    assert pieces[0].path in str(told.value)


def test_a_hub_that_ends_between_listing_and_reading_is_an_error(hub, monkeypatch):
    pieces = found(f"{SET}/data/a.jsonl")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # the client tries again
    with pytest.raises(CorpusError, match="cannot be read"):
        texts(pieces)


def test_a_download_tells_how_far_it_is(hub, monkeypatch, tmp_path, capsys):
    """Where there is no terminal a line a minute, here a hundredth of a second."""
    (hub.folder / "model.safetensors").write_bytes(b"x" * 20_000_000)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "models"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "models"))
    monkeypatch.setattr("schemas.cli.progress._PLAIN_SECONDS", 0.01)
    hub.instead = lambda name: time.sleep(0.3)  # before each file
    disable_progress_bars()
    try:
        folder, name = locate("people/texts@main")
    finally:
        enable_progress_bars()
    assert name == f"people/texts@{hub_server.COMMIT}"
    assert (Path(folder) / "model.safetensors").stat().st_size == 20_000_000
    assert re.fullmatch(r"(\S+ download people/texts: 0\.0\d GB\n)+", capsys.readouterr().err)


def _command(hub_url, *arguments, **environment):
    given = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run(
        [sys.executable, "-m", "teachonce", *map(str, arguments)],
        env=given | {"HF_ENDPOINT": hub_url} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_cache_of_a_set_of_the_hub_is_that_of_its_files(hub, tmp_path):
    """The real command on the hub, twice; and its folder's."""
    teacher = models.causal_teacher(tmp_path / "teacher")
    line = ["precompute", "--teacher", teacher, "--task=causal-lm", "--max_length=24", "--no_progress"]
    status, said = teachonce_main(*line, f"--cache={tmp_path / 'b'}", f"--corpus={hub.folder}/data/*")
    assert status == 0, said
    for _ in range(2):
        done = _command(hub.url, *line, f"--cache={tmp_path / 'a'}", f"--corpus={SET}/data/*")
        assert (done.returncode, done.stderr) == (0, "")
    assert "nothing new: 9 documents, all known" in done.stdout.replace("\n", " ")
    one, other = (Cache.open(tmp_path / name) for name in "ab")
    assert one.version == 0
    assert one.totals == other.totals
    assert [shard.name[:32] for shard in one.shards] == [
        shard.name[:32] for shard in other.shards
    ]  # their units


@pytest.mark.parametrize("verb", ["precompute", "plan", "inspect"])
@pytest.mark.parametrize(
    ("environment", "words"),
    [({}, "no network: 127.0.0.1: Connection refused"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_without_a_network_it_is_told_in_seconds(tmp_path, verb, environment, words):
    line = [verb, "--corpus", f"{SET}/*.parquet", "--teacher", tmp_path]
    line += [] if verb == "inspect" else ["--task", "causal-lm", "--cache", tmp_path / "cache"]
    begin = time.monotonic()
    done = _command("http://127.0.0.1:9", *line, **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert words in done.stderr
    assert "hf download" in done.stderr
    assert time.monotonic() - begin < 10
