"""What a log holds where nobody sits: whole lines with their time; and how soon a missing network is told."""

import io
import logging
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from pipelines.fingerprint.hub_names import locate
from schemas.cli.logs import log_on_stderr, stamp
from schemas.errors import UsageError
from schemas.network import hub_folder, refuse_unreachable, why_no_hub
from trainer.students.opening import open_config
from trainer.training.log_lines import line_of

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"


class Screen(io.StringIO):
    def __init__(self, *, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_has_a_time_where_nobody_sits(monkeypatch, terminal):
    screen = Screen(terminal=terminal)
    monkeypatch.setattr("sys.stderr", screen)
    with log_on_stderr("trainer", logging.INFO, "teachonce: %(message)s"):
        logging.getLogger("trainer.x").info("step %d", 3)
    told = screen.getvalue()
    assert re.fullmatch("teachonce: step 3\n" if terminal else f"{TIME} teachonce: step 3\n", told)
    assert re.fullmatch(TIME, stamp())


def test_a_log_step_is_one_line():
    logs = {"loss": 3.21449, "kl": 2.9, "learning_rate": 0.0005, "epoch": 0.2, "total_flos": 1e18, "rows": 7}
    assert (
        line_of(20, 3000, 0.2, logs)
        == "step 20/3,000 epoch 0.2 loss 3.214 kl 2.9 learning_rate 0.0005 rows 7"
    )
    assert line_of(1, 2, None, {}) == "step 1/2"


@pytest.fixture
def nowhere(monkeypatch):
    """A hub at a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")


def test_a_hub_that_does_not_answer_is_told_in_seconds(nowhere):
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"no network: 127\.0\.0\.1"):
        locate("no-such-org/no-such-model")
    with pytest.raises(UsageError, match="config cannot be opened"):
        open_config("no-such-org/no-such-model")
    assert time.monotonic() - begun < 10  # five tries take 15 s each


def test_a_hub_that_answers_and_a_proxy_and_offline_are_left_to_the_client(nowhere, monkeypatch):
    assert why_no_hub() is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert why_no_hub() is None
    assert why_no_hub() is not None
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert why_no_hub() is None
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert why_no_hub() is None


@pytest.mark.parametrize(
    "line",
    [
        "train --cache c --student no-such-org/no-such-model --output_dir o",
        "train --cache c --student shrink:layers=1 --teacher no-such-org/no-such-model --output_dir o",
        "evaluate --cache c --student no-such-org/no-such-model",
        "evaluate --cache c --students a no-such-org/no-such-model",
        "precompute --corpus c.jsonl --teacher no-such-org/no-such-model@main --task causal-lm --cache c",
        "plan --corpus c.jsonl --teacher no-such-org/no-such-model --task causal-lm --cache c",
        "verify c --teacher no-such-org/no-such-model",
        "inspect --corpus c.jsonl --teacher no-such-org/no-such-model",
        "train --cache c --student no-such-model --output_dir o",
        "evaluate --cache c --student no-such-model",
        "precompute --corpus c.jsonl --teacher no-such-model --task causal-lm --cache c",
    ],
)
def test_a_hub_name_without_a_network_is_told_before_torch_is_there(nowhere, line, tmp_path):
    (tmp_path / "a").mkdir()
    code = f"import sys, teachonce; s = teachonce.main({line.split()!r}); print(s, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2 False\n"
    assert "neither a folder nor a model of the hub" in done.stderr
    assert "no network: 127.0.0.1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_name_that_was_downloaded_is_no_error(nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--some--model").mkdir()
    refuse_unreachable("--teacher", "some/model@main")
    refuse_unreachable("--teacher", str(tmp_path))
    with pytest.raises(UsageError, match="no network"):
        refuse_unreachable("--teacher", "some/other")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        refuse_unreachable("--teacher", "some/other")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HF_HOME": "~/elsewhere"},
        {"XDG_CACHE_HOME": "/x"},
        {"HUGGINGFACE_HUB_CACHE": "/y"},
        {"HF_HUB_CACHE": "$HOME/z", "HF_HOME": "/w"},
    ],
)
def test_where_the_hub_keeps_models_is_where_its_client_does(environment, monkeypatch):
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub import constants as c; print(c.HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert str(hub_folder("a/b").parent) == os.path.expanduser(theirs.strip())


def test_a_resolver_that_hangs_is_left_behind_and_asked_once(monkeypatch):
    """Two servers of names that do not answer are ten seconds and more."""
    asked = []

    def hang(place, _):
        asked.append(place)
        time.sleep(1)
        raise TimeoutError

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://slow.invalid")
    monkeypatch.setattr("schemas.network._SECONDS", 0.2)
    monkeypatch.setattr("socket.create_connection", hang)
    assert "no answer in 0.2 s" in why_no_hub()
    assert "no answer in 0.2 s" in why_no_hub()
    assert len(asked) == 1
