"""Errors: one line each, whole after pickling; and flags that are wrong."""

import pickle

import pytest

import schemas.errors
from schemas.cli.arguments import Parser, natural, positive
from schemas.errors import TeachonceError, UsageError, one_line

KINDS = [
    kind for kind in vars(schemas.errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
]


def test_a_message_says_what_where_expected_got_and_what_to_do():
    error = TeachonceError("it broke", where="a/b", expected=1, got=[2], do="Mend it")
    assert str(error) == "it broke: a/b: expected 1, got [2]. Mend it"
    assert str(TeachonceError("it broke")) == "it broke"
    assert str(TeachonceError("it broke", got=0)) == "it broke: got 0"


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling(kind):
    error = kind("it broke", where="a/b", expected=1, got="x", do="Mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.what, again.where, again.expected, again.got, again.do) == (
        "it broke",
        "a/b",
        1,
        "x",
        "Mend it",
    )


def test_the_tree_is_drawn_at_the_head_of_the_file():
    drawn = schemas.errors.__doc__
    assert {kind.__name__ for kind in KINDS} == {word for word in drawn.split() if word.endswith("Error")} - {
        "`ValueError`"
    }


def test_a_librarys_error_becomes_one_line():
    assert one_line(OSError("a\n   \x1b[31m\u21b3\x1b[0m b\n\n")) == "a b"
    assert one_line(OSError()) == "OSError()"
    assert len(one_line(OSError("x" * 1000))) == 300


@pytest.fixture
def parser():
    parser = Parser(prog="teachonce test", description="One\ntwo", epilog="examples:\n  three")
    parser.add_argument("--number", type=natural)
    parser.add_argument("--size", type=positive)
    parser.add_argument("--choice", choices=["a", "b"])
    return parser


@pytest.mark.parametrize(
    "argv",
    [
        ["--wrong"],
        ["--num", "1"],
        ["--number", "x"],
        ["--number", "-1"],
        ["--size", "0"],
        ["--number"],
        ["--choice", "c"],
    ],
)
def test_a_wrong_flag_is_one_line(parser, argv, capsys):
    with pytest.raises(UsageError, match="See `teachonce test --help`") as caught:
        parser.parse_args(argv)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_right_flags_are_taken(parser):
    arguments = parser.parse_args(["--number", "0", "--size", "7"])
    assert (arguments.number, arguments.size) == (0, 7)
    assert "One\ntwo" in parser.format_help()
    assert "examples:\n  three" in parser.format_help()
