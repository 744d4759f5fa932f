"""`--where` chooses the rows that a loop over plain values chooses; what is chosen is counted once."""

from __future__ import annotations

import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.cache import Cache
from schemas.errors import CorruptionError, UsageError
from schemas.rows.rows import Rows
from tests.schemas.requests import asked, of_shards
from tests.synthetic import causal_spec, make_cache
from trainer import TrainConfig
from trainer.checkpoints.records import Record
from trainer.stream.side import Side
from trainer.stream.where import Where

COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
}


def value(rows: Rows, row: int, name: str) -> Any:
    """What a row has, by a loop over its own positions."""
    one = rows.take(np.array([row]))
    if name == "length":
        return len(one.input_ids.row(0))
    if name == "positions":
        return one.num_positions
    if name == "document_id":
        return one.array("document_id")[0]
    if name == "label":
        labels = one.ragged("labels").row(0).tolist()
        return labels[0] if labels else None
    if not one.num_positions:
        return None
    if name == "entropy":
        return float(np.mean([float(e) for e in one.entropy()]))
    kept = np.split(one.kept_logprobs(), np.cumsum(one.kept_counts)[:-1])
    return float(np.mean([sum(np.exp(float(p)) for p in part) for part in kept]))


def expected(rows: Rows, conditions: list[tuple[str, str, Any]]) -> list[bool]:
    found = []
    for row in range(len(rows)):
        values = [value(rows, row, name) for name, *_ in conditions]
        told = zip(values, conditions, strict=True)
        found.append(all(v is not None and bool(COMPARE[c](v, w)) for v, (_, c, w) in told))
    return found


@pytest.mark.parametrize("compare", sorted(COMPARE))
@pytest.mark.parametrize("name", ["length", "positions", "entropy", "kept_mass"])
def test_a_number_is_compared(causal_cache: Cache, name: str, compare: str) -> None:
    rows = Rows.concatenate([*causal_cache.read_all()])
    values = sorted(value(rows, row, name) for row in range(len(rows)))
    bound = float(f"{values[len(values) // 2]:g}")
    where = Where.parse([f"{name} {compare} {bound:g}"])
    assert where is not None
    where.check(causal_cache.spec)
    chosen = where.chosen(rows).tolist()
    assert chosen == expected(rows, [(name, compare, bound)])
    assert compare in ("=", "!=") or 0 < sum(chosen) < len(rows)


def test_all_conditions_must_be_met(causal_cache: Cache) -> None:
    rows = Rows.concatenate([*causal_cache.read_all()])
    where = Where.parse(["length>=15", "entropy<4", "length<=25"])
    assert where is not None
    chosen = where.chosen(rows).tolist()
    assert chosen == expected(rows, [("length", ">=", 15), ("entropy", "<", 4), ("length", "<=", 25)])
    assert 0 < sum(chosen) < len(rows)


@pytest.mark.parametrize("compare", ["=", "!="])
def test_a_document_is_named(tmp_path: Path, compare: str) -> None:
    cache = make_cache(tmp_path / "cache", causal_spec(has_document_id=True))
    rows = Rows.concatenate([*cache.read_all()])
    name = next(text for text in rows.array("document_id") if text)
    where = Where.parse([f"document_id{compare}{name}"])
    assert where is not None
    where.check(cache.spec)
    assert where.chosen(rows).tolist() == expected(rows, [("document_id", compare, name)])


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "identity"])
def test_a_label_is_compared(class_cache_of: Callable[..., Cache], score: str) -> None:
    cache = class_cache_of(score=score, num_labels=1 if score == "identity" else 3)
    rows = Rows.concatenate([*cache.read_all()])
    if score == "sigmoid":
        where, own = Where.parse(["label=2"]), rows.ragged("labels")
        wanted = [own.row(row).tolist()[2:3] == [1] for row in range(len(rows))]
    elif score == "identity":
        where, wanted = Where.parse(["label<0.1"]), expected(rows, [("label", "<", 0.1)])
    else:
        where, wanted = Where.parse(["label!=1"]), expected(rows, [("label", "!=", 1)])
    assert where is not None
    where.check(cache.spec)
    assert where.chosen(rows).tolist() == wanted
    assert 0 < sum(wanted) < len(rows)


def test_rows_without_a_label_meet_no_condition(class_cache_of: Callable[..., Cache]) -> None:
    rows = Rows.concatenate([*class_cache_of(labelled=False).read_all()])
    for text in ("label=1", "label!=1"):
        where = Where.parse([text])
        assert where is not None
        assert not where.chosen(rows).any()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "length",
        "length~3",
        "length<many",
        "length<nan",
        "length<inf",
        "size<3",
        "document_id<3",
        "label<spam",
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--where cannot be read"):
        TrainConfig(cache="c", student="s", where=[text])


@pytest.mark.parametrize("text", ["document_id=a", "label=1"])
def test_what_the_rows_cannot_have_is_refused(causal_cache: Cache, text: str) -> None:
    where = Where.parse([text])
    assert where is not None
    with pytest.raises(UsageError, match="means nothing here"):
        where.check(causal_cache.spec)


@pytest.mark.parametrize(
    ("score", "text"), [("softmax", "label=spam"), ("sigmoid", "label<2"), ("identity", "label<2")]
)
def test_labels_that_cannot_be_compared_are_refused(
    class_cache_of: Callable[..., Cache], score: str, text: str
) -> None:
    where = Where.parse([text])
    assert where is not None
    with pytest.raises(UsageError, match="means nothing here"):
        where.check(class_cache_of(score=score).spec)


def test_counts_are_kept_and_a_row_group_without_a_chosen_row_is_not_read_again(
    causal_cache: Cache, tmp_path: Path
) -> None:
    root = shutil.copytree(causal_cache.storage.root, tmp_path / "cache")
    where = Where.parse(["length>24"])
    for is_eval in (False, True):
        cache = Cache.open(root)
        side = Side(cache=cache, eval_fraction=0.2, is_eval=is_eval, where=where)
        counts = side.counts()
        rows = [side.read(group) for group in range(len(counts))]
        assert counts.tolist() == [len(part) for part in rows]
        assert all((part.input_ids.lengths > 24).all() for part in rows)
        with asked() as requests:
            again = Side(cache=Cache.open(root), eval_fraction=0.2, is_eval=is_eval, where=where).counts()
        assert again.tolist() == counts.tolist()
        assert not of_shards(requests)
    (kept, *_) = [
        path for path in (Path(root) / "_teachonce/index").iterdir() if cache.record.live_hash in path.name
    ]
    kept.write_bytes(kept.read_bytes()[:-3])
    for is_eval in (False, True):
        side = Side(cache=Cache.open(root), eval_fraction=0.2, is_eval=is_eval, where=where)
        assert side.counts().sum() == sum(len(side.read(group)) for group in range(len(side.counts())))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["entropy>0.1234567"], ["entropy>0.1234568"]),
        (["length<=1234567"], ["length<=1234568"]),
        (["document_id=a\nlength<3"], ["document_id=a", "length<3"]),
        (["label=1"], ["label!=1"]),
    ],
)
def test_counts_of_one_filter_are_never_taken_for_anothers(one: list[str], other: list[str]) -> None:
    first, second = Where.parse(one), Where.parse(other)
    assert first is not None
    assert second is not None
    assert first.key(0.05, False) != second.key(0.05, False)
    assert first.key(0.05, False) == Where(first.conditions).key(0.05, False)
    assert len({first.key(0.05, False), first.key(0.05, True), first.key(0.1, False)}) == 3


@pytest.mark.parametrize("wrong", [1, -1])
def test_rows_that_were_counted_otherwise_end_the_run(
    causal_cache: Cache, tmp_path: Path, wrong: int, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Path]
) -> None:
    """As where another build kept them: what is kept is whole, and says other numbers than the rows do."""
    root = shutil.copytree(causal_cache.storage.root, tmp_path / "cache")
    where, original = ["length>20"], Where.chosen

    def other(self: Where, rows: Rows) -> Any:
        found = original(self, rows)
        found[np.flatnonzero(found == (wrong < 0))[:1]] = wrong > 0
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Where, "chosen", other)
        for is_eval in (False, True):
            Side(
                cache=Cache.open(root), eval_fraction=0.0, is_eval=is_eval, where=Where.parse(where)
            ).counts()
    with pytest.raises(CorruptionError, match=r"run counts on.*\.parquet, row group \d+"):
        run(cache=Cache.open(root), where=where, eval_fraction=0.0, eval_strategy="no", max_steps=40)


def test_a_run_trains_on_what_is_chosen_and_resumes_on_nothing_else(run: Callable[..., Path]) -> None:
    where = ["length>=20", "entropy<=5.2"]
    folder = run(where=where, max_steps=4, save_steps=2)
    record = Record.load(folder)
    assert record is not None
    assert record.where == where
    with pytest.raises(UsageError, match="another where"):
        run("again", max_steps=4, where=where[:1], resume_from_checkpoint=str(folder / "checkpoint-2"))
    with pytest.raises(UsageError, match="no row is left"):
        run("none", where=["length>10000"])
