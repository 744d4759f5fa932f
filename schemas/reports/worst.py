"""The examples that each student does worst on, with what the teacher and the student find likeliest side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.reports.evaluations import Candidate, Closer, Example, Position
from schemas.reports.markup import Html, element, foreign, joined, shown
from schemas.reports.runs import Run


def worst_examples(runs: Sequence[Run]) -> Html:
    """A fold for each student, of which the first is open."""
    found = [(run, one) for run in runs if run.evaluation for one in run.evaluation.closer if one.worst]
    folds = [_fold(run, one, is_open=number == 0) for number, (run, one) in enumerate(found)]
    inner = folds or [element("p", shown("Not here: no run has a saved evaluation with distributions."))]
    heading = element("h3", shown("Worst examples"))
    return element("section", heading, *inner, **{"class": "card", "id": "worst"})


def _fold(run: Run, closer: Closer, *, is_open: bool) -> Html:
    seen = f"{closer.rows:,} held-out examples" + ("" if closer.is_whole else ", a part of them")
    title = element("summary", foreign(run.name), shown(f": the {len(closer.worst)} worst of {seen}"))
    return element("details", title, joined(map(_example, closer.worst)), **({"open": ""} if is_open else {}))


def _example(one: Example) -> Html:
    head = f"{one.loss_nats:.3f} nats a position, {one.tokens:,} tokens, example {one.example_id}"
    text = element("div", foreign(one.text), **{"class": "text", "dir": "auto"})
    return joined([element("h4", shown(head)), text, *map(_place, one.places)])


def _place(one: Position) -> Html:
    before = element("code", foreign(f"...{one.before}"))
    right = [shown("; right is "), element("code", foreign(one.gold))] if one.gold else []
    told = [shown(f"token {one.index}, {one.loss_nats:.3f} nats, after "), before, *right]
    sides = [_side("teacher", one.teacher), _side("student", one.student)]
    return joined([element("p", *told, **{"class": "dim"}), element("div", *sides, **{"class": "sides"})])


def _side(name: str, entries: Iterable[Candidate]) -> Html:
    lines = [
        element(
            "div",
            element(
                "span", style=f"width:{max(0.0, min(1.0, one.probability)) * 40:.1f}%", **{"class": "bar"}
            ),
            shown(f" {one.probability:.3f} "),
            element("code", foreign(one.text or f"id {one.id}")),
        )
        for one in entries
    ]
    return element("div", shown(name), *lines)
