"""Keep policies: one text for one value."""

import pytest

from schemas.errors import UsageError
from schemas.policies import KeepAll, TopK, TopP, default_keep, max_kept, parse_keep


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("all", KeepAll()),
        ("top_k:1", TopK(k=1)),
        ("top_k:64", TopK(k=64)),
        ("top_p:0.99,k=64", TopP(p=0.99, k=64)),
        ("top_p:1e-05,k=1", TopP(p=1e-5, k=1)),
    ],
)
def test_parse_and_str_are_inverse(text, policy):
    assert parse_keep(text) == policy
    assert str(policy) == text


@pytest.mark.parametrize("p", [0.123456789, 0.9999999, 1 / 3, 5e-324])
def test_no_digit_of_p_is_lost(p):
    assert parse_keep(str(TopP(p=p, k=3))) == TopP(p=p, k=3)


@pytest.mark.parametrize(
    "text",
    [
        "", "some", "all:1", "top_k", "top_k:", "top_k:x", "top_k:0", "top_k:-3", "top_k:1.5", "top_k:1,2",
        "top_p", "top_p:0.9", "top_p:0.9,64", "top_p:0.9,k=0", "top_p:0.9,k=", "top_p:0,k=4", "top_p:1,k=4",
        "top_p:nan,k=4", "top_p:x,k=4", "top_p:0.9,k=4,z=1", "TOP_K:4",
    ],
)  # fmt: skip
def test_every_other_text_is_refused(text):
    with pytest.raises(UsageError, match="--keep"):
        parse_keep(text)


@pytest.mark.parametrize("bad", [lambda: TopK(k=0), lambda: TopP(p=1.0, k=1), lambda: TopP(p=0.5, k=0)])
def test_nonsense_is_refused_at_construction(bad):
    with pytest.raises(ValueError, match=r"top_[kp]"):
        bad()


def test_defaults():
    assert default_keep(4096) == KeepAll()
    assert default_keep(4097) == TopP(p=0.99, k=64)


def test_max_kept():
    assert max_kept(KeepAll(), 10) == 10
    assert max_kept(TopK(k=4), 10) == 4
    assert max_kept(TopP(p=0.5, k=40), 10) == 10
