"""A student's answers to questions beside the corpus's and the teacher's, from the cache alone.

A question's windows are judged together, as SQuAD's reference models do (arXiv:1806.03822): the best span of any window
by the sum of its two logits, its end not before its start, and at most `MOST_TOKENS` long; no answer, where the first
token's sum is above that in every window. Where the cache keeps the text, answers are its characters, and the best of
the right ones counts that it keeps (`--keep_answers`); else they are what their tokens decode to, and the first is
right. The teacher's own answer comes from what the cache keeps of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from schemas.rows.classes import NO_CLASS, bounds, has_first
from schemas.rows.entries import entries_of
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.tasks import ANSWER_END, ANSWER_START, ANSWERS
from trainer.batches.batch import Batch
from trainer.batches.targets import example_keys
from trainer.losses.divergences import kl_divergence
from trainer.losses.targets import NO_LABEL, SparseTargets, first_ids, only_classes
from trainer.metrics.answer_texts import by_characters, exact_match_and_f1
from trainer.metrics.classes import scored
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Run
from trainer.reading.contexts import Context, Contexts
from trainer.reading.reader import Reader

MOST_TOKENS = 30
"""Of an answer."""


class Span(NamedTuple):
    """The best answer in a window."""

    score: float
    start: int
    end: int
    """Its last token."""
    none: float
    """What says that there is none here."""


@dataclass(kw_only=True)
class Window:
    """A window of a question's context, and what is said of it."""

    ids: Array
    question: Array | str
    """Its tokens, or where the cache keeps texts its characters."""
    gold: tuple[int, int] | None
    has_answer: bool
    teacher: Span
    student: Span | None = None
    context: str | None = None
    """The document's, where the cache keeps texts,"""
    answers: tuple[str, ...] = ()
    """and the right ones among its characters, where it keeps these."""
    sides: Mapping[str, Context] = field(default_factory=dict)
    """Where the tokens of `student` and `teacher` stand in the context."""


def answer_metrics(
    model: Any,
    run: Run,
    batches: Iterable[Batch],
    *,
    rows: Iterable[Rows],
    tokenizer: Any,
    device: torch.device,
    reader: Reader | None = None,
) -> Metrics:
    """Exact match and F1 of questions that have labels, the student's and the teacher's; KL, agreement, cross entropy
    and accuracy of positions. `reader` is a student's of another tokenizer.

    Raises:
        StudentError: the student's logits are not finite.
    """
    by_key, questions, may_be_none = _windows(rows, tokenizer, reader)
    sums, counts = torch.zeros(5, dtype=torch.float64), np.zeros(2, np.int64)
    for batch, given in scored(model, batches, device, run):
        assert isinstance(batch.targets, SparseTargets)
        logits = only_classes(given, batch.targets.classes)
        found = best_spans(logits.reshape(-1, 2, logits.shape[-1]).numpy())
        for key, span in zip(batch.example_keys.tolist(), found, strict=True):
            by_key[key].student = span
        sums += _position_sums(logits, batch.targets)
        counts += len(logits), int((batch.targets.gold != NO_LABEL).sum())
    kl, agree = (sums[:2] / max(1, counts[0])).tolist()
    ce, accuracy, teacher = (sums[2:] / max(1, counts[1])).tolist()
    metrics: Metrics = {
        "positions": int(counts[0]),
        "labelled": int(counts[1]),
        "kl_nats": kl,
        "agreement": agree,
    }
    if counts[1]:
        metrics |= {"cross_entropy_nats": ce, "accuracy": accuracy, "teacher_accuracy": teacher}
    return metrics | question_metrics(questions, tokenizer, may_be_none=may_be_none)


def _position_sums(logits: Float[torch.Tensor, "N V"], targets: SparseTargets) -> Float[torch.Tensor, 5]:
    """Over all positions KL and agreement; over those with labels cross entropy, accuracy, and the teacher's."""
    best, teacher, known = logits.argmax(-1), first_ids(targets), targets.gold != NO_LABEL
    right = targets.gold.clamp_min(0)
    cross = logits.logsumexp(-1) - logits.gather(-1, right[:, None])[:, 0]
    every = [kl_divergence(logits, targets, 1.0), best == teacher]
    labelled = [cross, best == right, teacher == right]
    return torch.stack(
        [one.double().sum() for one in every] + [one[known].double().sum() for one in labelled]
    )


def _windows(
    rows: Iterable[Rows], tokenizer: Any, reader: Reader | None
) -> tuple[dict[int, Window], list[list[Window]], bool]:
    """Windows by 64 bits of their example's id, and those of each question; and whether there may be no answer."""
    by_key, questions, may_be_none = dict[int, Window](), dict[bytes, list[Window]](), True
    for part in rows:
        may_be_none = has_first(part.spec)
        starts, _ = bounds(part.spec, part.data)
        told = best_spans(teacher_scores(part))
        labels, documents = part.ragged("labels"), part.array("document_hash")
        texts = _texts(part, tokenizer, reader)
        for row, key in enumerate(example_keys(part).tolist()):
            ids = part.input_ids.row(row)
            gold = labels.row(row).tolist() if labels.validity[row] else None
            window = Window(
                ids=ids,
                question=ids[: starts[row]],
                gold=None if gold is None else (gold[0], gold[1]),
                has_answer=bool(part.array("has_answer")[row]),
                teacher=told[row],
            )
            window = replace(window, **texts[row]) if texts else window
            by_key[key] = window
            questions.setdefault(documents[row].tobytes(), []).append(window)
    return by_key, [*questions.values()], may_be_none


def _texts(rows: Rows, tokenizer: Any, reader: Reader | None) -> list[dict[str, Any]]:
    """What a window has of its text, of each row; nothing where the cache keeps none."""
    if not rows.spec.has_text_pair:
        return []
    if reader is None or reader.contexts is None:
        same = Contexts(tokenizer, rows.spec, "").windows(rows, range(len(rows)))
        sides = [{"student": each, "teacher": each} for each in same]
    else:
        both = reader.contexts.both(rows)
        sides = [{"student": each.ours, "teacher": each.theirs} for each in both]
    found = []
    for row, side in enumerate(sides):
        question, context = str(rows.array("text")[row]), str(rows.array("text_pair")[row])
        told = {"question": question, "context": context, "answers": _kept_answers(rows, row, context)}
        found.append({**told, "sides": side})
    return found


def _kept_answers(rows: Rows, row: int, context: str) -> tuple[str, ...]:
    spans = [
        tuple(int(rows.array(f"{name}_{number}")[row]) for name in (ANSWER_START, ANSWER_END))
        for number in range(1, int(rows.spec.setting(ANSWERS)) + 1)
    ]
    return tuple(context[start:end] for start, end in spans if start >= 0)


def teacher_scores(rows: Rows) -> Float[np.ndarray, "R 2 V"]:
    """The teacher's logits of what the cache keeps, where it stores their normaliser, so that windows can be compared;
    else log-probabilities, which each window has for itself. `NO_CLASS` for all else."""
    entries = entries_of(rows)
    found = np.full((len(entries.counts), rows.spec.vocab_size), NO_CLASS)
    owner = np.repeat(np.arange(len(entries.counts)), entries.counts)
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log(entries.weights.astype(np.float64)), NO_CLASS)
    found[owner, entries.ids] = logs + (rows.logsumexp()[owner] if "logsumexp" in rows.spec.scalars else 0)
    return found.reshape(len(rows), 2, -1)


def best_spans(scores: Float[np.ndarray, "R 2 V"]) -> list[Span]:
    """Of each row the best span among its classes but the first token, which says that there is none."""
    starts, ends = scores[:, 0].astype(np.float64), scores[:, 1].astype(np.float64)
    none = starts[:, 0] + ends[:, 0]
    starts[:, 0] = ends[:, 0] = NO_CLASS
    every, width = np.arange(len(scores)), scores.shape[-1]
    best, first, last = np.full(len(scores), -np.inf), np.zeros_like(every), np.zeros_like(every)
    for more in range(min(MOST_TOKENS, width)):
        sums = starts[:, : width - more] + ends[:, more:]
        place = sums.argmax(1)
        better = sums[every, place] > best
        best = np.where(better, sums[every, place], best)
        first, last = np.where(better, place, first), np.where(better, place + more, last)
    return [
        Span(*one) for one in zip(best.tolist(), first.tolist(), last.tolist(), none.tolist(), strict=True)
    ]


def question_metrics(questions: Sequence[Sequence[Window]], tokenizer: Any, *, may_be_none: bool) -> Metrics:
    """Of those whose right answer is known; of one that no window holds whole, it is not."""
    rows, cut = list[Mapping[str, float]](), 0
    for windows in questions:
        spans = [window for window in windows if window.gold is not None and window.gold[0] > 0]
        is_known = bool(spans) or (not windows[0].has_answer and windows[0].gold is not None)
        is_known |= bool(windows[0].answers)
        cut += windows[0].has_answer and not is_known
        if is_known:
            rows.append(_judged(windows, spans[:1], tokenizer, may_be_none=may_be_none))
    found: Metrics = {"questions": len(rows)}
    if cut:
        found["answers_in_no_window"] = int(cut)
    return found | _means(rows)


def _judged(
    windows: Sequence[Window], right: Sequence[Window], tokenizer: Any, *, may_be_none: bool
) -> Mapping[str, float]:
    """Exact match and F1 of both answers to a question; `right` is a window that holds the right one. Of several right
    ones the best counts."""
    golds = windows[0].answers or tuple(_told(one, "teacher", one.gold, tokenizer) for one in right) or ("",)
    question = windows[0].question
    chinese = by_characters(question if isinstance(question, str) else _text(tokenizer, question))
    judged: dict[str, float] = {"has_answer": float(golds != ("",))}
    for who in ("student", "teacher"):
        told = answer_of(windows, who, tokenizer, may_be_none=may_be_none)
        prefix = "" if who == "student" else "teacher_"
        each = [exact_match_and_f1(told, gold, chinese=chinese) for gold in golds]
        judged[f"{prefix}exact_match"], judged[f"{prefix}f1"] = map(max, zip(*each, strict=True))
    return judged


def answer_of(windows: Sequence[Window], who: str, tokenizer: Any, *, may_be_none: bool) -> str:
    """What somebody answers to a question; an empty text where that is nothing."""
    spans = [(getattr(window, who), window) for window in windows if getattr(window, who) is not None]
    if not spans:
        return ""
    best, window = max(spans, key=lambda one: one[0].score)
    none = min(span.none for span, _ in spans)
    if best.score < NO_CLASS / 2 or (may_be_none and none > best.score):
        return ""
    return _told(window, who, (best.start, best.end), tokenizer)


def _told(window: Window, who: str, span: tuple[int, int] | None, tokenizer: Any) -> str:
    """An answer's own text, from its first and its last token, which are numbered as `who` reads."""
    assert span is not None
    if window.context is not None:
        start, end = window.sides[who].span(*span)
        return window.context[start:end]
    return _text(tokenizer, window.ids[span[0] : span[1] + 1])


def _text(tokenizer: Any, ids: Array) -> str:
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _means(rows: Sequence[Mapping[str, float]]) -> Metrics:
    """Over all questions, and over those with an answer and without apart, where there are both."""
    if not rows:
        return {}
    names = [name for name in rows[0] if name != "has_answer"]
    found: Metrics = {name: _mean(rows, name) for name in names}
    answered = [row for row in rows if row["has_answer"]]
    others = [row for row in rows if not row["has_answer"]]
    if answered and others:
        found |= {f"{name}_answered": _mean(answered, name) for name in names}
        found |= {f"{name}_unanswerable": _mean(others, name) for name in names if name.endswith("match")}
    return found


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)
