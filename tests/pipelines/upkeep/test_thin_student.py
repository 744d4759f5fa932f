"""From a real teacher to a thinned cache to a student, by the commands; and what its stream carries is that cache."""

import itertools
import json
import logging

import numpy as np
import pytest

import teachonce
from schemas import Cache
from schemas.policies import Threshold
from tests.pipelines.helpers import all_rows
from tests.trainer.tiny import STUDENT
from trainer.batches.collate import Collation
from trainer.stream.order import Order
from trainer.stream.replay import Address, Share, read_batches
from trainer.stream.side import Side

OLD, NEW = Threshold(tau=1 / 32), Threshold(tau=1 / 8)


@pytest.fixture(scope="module")
def caches(tmp_path_factory, teacher, corpus):
    """Draws of a real teacher, and fewer of them."""
    folder = tmp_path_factory.mktemp("student")
    asked = {"corpus": corpus, "teacher": teacher, "cache": folder / "cache", "keep": "threshold:1/32"}
    own = {"task": "causal-lm", "max_length": 24, "unit_tokens": 400, "row_group_tokens": 100}
    flags = [f"--{name}={value}" for name, value in (asked | own).items()]
    assert teachonce.main(["precompute", *flags, "--no_progress"]) == 0
    call = ["thin", str(folder / "cache"), "--keep=threshold:1/8", f"--out={folder / 'small'}"]
    assert teachonce.main(call) == 0
    return Cache.open(folder / "cache"), Cache.open(folder / "small")


def stored(cache):
    """(tokens, position's token, id, weight) of every entry, as the cache's columns say."""
    rows = all_rows(cache)
    tokens = np.split(rows.input_ids.values, rows.input_ids.offsets[1:-1])
    row = np.repeat(np.arange(len(rows)), np.diff(rows.position_offsets))
    exact, drawn = rows.kept_counts, rows.sampled_counts
    position = np.concatenate([np.repeat(np.arange(len(row)), counts) for counts in (exact, drawn)])
    ids = np.concatenate([rows.kept_ids, rows.ragged("sampled_ids").values])
    weights = np.concatenate([np.exp(rows.kept_logprobs()), np.full(drawn.sum(), cache.spec.keep.tau)])
    place = rows.position_index()
    each = zip(position.tolist(), ids.tolist(), weights.tolist(), strict=True)
    return sorted((tuple(tokens[row[n]].tolist()), int(place[n]), i, weight) for n, i, weight in each)


def streamed(cache):
    """The same of one epoch, as a student gets it."""
    side, found = Side(cache=cache, eval_fraction=0.0, is_eval=False), []
    order, share = Order(counts=(side.counts(),), batch_size=4, seed=3), Share(batch_size=4)
    collation = Collation(student_vocab=cache.spec.vocab_size, pad_id=0)
    batches = read_batches([side], order, collation, share, Address(0, 0))
    for _, batch in itertools.islice(batches, share.num_batches(order)):
        lengths = batch.attention_mask.sum(1).tolist()
        tokens = [tuple(ids[:n]) for ids, n in zip(batch.input_ids.tolist(), lengths, strict=True)]
        entries = (batch.targets.position, batch.targets.ids, batch.targets.weights)
        each = zip(*(part.tolist() for part in entries), strict=True)
        found += [(tokens[batch.row[n]], int(batch.token[n]), i, weight) for n, i, weight in each]
    batches.close()
    return sorted(found)


def test_the_stream_of_a_thinned_cache_is_that_cache(caches):
    larger, small = caches
    assert (larger.spec.keep, small.spec.keep) == (OLD, NEW)
    found, expected = streamed(small), stored(small)
    assert [entry[:3] for entry in found] == [entry[:3] for entry in expected]
    np.testing.assert_allclose([entry[3] for entry in found], [entry[3] for entry in expected], rtol=1e-6)
    assert len(found) == small.totals.entries < 0.7 * larger.totals.entries
    assert [entry[:3] for entry in streamed(larger)] != [entry[:3] for entry in found]


def test_a_student_learns_from_it(caches, tmp_path, capsys, monkeypatch):
    """On documents that it never saw, measured by the larger cache too: the thinned one is an estimate of the same."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    given = {"student": tmp_path / "student.json", "learning_rate": 5e-3, "lr_scheduler_type": "constant"}
    given |= {"eval_fraction": 0.25, "logging_steps": 5.0, "save_strategy": "no", "disable_tqdm": "true"}
    given |= {"per_device_train_batch_size": 8, "dataloader_pin_memory": "false"}
    flags = [f"--{name}={value}" for name, value in given.items()]
    found = {}
    for steps in (1, 60):
        out = tmp_path / f"{steps}-steps"
        call = ["train", f"--cache={caches[1].storage.root}", f"--output_dir={out}", f"--max_steps={steps}"]
        assert teachonce.main([*call, *flags, "--use_cpu", "--losses", "kl=1"]) == 0
        assert capsys.readouterr().err.count(f"kl from {NEW}: unbiased\n") == 1
        for cache in caches:
            measure = ["evaluate", f"--cache={cache.storage.root}", f"--student={out}", "--device=cpu"]
            assert teachonce.main([*measure, "--speed_seconds=0", "--json"]) == 0
            metrics = json.loads(capsys.readouterr().out)["metrics"]
            found[steps, str(cache.spec.keep)] = metrics["kl_nats"]
    logs = json.loads((tmp_path / "60-steps" / "trainer_state.json").read_text())["log_history"]
    losses = [log["kl"] for log in logs if "kl" in log]
    assert losses[-1] < 0.8 * losses[0]
    for cache in caches:
        assert found[60, str(cache.spec.keep)] < 0.8 * found[1, str(cache.spec.keep)]
    for steps in (1, 60):
        assert found[steps, str(NEW)] == pytest.approx(found[steps, str(OLD)], rel=0.1)
