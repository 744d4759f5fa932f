"""Keep policies: one text for one value."""

import pytest

from schemas.errors import UsageError
from schemas.policies import (
    KeepAll,
    Sampled,
    Threshold,
    TopK,
    TopP,
    default_keep,
    former_default,
    is_sampling,
    keeps_whole,
    max_kept,
    max_sampled,
    parse_keep,
)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("all", KeepAll()),
        ("top_k:1", TopK(k=1)),
        ("top_k:64", TopK(k=64)),
        ("top_p:0.99,k=64", TopP(p=0.99, k=64)),
        ("top_p:1e-05,k=1", TopP(p=1e-5, k=1)),
        ("threshold:0.0625,k=1", Threshold(tau=1 / 16)),
        ("threshold:0.1,k=8", Threshold(tau=0.1, k=8)),
        ("sampled:50", Sampled(n=50)),
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
        "threshold", "threshold:", "threshold:0", "threshold:1", "threshold:-0.1", "threshold:nan", "threshold:1/0",
        "threshold:x", "threshold:0.1,k=0", "threshold:0.1,8", "threshold:0.1,k=1,k=2", "sampled", "sampled:0",
        "sampled:1.5", "sampled:-2", "sampled:3,k=1", "sampled:3000000000", "threshold:1e-320",
    ],
)  # fmt: skip
def test_every_other_text_is_refused(text):
    with pytest.raises(UsageError, match="--keep"):
        parse_keep(text)


@pytest.mark.parametrize("bad", [
    lambda: TopK(k=0), lambda: TopP(p=1.0, k=1), lambda: TopP(p=0.5, k=0), lambda: Threshold(tau=1.0),
    lambda: Threshold(tau=0.0), lambda: Threshold(tau=0.5, k=0), lambda: Sampled(n=0),
])  # fmt: skip
def test_nonsense_is_refused_at_construction(bad):
    with pytest.raises(ValueError, match=r"top_[kp]|threshold|sampled"):
        bad()


def test_defaults():
    assert default_keep(True) == Threshold(tau=1 / 32), "of a vocabulary, whatever its size"
    assert default_keep(False) == KeepAll(), "of classes"
    assert (former_default(4096), former_default(4097)) == (KeepAll(), Threshold(tau=1 / 32))


def test_policies_that_cut_nothing_are_all_by_another_name():
    whole = ("top_k:9", "top_k:8", "threshold:1/4,k=8")
    assert all(keeps_whole(parse_keep(text), 8) for text in whole)
    others = ("all", "top_k:7", "top_p:0.9,k=8", "threshold:1/4", "sampled:8")
    assert not any(keeps_whole(parse_keep(text), 8) for text in others)


def test_max_kept():
    assert max_kept(KeepAll(), 10) == 10
    assert max_kept(TopK(k=4), 10) == 4
    assert max_kept(TopP(p=0.5, k=40), 10) == 10
    assert max_kept(Sampled(n=5), 10) == 0
    assert [max_kept(Threshold(tau=1 / 4, k=k), 100, t) for k, t in ((1, 1), (1, 3), (20, 1))] == [4, 12, 20]
    assert max_kept(Threshold(tau=1 / 4), 3) == 3


def test_max_sampled():
    assert [max_sampled(policy, 10) for policy in (KeepAll(), TopK(k=4), TopP(p=0.5, k=40))] == [0, 0, 0]
    assert [max_sampled(Sampled(n=n), 10) for n in (5, 50)] == [5, 10]
    assert [max_sampled(Threshold(tau=1 / 4), 100, t) for t in (1, 3)] == [5, 13]


def test_a_fraction_is_a_tau():
    assert parse_keep("threshold:1/16,k=3") == Threshold(tau=0.0625, k=3)
    assert parse_keep("threshold:1/16") == Threshold(tau=0.0625, k=1)


def test_who_draws():
    policies = (KeepAll(), TopK(k=4), TopP(p=0.5, k=40), Threshold(tau=0.1), Sampled(n=3))
    assert [is_sampling(policy) for policy in policies] == [False, False, False, True, True]
