"""A loss with cuts is the mean of the loss on the whole embedding and on each of its beginnings."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.losses.loss import Bank, Pooled
from trainer.losses.registry import LOSSES


def pooled(width: int = 12) -> Pooled:
    torch.manual_seed(0)
    ours, theirs, hint, held = (torch.randn(5, width) for _ in range(4))
    bank = Bank(torch.arange(90, 95), (held, torch.randn(5, width)))
    states = [ours, hint]
    return Pooled(states, states, [theirs, torch.randn(5, width)], torch.arange(5), bank)


def cosine(ours: Tensor, theirs: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(ours, theirs)


def test_feature_with_cuts_by_hand() -> None:
    given, loss = pooled(), LOSSES["feature"]
    found = loss.pooled(given, {"distance": "cosine", "cuts": "3+8"})  # type: ignore[misc]
    ours, theirs = given.ours[0], given.theirs[0]
    whole = (cosine(ours, theirs) + cosine(given.ours[1], given.theirs[1])) / 2
    cut = [cosine(ours[:, :n], theirs[:, :n]) for n in (3, 8)]
    torch.testing.assert_close(found, (whole + cut[0] + cut[1]) / 3)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if "cuts" in loss.parameters])
def test_each_loss_that_is_cut(name: str) -> None:
    loss, given = LOSSES[name], pooled()
    assert loss.pooled is not None
    settings = {**loss.defaults, "negatives": 2.0}
    alone = given._replace(
        projected=[given.ours[0][:, :4]],
        ours=[given.ours[0][:, :4]],
        theirs=[given.theirs[0][:, :4]],
        bank=Bank(given.bank.keys, (given.bank.states[0][:, :4],)),  # type: ignore[union-attr]
    )
    expected = (loss.pooled(given, settings) + loss.pooled(alone, settings)) / 2
    torch.testing.assert_close(loss.pooled(given, {**settings, "cuts": "4"}), expected)
