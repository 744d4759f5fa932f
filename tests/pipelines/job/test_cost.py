"""What a plan says of hours, requests and euro: counted at the store, and by hand."""

import contextlib
import http.server
import itertools
import json
import threading

import pytest

import teachonce
from pipelines.cli.plan import plan_lines
from pipelines.job.cost import PART_BYTES, Expected, Prices, cost_of, read_requests, write_requests
from pipelines.job.plan import plan
from schemas import Cache
from schemas.errors import UsageError
from schemas.shards.group_counts import FOOTERS_HELD
from schemas.storage.storage import Storage
from tests.pipelines.helpers import config, run
from tests.schemas.requests import asked, of_shards
from tests.schemas.versions.test_row_counts import grown
from trainer.stream.order import Order
from trainer.stream.runs import read_runs
from trainer.stream.side import Side

EPOCHS = 3
UNITS = {"unit_tokens": 400, "row_group_tokens": 100}


def reads_of(path):
    """Row groups with rows to train on, and what a student asks of shards in so many epochs."""
    with asked() as reads:
        side = Side(cache=Cache.open(path), eval_fraction=0.05, is_eval=False)
        order = Order(counts=(side.counts(),), batch_size=4, row_groups=2, lanes=1)
        runs = list(itertools.islice(read_runs([side], order, range(1), 0, 0), EPOCHS * order.num_runs))
    assert {one.epoch for one in runs} == set(range(EPOCHS))
    return int((side.counts() > 0).sum()), len(of_shards(reads))


def test_writes_are_those_of_the_run(tmp_path, corpus, teacher):
    planned = plan(config(corpus, teacher, tmp_path / "c", **UNITS), epochs=EPOCHS)
    with asked() as writes:
        done = run(corpus, teacher, tmp_path / "c", **UNITS)
    assert done.shards == planned.expected.shards > 4
    assert len([one for one in of_shards(writes) if one[0] == "put"]) == planned.cost.write_requests
    groups, reads = reads_of(tmp_path / "c")
    most = read_requests(done.shards, groups, EPOCHS)
    assert most - EPOCHS < reads <= most, "a row group that an epoch ends and the next begins with is held"
    assert planned.cost.read_requests == pytest.approx(reads, rel=0.15)


def test_more_shards_than_footers_held_are_reckoned_with_a_footer_a_row_group(tmp_path):
    cache = grown(tmp_path / "c", 1, shards=FOOTERS_HELD + 16, rows=4)
    groups, reads = reads_of(tmp_path / "c")
    most = read_requests(len(cache.shards), groups, EPOCHS)
    assert EPOCHS * groups + len(cache.shards) < reads <= most == 2 * EPOCHS * groups


class Counting(http.server.BaseHTTPRequestHandler):
    """A store that takes everything, and counts it."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        self.server.asked.append(self.command)
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        if self.command == "POST" and "uploads" not in self.path:
            body = b'<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>'
        body = body if self.command == "POST" else b""
        self.send_response(200)
        self.send_header("ETag", '"e"')
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT  # noqa: N815

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def counting_store(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        yield server.asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("size", [1000, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 27 * 10**6])
def test_a_shard_goes_up_in_as_many_requests(monkeypatch, size):
    """Shards of 2^20 tokens by the default policy are of about the last size."""
    with counting_store(monkeypatch) as asked_for:
        Storage.at("s3://bucket/cache").put("one.parquet", bytes(size))
        assert len(asked_for) == write_requests(size, 1)
    assert write_requests(7 * size, 7) == 7 * len(asked_for)


EXPECTED = Expected(
    shards=1000,
    row_groups=32_000,
    size_bytes=25 * 10**9,
    wall_seconds=1.0,
    tokens_per_second=500.0,
    teacher_tokens_per_second=600.0,
    decode_tokens_per_second=1e6,
    students=1,
)


def test_euro_by_hand():
    prices = Prices(
        teacher_rate=10_000.0, price_per_hour=2.5, storage_price=0.02, write_price=0.005, read_price=0.0004
    )
    found = cost_of(EXPECTED, tokens=10**9, epochs=3, prices=prices)
    assert found.accelerator_hours == pytest.approx(10**9 / 10_000 / 3600) == pytest.approx(27.7777777)
    assert found.accelerator_euro == pytest.approx(69.4444444)
    assert found.storage_euro_a_month == pytest.approx(0.5)
    assert (found.write_requests, found.read_requests) == (1000 * 7, 2 * 3 * 32_000)
    assert (found.write_euro, found.read_euro) == (pytest.approx(0.035), pytest.approx(0.0768))
    told = cost_of(EXPECTED, tokens=10**9, epochs=1, prices=Prices())
    assert (told.teacher_rate, told.accelerator_hours) == (500, pytest.approx(10**9 / 500 / 3600))
    assert {told.accelerator_euro, told.write_euro, told.read_euro, told.storage_euro_a_month} == {None}


@pytest.mark.parametrize(
    ("prices", "what"),
    [
        ({"teacher_rate": 0.0}, "--teacher_rate must be a number above 0"),
        ({"teacher_rate": float("inf")}, "--teacher_rate must be a number above 0"),
        ({"price_per_hour": -1.0}, "--price_per_hour must be from 0 to 1,000,000 euro"),
        ({"storage_price": 2e6}, "--storage_price must be from 0"),
        ({"read_price": float("nan")}, "--read_price must be from 0"),
    ],
)
def test_what_gives_no_number_is_refused(prices, what):
    with pytest.raises(UsageError, match=what):
        Prices(**prices)


def test_the_command_tells_what_it_costs(tmp_path, corpus, teacher, capsys):
    flags = ["--corpus", str(corpus), "--teacher", str(teacher), "--task", "causal-lm", "--max_length", "24"]
    flags += ["--cache", str(tmp_path / "c"), "--teacher_rate", "4000", "--price_per_hour", "2.50"]
    flags += ["--storage_price", "0.02", "--no_progress"]
    assert teachonce.main(["plan", *flags]) == 0
    table = capsys.readouterr().out
    assert teachonce.main(["plan", *flags, "--write_price", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    hours = told["tokens"] / 4000 / 3600
    assert told["cost"]["accelerator_hours"] == pytest.approx(hours)
    assert told["cost"]["accelerator_euro"] == pytest.approx(2.5 * hours)
    assert told["cost"]["storage_euro_a_month"] == pytest.approx(0.02e-9 * told["expected"]["size_bytes"])
    assert told["cost"]["write_euro"] == told["cost"]["write_requests"] / 1000 > 0
    assert told["cost"]["read_euro"] is None
    assert "cost: hours at 4,000.0 tokens/s" in table
    assert "euro a month: storage" in table
    assert "euro: writes" not in table, "no price, no line"


def test_nothing_new_costs_nothing(whole, corpus, teacher):
    planned = plan(config(corpus, teacher, whole[0]), prices=Prices(teacher_rate=9.0))
    assert planned.cost is None
    assert not any(name.startswith("cost") for name, _ in plan_lines(planned))
