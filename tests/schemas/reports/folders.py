"""Output folders of `train`, made by hand: what a report reads of them."""

import json
import struct
from pathlib import Path

from schemas.reports.evaluations import (
    Candidate,
    Closer,
    ConfidenceBin,
    EntropyBin,
    Evaluation,
    Example,
    Position,
)

SEAL = "5" * 64


def write_run(
    folder: Path, *, losses=None, settings=None, steps=40, seal=SEAL, shape=(3, 5), **record
) -> Path:
    """A finished student: its record, its log and its weights."""
    losses = losses or {"kl": 1.0, "ce": 0.0}
    folder.mkdir(parents=True)
    told = {
        "caches": [{"path": "./cache", "version": 0, "weight": None, "header_hash": "ab" * 16}],
        "losses": losses,
        "settings": {"learning_rate": 0.003, **(settings or {})},
        "step": steps,
        "seed": 1,
        "seal": seal,
        **record,
    }
    (folder / "teachonce.json").write_text(json.dumps(told))
    history = []
    for step in range(10, steps + 1, 10):
        history.append({"step": step, "loss": 5 / step, **dict.fromkeys(losses, 9 / step), "epoch": 0.1})
        history.append({"step": step, **{f"eval_{name}": 10 / step for name in losses}})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    header = {"__metadata__": {}, "w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 60]}}
    data = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + bytes(60))
    return folder


def evaluation(*, text="the end", seal=SEAL, **changes) -> Evaluation:
    """One with everything that a page shows."""
    near = Candidate(id=1, text=text, probability=0.9)
    far = Candidate(id=2, text="b", probability=0.1)
    place = Position(index=2, before=text, gold=text, loss_nats=2.5, teacher=(near, far), student=(far, near))
    closer = Closer(
        rows=2,
        positions=30,
        is_whole=True,
        right_is="label",
        student=(
            ConfidenceBin(positions=10, confidence=0.3, accuracy=0.2),
            ConfidenceBin(positions=20, confidence=0.9, accuracy=0.7),
        ),
        teacher=(ConfidenceBin(positions=30, confidence=0.8, accuracy=0.8),),
        by_entropy=(
            EntropyBin(low_nats=0.0, high_nats=1.0, positions=20, agreement=0.75, kl_nats=0.1),
            EntropyBin(low_nats=1.0, high_nats=2.0, positions=10, agreement=0.5, kl_nats=0.3),
        ),
        worst=(Example(example_id="0a", text=text, tokens=3, loss_nats=1.5, places=(place,)),),
    )
    told = {
        "metrics": {"kl_nats": 0.25, "top1_agreement": 0.5},
        "models": [{"name": "student", "parameters": 15, "tokens_per_second": 1000.0}],
    }
    whole = {
        "format": 1,
        "seal": seal,
        "time": "2024-01-01T00:00:00+00:00",
        "cache": "./cache",
        "cache_version": 0,
        "evaluated": told,
        "closer": (closer,),
    }
    return Evaluation(**(whole | changes))
