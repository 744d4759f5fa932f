"""The token budget: found on real batches, kept while it is the best, halved for good when memory does not suffice."""

import pytest
import torch

from pipelines.job.pipeline import num_units, teacher_job
from pipelines.job.run import prepare
from pipelines.scoring import handler
from pipelines.scoring.handler import LazyScorer
from pipelines.teacher.batching import each_batch, padded_width, plan_batches
from pipelines.teacher.budget import GAIN, LARGEST_TOKENS, START_TOKENS, Budget
from pipelines.teacher.model import Teacher
from tests.pipelines.helpers import config, documents, read, run, write_jsonl


def tried(speed_of, *, width=512, batches=40, fits=LARGEST_TOKENS):
    """The budgets of full batches, one after the other, on a device of this speed and memory."""
    budget, seen = Budget.of(None, "cuda"), []
    for _ in range(batches):
        seen.append(budget.tokens)
        if budget.tokens > fits:
            budget.failed(budget.tokens)
        else:
            budget.took(
                width=width, padded_tokens=budget.tokens, seconds=budget.tokens / speed_of(budget.tokens)
            )
    return budget, seen


def test_a_budget_doubles_as_long_as_that_is_faster_and_then_stays():
    knee = 2**19
    budget, seen = tried(lambda tokens: min(tokens, knee))
    assert (budget.tokens, budget.trying) == (knee, False)
    assert seen[0] == START_TOKENS["cuda"]
    assert max(seen) == 2 * knee, "one step beyond is how it is known to be the best"
    assert set(seen[-20:]) == {knee}


@pytest.mark.parametrize(("gain", "expected"), [(GAIN + 0.01, LARGEST_TOKENS), (GAIN - 0.01, 2**16)])
def test_a_small_gain_is_not_worth_the_memory(gain, expected):
    budget, _ = tried(lambda tokens: gain ** (tokens.bit_length()))
    assert budget.tokens == expected


def test_memory_that_does_not_suffice_halves_the_budget_for_good():
    budget, seen = tried(lambda tokens: tokens, fits=300_000)
    assert budget.tokens == 2**18
    assert sum(tokens > 300_000 for tokens in seen) == 1, "the same failure is not paid for twice"


def test_the_first_batch_of_a_size_may_be_slow():
    """It pays for kernels and memory; the better of two judges."""
    budget = Budget.of(None, "cuda")
    for seconds in (9.0, 1.0, 9.0, 0.5):
        budget.took(width=512, padded_tokens=budget.tokens, seconds=seconds)
    assert budget.tokens == 2**18
    assert budget.trying


def test_batches_that_say_nothing_do_not_judge():
    budget = Budget.of(None, "cuda")
    for _ in range(9):
        budget.took(width=512, padded_tokens=budget.tokens // 2, seconds=1.0)
    assert budget.tokens == 2**16, "half full batches"
    for _ in range(2):
        budget.took(width=512, padded_tokens=budget.tokens, seconds=1.0)
    for _ in range(9):
        budget.took(width=100, padded_tokens=budget.tokens, seconds=0.01)
    assert budget.tokens == 2**17, "short examples are fast by themselves"
    for _ in range(2):
        budget.took(width=512, padded_tokens=budget.tokens, seconds=2.0)
    assert (budget.tokens, budget.trying) == (2**16, False), "the next unit's long examples judge"


@pytest.mark.parametrize(("given", "device"), [(1000, "cuda"), (1000, "cpu"), (None, "cpu")])
def test_a_given_budget_and_a_cpus_stay(given, device):
    budget = Budget.of(given, device)
    for _ in range(9):
        budget.took(width=10, padded_tokens=budget.tokens, seconds=1 / budget.tokens)
    assert budget.tokens == given or START_TOKENS["cpu"]
    assert not budget.trying


def test_a_batch_that_failed_below_the_budget_halves_what_failed():
    budget = Budget.of(4096, "cuda")
    budget.failed(1000)
    assert budget.tokens == 500
    budget.failed(1)
    assert budget.tokens == 1


def test_a_plan_follows_the_budget_as_it_stands():
    budget, taken = Budget.of(100, "cpu"), []
    for batch in each_batch([10] * 40, lambda: budget.tokens, on_device=False):
        taken.append(len(batch))
        if len(taken) == 2:
            budget.failed(100)
    assert taken == [10, 10, 5, 5, 5, 5]


def test_a_device_gets_multiples_that_cost_little():
    for longest in range(1, 1100):
        width = padded_width(longest, on_device=True)
        assert longest <= width <= longest * (1 + 1 / 32)
        assert width % 8 == 0 or longest < 256
        assert padded_width(longest, on_device=False) == longest


def test_no_batch_is_larger_than_the_budget_also_where_rows_are_padded_further():
    lengths = [1 + 37 * i % 400 for i in range(500)]
    for batch in plan_batches(lengths, 2048, on_device=True):
        width = padded_width(max(lengths[i] for i in batch), on_device=True)
        assert len(batch) == 1 or width * len(batch) <= 2048


def test_after_a_failure_no_batch_of_the_process_is_tried_that_large_again(
    tmp_path, teacher, corpus, whole, monkeypatch
):
    """A device whose memory holds 50 padded tokens; batches of 400 were asked for, in several units."""
    answer, failed = Teacher.answer, []

    def run_out(self, batch):
        if batch.input_ids.numel() > 50:
            failed.append(batch.input_ids.numel())
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return answer(self, batch)

    monkeypatch.setattr(Teacher, "answer", run_out)
    summary = run(corpus, teacher, tmp_path / "c", batch_tokens=400, unit_tokens=300)
    assert summary.shards > 2
    assert summary.rejects == {}
    assert 1 <= len(failed) <= 3
    assert failed == sorted(set(failed), reverse=True), "each size failed once, over all units"
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()


@pytest.mark.parametrize(
    ("weight", "unit_tokens", "workers", "expected"),
    [(0, 100, 1, 1), (250, 100, 1, 3), (250, 100, 2, 4), (90, 100, 8, 1), (101, 100, 8, 8)],
)
def test_every_worker_gets_as_many_units(weight, unit_tokens, workers, expected):
    assert num_units(weight, unit_tokens, workers) == expected


def test_a_process_opens_its_teacher_once_whatever_the_threads_and_units(
    tmp_path, teacher, corpus, monkeypatch
):
    opened, made = handler.open_teacher, []

    def counted(*arguments):
        made.append(arguments)
        return opened(*arguments)

    monkeypatch.setattr(handler, "open_teacher", counted)
    threads = ("--direct_num_workers=3", "--direct_running_mode=multi_threading")
    summary = run(corpus, teacher, tmp_path / "c", unit_tokens=200, beam_options=threads)
    assert summary.shards >= 3
    assert len(made) == 1


def test_a_run_with_nothing_new_opens_no_teacher(tmp_path, teacher, monkeypatch):
    file = write_jsonl(tmp_path / "c.jsonl", documents(3))
    run(file, teacher, tmp_path / "c")
    monkeypatch.setattr(handler, "open_teacher", None)
    assert not run(file, teacher, tmp_path / "c").committed


def test_the_budget_outlives_a_unit(tmp_path, teacher, corpus):
    job, _ = prepare(config(corpus, teacher, tmp_path / "c", batch_tokens=4096))
    scorer = LazyScorer(teacher_job(job))
    assert scorer.score([]).work["budget_tokens"] == 4096
    scorer._scorer.budget.failed(4096)
    assert scorer.score([]).work["budget_tokens"] == 2048
