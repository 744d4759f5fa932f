"""A headless Chromium, which opens a page as a reader does: what it drew, and what it complained of."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=15000"),
    *("--enable-logging=stderr", "--allow-file-access-from-files"),
)


class Opened(NamedTuple):
    """What became of a page."""

    dom: str
    complaints: list[str]
    """What the console was told."""

    @property
    def charts(self) -> dict[str, str]:
        """What stands in each chart's place."""
        places = re.split(r'<div class="chart[^"]*" id="([^"]+)"', self.dom)
        return dict(zip(places[1::2], places[2::2], strict=True))


def opened(page: Path, width: int = 1280, *, dark: bool = False, shot: Path | None = None) -> Opened:
    """Opens a page from its file."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium: no such program is installed here")
    with tempfile.TemporaryDirectory() as profile:
        flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},2000"]
        flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
        flags.append("--dump-dom" if shot is None else f"--screenshot={shot}")
        done = subprocess.run(
            [browser, *flags, page.absolute().as_uri()],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Opened(done.stdout, complaints)


MEASURE = """<script>
const shift = () => {
  const frame = document.querySelector('iframe').contentDocument.documentElement;
  document.title = `${frame.scrollWidth} of ${frame.clientWidth}`;
};
setTimeout(shift, 8000);
</script>"""


def widths(page: Path, width: int) -> tuple[int, int]:
    """How wide what a page holds is, and the page itself, in a window of some width."""
    frame = f'<iframe src="{page.name}" style="width:{width}px;height:800px;border:0"></iframe>'
    outer = page.with_name("outer.html")
    outer.write_text(f"<!DOCTYPE html><title>not yet</title>{frame}{MEASURE}")
    found = re.search(r"<title>(\d+) of (\d+)</title>", opened(outer).dom)
    assert found is not None
    return int(found[1]), int(found[2])
