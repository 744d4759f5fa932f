"""What others got wrong (a disk, a pipe, a file) is one line and the documented status at every verb, no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import teachonce
from schemas.cache import Cache
from tests.synthetic import SPECS, make_cache
from tests.trainer.conftest import causal_cache, teacher_dir  # noqa: F401
from tests.trainer.tiny import make_llama


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("faults") / "c", SPECS["texts"], num_rows=60)


READERS = (
    ["inspect"],
    ["inspect", "--rows", "60"],
    ["inspect", "--rows", "60", "--json"],
    ["inspect", "--browse"],
)


def _run(line: list[str], **streams) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "teachonce", *line], stdin=subprocess.PIPE, stderr=subprocess.PIPE, **streams
    )


@pytest.mark.parametrize("line", READERS, ids=" ".join)
def test_a_pipe_that_nobody_reads_on_is_one_line(cache: Cache, line: list[str]) -> None:
    process = _run([line[0], cache.storage.root, *line[1:]], stdout=subprocess.PIPE)
    process.stdout.close()
    _, err = process.communicate(b"n\n" * 50)
    assert (process.returncode, err.count(b"\n")) == (1, 1)
    assert b"nobody reads the output any more" in err


@pytest.mark.parametrize("line", READERS, ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_line(cache: Cache, line: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        process = _run([line[0], cache.storage.root, *line[1:]], stdout=full)
        _, err = process.communicate(b"n\n" * 50)
    assert (process.returncode, err.count(b"\n")) == (1, 1)
    assert b"No space left on device" in err


def test_a_device_is_no_file_for_a_page(cache: Cache, tmp_path: Path, capsys) -> None:
    """A page takes its place by a rename: as root it would take the device's."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert teachonce.main(["report", cache.storage.root, "--out", str(pipe)]) == 2
    assert "--out must be a file" in capsys.readouterr().err
    assert pipe.is_fifo()


def _is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _bytes(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


FAULTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no JSON": ("config.json", _bytes(b"{")),
    "no UTF-8": ("config.json", _bytes(b"\xff\xfe{}")),
    "a list": ("config.json", _bytes(b"[1]")),
    "empty": ("config.json", _bytes(b"")),
    "an unknown model": ("config.json", _bytes(b'{"model_type": "no-such"}')),
    "numbers that cannot be": ("config.json", _bytes(b'{"model_type": "llama", "hidden_size": "x"}')),
    "a config that is a folder": ("config.json", _is_folder),
    "a tokenizer that is no JSON": ("tokenizer.json", _bytes(b"{")),
    "a tokenizer of other JSON": ("tokenizer.json", _bytes(b'{"model": 7}')),
    "a tokenizer that is a folder": ("tokenizer.json", _is_folder),
    "a tokenizer's config that is no UTF-8": ("tokenizer_config.json", _bytes(b"\xff\xfe")),
    "a tokenizer's config that is a list": ("tokenizer_config.json", _bytes(b"[1]")),
    "a generation config that is no JSON": ("generation_config.json", _bytes(b"{")),
    "a generation config that is a list": ("generation_config.json", _bytes(b"[1]")),
    "a generation config that is no UTF-8": ("generation_config.json", _bytes(b"\xff\xfe{}")),
    "a generation config that is a folder": ("generation_config.json", _is_folder),
    "weights cut short": ("model.safetensors", _cut),
    "weights that are noise": ("model.safetensors", _bytes(b"\xff" * 300)),
    "weights that are empty": ("model.safetensors", _bytes(b"")),
    "weights that are a folder": ("model.safetensors", _is_folder),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return Path(make_llama(tmp_path_factory.mktemp("faults") / "whole", seed=4))


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_student_whose_file_is_broken(causal_cache, whole, tmp_path, capsys, verb, fault) -> None:  # noqa: F811
    name, breaks = FAULTS[fault]
    folder = Path(shutil.copytree(whole, tmp_path / "student"))
    breaks(folder / name)
    more = (
        ["--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
        if verb == "train"
        else ["--device", "cpu"]
    )
    line = [verb, "--cache", causal_cache.storage.root, "--student", str(folder), *more]
    status = teachonce.main(line)
    err = capsys.readouterr().err
    told = [text for text in err.splitlines() if text.startswith(f"teachonce {verb}: ")]
    assert (status, len(told)) == (2, 1), err
    assert "nobody foresaw" not in err
    assert "Traceback" not in err
    assert str(folder) in told[0]
    with pytest.raises(Exception):  # noqa: B017, PT011  (whatever it was, it is shown where that is asked for)
        teachonce.main([*line, "--traceback"])
