"""A headless browser for the tests of HTML pages: what it drew, and what its console said."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A page as the browser has it once its scripts have run."""

    dom: str
    console: list[str]


def find_browser() -> str | None:
    """Chromium under one of its names."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


needs_browser = pytest.mark.skipif(
    find_browser() is None,
    reason="no Chromium here; .ci/run installs it, on Debian: apt-get install chromium",
)


def open_page(page: Path, profile: Path, *options: str) -> Opened:
    """Opens a page without a screen.

    Args:
        page: an HTML file.
        profile: an empty folder of the browser's own.
        options: more of the browser's options.

    Returns:
        Its elements after scripts, and each line that it wrote to the console.
    """
    browser = find_browser()
    assert browser is not None
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--no-first-run", "--disable-extensions", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=2000", *options, "--dump-dom"]
    ended = subprocess.run(
        [*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    assert ended.returncode == 0, ended.stderr
    console = [line for line in ended.stderr.splitlines() if re.search(r"CONSOLE[(:]", line)]
    return Opened(dom=ended.stdout, console=console)
