"""Packed rows hold every token once, none beside another example's in attention, at positions that begin again."""

import numpy as np
import pytest
import torch

from tests.synthetic import SPECS, random_rows
from trainer.batches.collate import Collation
from trainer.batches.packing import Layout, Packing


def lengths_of(case: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    found = {
        "one": [7],
        "like": [20] * 9,
        "short and long": [64, 1, 1, 2, 3, 1, 1],
        "random": rng.integers(1, 65, 50).tolist(),
        "beyond the most": [100, 40, 30, 60],
    }
    return np.array(found[case])


CASES = ("one", "like", "short and long", "random", "beyond the most")


@pytest.mark.parametrize("case", CASES)
def test_every_token_has_a_place_of_its_own(case: str) -> None:
    lengths = lengths_of(case)
    layout = Layout.packed(lengths, 64)
    taken = np.zeros(layout.shape, int)
    for row, first, length in zip(layout.row, layout.first, lengths, strict=True):
        assert first + length <= layout.shape[1]
        taken[row, first : first + length] += 1
    assert taken.max() == 1
    assert taken.sum() == lengths.sum()
    assert layout.padding == pytest.approx((taken == 0).mean())
    assert layout.shape[1] <= max(64, lengths.max())
    assert layout.padding <= Layout.apart(lengths).padding
    again = Layout.packed(lengths.copy(), 64)
    assert (layout.row == again.row).all()
    assert (layout.first == again.first).all()


def test_rows_are_no_longer_than_little_padding_needs() -> None:
    assert Layout.packed(np.array([8, 4, 4, 6, 2]), 64).shape == (3, 8)
    assert Layout.packed(np.array([20] * 9), 64).shape == (9, 20)
    assert Layout.packed(np.array([33, 31, 33, 31, 40, 24]), 64).shape == (3, 64)


@pytest.mark.parametrize("uncounted", [None, 1])
def test_a_batch_of_packed_rows(uncounted: int | None) -> None:
    """By hand, token by token: ids, positions, who sees whom, and where each position stands."""
    rows = random_rows(SPECS["top_p"], 30).rows
    packing = Packing(max_length=32, mask="boolean", uncounted=uncounted, filler=4)
    batch = Collation(student_vocab=50, pad_id=3, packing=packing).batch(rows)
    packed, plain = batch.packed, Collation(student_vocab=50, pad_id=3).batch(rows)
    assert packed is not None
    assert batch.num_tokens == plain.num_tokens
    assert len(batch.input_ids) < len(plain.input_ids)
    expected = torch.full((len(rows), *batch.input_ids.shape), -1)
    for number in range(len(rows)):
        text = rows.input_ids.row(number)
        places = (packed.example == number).nonzero().tolist()
        assert [batch.input_ids[row, token].item() for row, token in places] == text.tolist()
        assert len({row for row, _ in places}) == 1
        position = 0 if uncounted is None else uncounted + 1
        for place, (row, token) in enumerate(places):
            skipped = text[place] == uncounted
            assert packed.position_ids[row, token] == (uncounted if skipped else position)
            position += not skipped
            expected[number, row, token] = place
    beside = batch.attention_mask == 0
    assert beside.any()
    assert (batch.input_ids[beside] == 4).all()
    sees = batch.model_inputs["attention_mask"][:, 0]
    for row in range(len(sees)):
        for here in range(sees.shape[1]):
            for there in range(sees.shape[1]):
                same = packed.example[row, here] == packed.example[row, there]
                assert sees[row, here, there] == (same and there <= here)
    of_each = expected.flatten(1).T[batch.row * batch.input_ids.shape[1] + batch.token]
    owner = (of_each >= 0).long().argmax(1)
    assert torch.equal(owner, plain.row)
    assert torch.equal(of_each.gather(1, owner[:, None])[:, 0], plain.token)


def test_states_by_example_are_those_of_its_own_row() -> None:
    rows = random_rows(SPECS["top_p"], 12).rows
    plain = Collation(student_vocab=50, pad_id=3).batch(rows)
    packed = Collation(student_vocab=50, pad_id=3, packing=Packing(max_length=32)).batch(rows)
    assert torch.equal(plain.example_mask, packed.example_mask)
    ours = packed.by_example(packed.input_ids[..., None].float())[..., 0]
    assert torch.equal(ours * packed.example_mask, plain.input_ids * plain.attention_mask)


def test_a_move_takes_all_along() -> None:
    rows = random_rows(SPECS["top_p"], 6).rows
    batch = Collation(student_vocab=50, pad_id=3, packing=Packing(max_length=32)).batch(rows)
    moved = batch.to(torch.device("meta"))
    assert moved.packed is not None
    assert {tensor.device.type for tensor in moved.model_inputs.values()} == {"meta"}
    assert moved.packed.places.device.type == moved.packed.mask.device.type == "meta"
