"""The file of ids that `forget` is given: taken as it stands, and what is nearly an id is told."""

import json

import pytest

import teachonce
from pipelines.cli import upkeep as upkeep_commands
from pipelines.upkeep.near_ids import readings
from schemas import Cache
from tests.pipelines import models
from tests.pipelines.helpers import read, run, write_jsonl
from tests.pipelines.people import FLAGS, people


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache of eight people, one of whom has blanks in the id."""
    folder = tmp_path_factory.mktemp("ids")
    everyone = people(8)
    everyone[7]["id"] = " user-7 "
    teacher = models.causal_teacher(folder / "teacher")
    run(write_jsonl(folder / "c.jsonl", everyone), teacher, folder / "cache", **FLAGS)
    return folder / "cache"


def forgotten(capsys, cache, tmp_path, data, *flags):
    (tmp_path / "ids.txt").write_bytes(data)
    arguments = ["forget", str(cache), "--ids", str(tmp_path / "ids.txt"), "--no_progress", *flags]
    status = teachonce.main(arguments)
    return status, *capsys.readouterr()


def keys(cache):
    return {row["document_id"] for row in read(cache).values()}


def test_blanks_and_quotes_around_an_id_are_told(made, tmp_path, capsys):
    before = keys(made)
    data = (
        b"\xef\xbb\xbf\" user-1\"\r\n  user-2\r\n'user-3'\nuser-4,\nuser-5,someone@example.org\n\n\nUSER-6\nuser-7\n"
        b"\xe2\x80\x9cuser-0\xe2\x80\x9d\nnobody\nnobody\n"
    )
    status, out, _ = forgotten(capsys, made, tmp_path, data)
    assert status == 0
    assert keys(made) == before
    assert "NOT FORGOTTEN: 8 ids are not written as the cache has them:" in out
    for given, there in (
        ("'\" user-1\"'", "user-1"),
        ("'  user-2'", "user-2"),
        ("\"'user-3'\"", "user-3"),
        ("'user-4,'", "user-4"),
        ("user-5,someone@example.org", "user-5"),
        ("'\u201cuser-0\u201d'", "user-0"),
    ):
        assert f"  {given}: {there} is there\n" in out
    assert "  USER-6: one is there that differs only in" in out
    assert "  user-7: one is there that differs only in" in out
    assert "9 ids: " in out
    left = "".join(path.read_text() for path in (made / "_teachonce" / "runs").glob("forget-*.json"))
    assert "user-" not in left


def test_json_has_them_too_and_what_is_written_right_is_forgotten(made, tmp_path, capsys):
    example = next(e for e, row in read(made).items() if row["document_id"] == "user-2")
    data = f"user-1\r\n 'user-2'\n{example.hex()};\n user-7 ".encode()
    status, out, _ = forgotten(capsys, made, tmp_path, data, "--json")
    found = json.loads(out)
    assert (status, found["documents"]) == (0, 2)
    assert found["not_found"] == [" 'user-2'", f"{example.hex()};"]
    assert found["likely"] == {
        " 'user-2'": "user-2 is there",
        f"{example.hex()};": f"{example.hex()} is there",
    }
    assert not keys(made) & {"user-1", " user-7 "}
    assert Cache.open(made).verify().examples


def test_a_file_that_is_no_utf8_text(made, tmp_path, capsys):
    for data in ("user-1\n".encode("utf-16-le"), "user-1\n".encode("utf-16")):
        status, _, err = forgotten(capsys, made, tmp_path, data)
        assert (status, err.count("\n")) == (2, 1)
        assert "no UTF-8" in err


def test_a_file_without_end_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(upkeep_commands, "_MOST_IDS_BYTES", 1000)
    assert teachonce.main(["forget", "somewhere", "--ids", "/dev/zero"]) == 2
    err = capsys.readouterr().err
    assert ("more than 1,000 bytes" in err, err.count("\n")) == (True, 1)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("user-1", ()),
        (' "user-1" ', ("user-1",)),
        ("user-1,a b ;", ("user-1,a b", "user-1", "a b")),
        ("\ufeffuser\u00a0", ("user",)),
        ('"""', ()),
    ],
)
def test_readings_of_a_line(line, expected):
    assert readings(line) == expected
