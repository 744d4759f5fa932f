"""A store that answers wrongly in mid-epoch: what it does once or twice changes nothing, to the last bit; what it does
for ever ends the run with one error, after which the same command comes to the undisturbed run's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.s3_server import S3, Asked, Reply
from tests.trainer.commanding import train
from tests.trainer.mid_epoch import TOLD, Fault, check_resumes, interrupted
from tests.trainer.outputs import same

CACHE = "s3://bucket/cache"
Answer = Callable[[Asked, Reply], Reply]


def page(_: Asked, right: Reply) -> Reply:
    return Reply(200, b"<html>sign in</html>", {"Content-Type": "text/html"})


def page_as_range(_: Asked, right: Reply) -> Reply:
    return right._replace(body=b"<html>sign in</html>" * 10)


def short(_: Asked, right: Reply) -> Reply:
    return right._replace(body=right.body[:50])


def long(_: Asked, right: Reply) -> Reply:
    return right._replace(body=right.body + b"more")


def broken_off(_: Asked, right: Reply) -> Reply:
    return right._replace(body=right.body[:50], told_bytes=len(right.body))


def other_range(asked: Asked, right: Reply) -> Reply:
    moved = f"bytes {asked.start + 1}-{asked.end}/{asked.end + 9}"
    return right._replace(headers={**right.headers, "Content-Range": moved})


def other_bytes(_: Asked, right: Reply) -> Reply:
    """As long, and said to be the range that was asked for."""
    return right._replace(body=right.body[::-1])


def without_range(_: Asked, right: Reply) -> Reply:
    return Reply(200, right.body)


def status(number: int) -> Answer:
    return lambda asked, right: Reply(number, b"<Error><Code>Wrong</Code></Error>")


WRONG = (page, page_as_range, short, long, broken_off, other_range, other_bytes, without_range)
ANSWERS: dict[str, Answer] = {answer.__name__: answer for answer in WRONG}
ANSWERS |= {f"status {number}": status(number) for number in (404, 429, 500, 503)}
FOR_EVER = {**ANSWERS, "status 403": status(403)}


def disturbed(s3: S3, answer: Answer, times: float) -> Callable[[Path], None]:
    """From now on the store answers so, at most so many times to each read of that shard."""

    def begin(path: Path) -> None:
        given: dict[int, int] = {}  # by where the read ends: a body that broke off is asked for from there on

        def instead(asked: Asked, right: Reply) -> Reply | None:
            if path.name not in asked.name:
                return None
            given[asked.end] = given.get(asked.end, 0) + 1
            return answer(asked, right) if given[asked.end] <= times else None

        s3.instead = instead

    return begin


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_store_that_fails_twice(
    whole: Path, root: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    with monkeypatch.context() as patch:
        fault = Fault(patch, root, tmp_path / "out", disturbed(s3, ANSWERS[answer], 2))
        assert train(CACHE, tmp_path, "out", **TOLD) == 0
    assert fault.name
    assert same(tmp_path / "out", whole)


@pytest.mark.parametrize("answer", FOR_EVER)
def test_a_store_that_fails_for_ever(
    whole: Path,
    root: Path,
    s3: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    answer: str,
) -> None:
    with monkeypatch.context() as patch:
        fault = Fault(patch, root, tmp_path / "out", disturbed(s3, FOR_EVER[answer], float("inf")))
        interrupted(CACHE, tmp_path, whole, capfd, fault)
    s3.instead = lambda asked, right: None
    check_resumes(CACHE, tmp_path, whole)


def test_a_store_that_is_slow(whole: Path, s3: S3, tmp_path: Path) -> None:
    s3.instead = lambda asked, right: right._replace(pieces=4)
    assert train(CACHE, tmp_path, "out", **TOLD) == 0
    assert same(tmp_path / "out", whole)


@pytest.mark.parametrize("damage", ["flipped", "cut short", "gone"])
def test_local_copies_that_are_damaged_in_mid_epoch(
    whole: Path, root: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """They are fetched anew, and the weights are those of the undisturbed run, whose steps reach an epoch's end."""
    copies = tmp_path / "copies"
    told = {**TOLD, "num_train_epochs": 2, "max_steps": 40}
    assert train(str(root), tmp_path, "right", **told) == 0

    def damage_all(_: Path) -> None:
        kept = sorted(copies.iterdir())
        assert len(kept) > 30
        for path in kept:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data[:-1] if damage == "cut short" else data)
            if damage == "gone":
                path.unlink()

    with monkeypatch.context() as patch:
        fault = Fault(patch, root, tmp_path / "out", damage_all, reads=75)
        kept = ("--local_cache", str(copies), "--memory_cache_gb", "0")  # so that the second epoch reads them
        assert train(CACHE, tmp_path, "out", *kept, **told) == 0
    assert fault.name
    assert same(tmp_path / "out", tmp_path / "right")


def test_a_store_that_fails_while_the_copies_are_damaged(
    whole: Path,
    root: Path,
    s3: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A copy is no better than the store: what neither has is an error, and the next run asks again."""
    copies = tmp_path / "copies"

    def damage(path: Path) -> None:
        disturbed(s3, other_bytes, float("inf"))(path)
        for copy in copies.glob(f"{path.name}.*"):
            copy.write_bytes(copy.read_bytes()[::-1])

    told = ("--local_cache", str(copies))
    with monkeypatch.context() as patch:
        fault = Fault(patch, root, tmp_path / "out", damage)
        interrupted(CACHE, tmp_path, whole, capfd, fault, *told)
    s3.instead = lambda asked, right: None
    check_resumes(CACHE, tmp_path, whole, *told)
