"""Answers are judged as SQuAD's script does (`answers.json` holds what torchmetrics 1.8.2 gave of random ones) and, of
Chinese ones, as CMRC 2018's (what its own script gave); spans are the best there are."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.rows.classes import NO_CLASS
from trainer.metrics.answer_texts import by_characters, exact_match_and_f1
from trainer.metrics.answers import MOST_TOKENS, Span, Window, answer_of, best_spans, question_metrics

SCRIPTS = json.loads(Path(__file__).with_name("answers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", ["squad", "cmrc"])
def test_exact_match_and_f1_are_the_scripts(script: str) -> None:
    assert len(SCRIPTS[script]) == 60
    for told, right, exact, f1 in SCRIPTS[script]:
        found = exact_match_and_f1(told, right, chinese=script == "cmrc")
        assert found == pytest.approx((exact, f1), abs=1e-6), (told, right)


def test_no_answer_is_right_or_wrong_and_nothing_between() -> None:
    for chinese in (False, True):
        assert exact_match_and_f1("", "", chinese=chinese) == (1, 1)
        assert exact_match_and_f1("Ada", "", chinese=chinese) == (0, 0)
        assert exact_match_and_f1("", "Ada", chinese=chinese) == (0, 0)
    assert exact_match_and_f1("\u5317 \u4eac", "\u5317\u4eac\u3002", chinese=True) == (1, 1)


def test_the_language_is_the_questions() -> None:
    assert by_characters("iPhone \u4ec0\u4e48\u65f6\u5019\uff1f")
    assert by_characters("\u30a2\u30c0\u306f\uff1f")
    assert not by_characters("Who was Ada? \u2014 \uc5d0\uc774\ub2e4, \u00e9t\u00e9")


def test_a_span_is_the_best_of_all() -> None:
    rng, width = np.random.default_rng(0), 45
    scores = rng.normal(size=(6, 2, width)) * 3
    scores[1, :, :20] = scores[2, :, 25:] = NO_CLASS
    scores[3, 0, 1], scores[3, 1, width - 1] = 50, 50  # too far apart
    scores[4, 0, 30], scores[4, 1, 29] = 50, 50  # the end before the start
    for row, found in zip(scores, best_spans(scores), strict=True):
        sums = {
            (start, end): row[0, start] + row[1, end]
            for start, end in itertools.product(range(1, width), repeat=2)
            if start <= end < start + MOST_TOKENS
        }
        best = max(sums, key=sums.__getitem__)
        assert (found.start, found.end) == best
        assert found.score == pytest.approx(sums[best])
        assert found.none == pytest.approx(row[0, 0] + row[1, 0])


class _Words:
    """A tokenizer whose ids are the words of a sentence."""

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(f"w{one}" for one in ids)


def window(student: Span, gold: tuple[int, int] | None = (0, 0), *, has_answer: bool = True) -> Window:
    ids = np.arange(10, 20, dtype=np.int32)
    return Window(
        ids=ids, question=ids[:2], gold=gold, has_answer=has_answer, teacher=student, student=student
    )


def test_the_windows_of_a_question_are_judged_together() -> None:
    """The best span of all; none where the first tokens say so in every one."""
    low, high = Span(1.0, 3, 4, -5.0), Span(2.0, 5, 5, 1.5)
    windows = [window(low), window(high)]
    told = [
        answer_of(windows, "student", _Words(), may_be_none=True),
        answer_of([window(low), window(high._replace(none=3.0))], "student", _Words(), may_be_none=True),
        answer_of(
            [window(low._replace(none=2.1)), window(high._replace(none=3.0))],
            "student",
            _Words(),
            may_be_none=True,
        ),
        answer_of(
            [window(low._replace(none=2.1)), window(high._replace(none=3.0))],
            "student",
            _Words(),
            may_be_none=False,
        ),
        answer_of([window(low._replace(score=2 * NO_CLASS))], "student", _Words(), may_be_none=False),
    ]
    assert told == ["w15", "w15", "", "w15", ""]


def test_questions_count_whose_right_answer_is_known() -> None:
    right, wrong, none = Span(2.0, 5, 6, 0.0), Span(2.0, 3, 3, 0.0), Span(0.0, 5, 6, 1.0)
    questions = [
        [window(right), window(wrong._replace(score=1.0), (5, 6))],
        [window(wrong, (5, 6))],
        [window(none, has_answer=False)],
        [window(right, has_answer=False)],
        [window(right)],  # an answer that no window holds whole
        [window(right, None, has_answer=False)],  # no labels
    ]
    found = question_metrics(questions, _Words(), may_be_none=True)
    assert found == {
        "questions": 4,
        "answers_in_no_window": 1,
        "exact_match": 0.5,
        "f1": 0.5,
        "teacher_exact_match": 0.5,
        "teacher_f1": 0.5,
        "exact_match_answered": 0.5,
        "f1_answered": 0.5,
        "teacher_exact_match_answered": 0.5,
        "teacher_f1_answered": 0.5,
        "exact_match_unanswerable": 0.5,
        "teacher_exact_match_unanswerable": 0.5,
    }
    unlabelled = [[replace(questions[5][0])]]
    assert question_metrics(unlabelled, _Words(), may_be_none=True) == {"questions": 0}
