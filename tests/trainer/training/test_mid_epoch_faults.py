"""A shard is damaged in mid-epoch: one error that names shard and row group, nothing bad is trained on or saved, and
when the shard is put right the same command comes to the undisturbed run's weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.cache import Cache
from tests.s3_server import S3
from tests.trainer.mid_epoch import Fault, check_resumes, interrupted, restore


def flip(path: Path) -> None:
    """A bit in the middle of each row group, and one in the footer."""
    data = bytearray(path.read_bytes())
    for place in (len(data) // 6, len(data) // 2, len(data) - 500):
        data[place] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    sibling = next(one for one in sorted(path.parent.glob("*.parquet")) if one != path)
    first, second = path.read_bytes(), sibling.read_bytes()
    path.write_bytes(second)
    sibling.write_bytes(first)


def replace_by_link(path: Path) -> None:
    """To the right bytes, elsewhere."""
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def replace_by_another_caches(path: Path) -> None:
    """A whole shard, sealed, of the same spec and nearly the same size."""
    shutil.copy(sorted((path.parents[1] / "other").glob("*.parquet"))[3], path)


ANYWHERE = {
    "gone": Path.unlink,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "grown": lambda path: path.write_bytes(b"PAR1" + path.read_bytes()),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "swapped with a sibling": swap,
    "another cache's": replace_by_another_caches,
    "text": lambda path: path.write_text("<html>sign in</html>" * 2000),
}
ON_A_DISK = {
    "a folder": lambda path: replace(path, Path.mkdir),
    "a link in a circle": lambda path: replace(path, lambda link: link.symlink_to(link.name)),
    "a link elsewhere": replace_by_link,
    "a pipe": lambda path: replace(path, os.mkfifo),
}
OF_A_FOOTER = {
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    **{
        name: {**ANYWHERE, **ON_A_DISK}[name]
        for name in ("gone", "flipped", "empty", "a folder", "another cache's")
    },
}


@pytest.mark.parametrize(
    ("damage", "footer"),
    [*((name, False) for name in (*ANYWHERE, *ON_A_DISK)), *((name, True) for name in OF_A_FOOTER)],
)
def test_a_shard_on_a_disk(
    good: Cache,
    whole: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: str,
    footer: bool,
) -> None:
    how = (OF_A_FOOTER if footer else {**ANYWHERE, **ON_A_DISK})[damage]
    with monkeypatch.context() as patch:
        fault = Fault(patch, root, tmp_path / "out", how, footer=footer)
        interrupted(str(root), tmp_path, whole, capfd, fault, names_shard=how is not swap)
    restore(root, good)
    check_resumes(str(root), tmp_path, whole)


@pytest.mark.parametrize("damage", ANYWHERE)
def test_a_shard_in_a_store(
    good: Cache,
    whole: Path,
    root: Path,
    s3: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    cache, how = "s3://bucket/cache", ANYWHERE[damage]
    with monkeypatch.context() as patch:
        fault = Fault(patch, root, tmp_path / "out", how)
        interrupted(cache, tmp_path, whole, capfd, fault, names_shard=how is not swap)
    restore(root, good)
    check_resumes(cache, tmp_path, whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_shard_that_may_not_be_read(
    good: Cache,
    whole: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        fault = Fault(patch, root, tmp_path / "out", lambda path: path.chmod(0))
        interrupted(str(root), tmp_path, whole, capfd, fault)
    restore(root, good)
    check_resumes(str(root), tmp_path, whole)
