"""Contrast goes by who wrote a text: a stream of two caches, of which a teacher wrote one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.generation import Generation
from schemas.policies import Threshold
from schemas.rows.rows import Rows
from tests.trainer.caches import write_cache
from tests.trainer.draws import some_rows
from tests.trainer.tiny import VOCAB
from trainer.batches.collate import Collation
from trainer.batches.pool import Pool
from trainer.losses.objective import Objective, position_losses
from trainer.losses.targets import SparseTargets

WRITTEN = Generation(method="greedy", max_new_tokens=4)


def two_kinds(rows: Rows) -> tuple[Rows, Rows]:
    """Texts that a teacher wrote, and others."""
    written = replace(rows.spec, generation=WRITTEN)
    places = np.arange(len(rows))
    return Rows(spec=written, data=rows.take(places[::2]).data), rows.take(places[1::2])


def drawn() -> Rows:
    return some_rows(Threshold(tau=1 / 8), 60, own_logits=True)


@pytest.mark.parametrize("draws", [False, True])
def test_each_position_has_the_loss_of_its_text(causal_cache: Cache, draws: bool) -> None:
    """Through a pool of both, as a stream has it: which way it goes follows from the row's cache."""
    ours, others = two_kinds(drawn() if draws else Rows.concatenate([*causal_cache.read_all()]))
    objective = Objective.parse(["contrast=1,alpha=0.3", "skew_kl=1,alpha=0.3", "skew_rkl=1,alpha=0.3"])
    collation = Collation(student_vocab=VOCAB, pad_id=0, stored=objective.stored(ours.spec))
    pool = Pool([(others, np.array([3, 0])), (ours, np.array([5, 1, 2])), (others, np.array([7]))])
    first, second = collation.batches(pool, [np.array([4, 0, 2]), np.array([5, 1, 3])])
    for batch, is_students in ((first, [False, True, False]), (second, [True, True, False])):
        targets = batch.targets
        assert isinstance(targets, SparseTargets)
        expected = torch.tensor(is_students)[batch.row]
        logits = torch.randn(len(batch.row), VOCAB, generator=torch.Generator().manual_seed(1))
        found = position_losses(
            objective.head_losses,
            logits,
            targets,
            temperature=1.0,
            score="softmax",
            settings=objective.settings,
        )
        torch.testing.assert_close(found[0], torch.where(expected, found[2], found[1]))
        assert not torch.allclose(found[1], found[2])
        entries = slice(int(batch.entry_offsets[1]), int(batch.entry_offsets[4]))
        part = targets.chunk(1, 4, entries)
        assert part.students is not None
        assert torch.equal(part.students, expected[1:4])


def test_nobody_else_is_told_who_wrote_a_text() -> None:
    ours, _ = two_kinds(drawn())
    assert "origin" not in Objective.parse(["skew_kl"]).stored(ours.spec)
    batch = Collation(student_vocab=VOCAB, pad_id=0).batch(ours.take(np.arange(2)))
    assert batch.targets.students is None


def test_a_stream_of_both_trains_and_one_of_a_kind_is_refused(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    ours, others = two_kinds(drawn())
    written, plain = (
        write_cache(tmp_path / name, rows) for name, rows in (("teachers", ours), ("students", others))
    )
    both = [f"{cache.storage.root}=0.5" for cache in (written, plain)]
    folder = run(caches=both, losses=["contrast=1"], max_steps=6, save_steps=6)
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    assert any("contrast" in entry for entry in state["log_history"])
    for alone, kind in ((written, "the teacher"), (plain, "a corpus")):
        with pytest.raises(StudentError, match=f"got texts of {kind} alone.*--generate"):
            run("alone", cache=alone, losses=["contrast=1"])
    with pytest.raises(UsageError, match="they differ"):
        run("other", caches=both, losses=["skew_kl=1"])
