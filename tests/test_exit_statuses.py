"""The table of exit statuses says what the code does."""

import re
import signal
from pathlib import Path

import teachonce
from schemas.cli import process
from schemas.errors import TeachonceError, TooManyRejectsError, UsageError

ROOT = Path(teachonce.__file__).parent


def test_exit_statuses_are_those_of_the_docs():
    """Each number of the table is a constant or a signal that is caught, and the other way round."""
    rows = re.findall(r"^\| ([0-9]+) \| (.*?) \|", (ROOT / "docs/exit-statuses.md").read_text(), re.MULTILINE)
    told = {int(number): meaning for number, meaning in rows}
    constants = {process.DONE, process.FAILED, process.USAGE, process.TOO_MANY_REJECTS, process.OUT_OF_TIME}
    assert told.keys() == constants | {128 + number for number in process._SIGNALS}
    assert all(signal.Signals(n).name in told[128 + n] for n in process._SIGNALS)
    errors = [UsageError("u"), TooManyRejectsError("t"), TeachonceError("f"), KeyboardInterrupt()]
    assert [process.status_of(error) for error in errors] == [2, 3, 1, 130]
    shown = teachonce.usage()
    assert all(f" {number} " in shown for number in sorted(constants)), shown
    assert "docs/exit-statuses.md" in shown
