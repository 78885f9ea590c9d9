"""The installation that the tests run in is a whole one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI") == "true"


def test_the_compiled_copies_are_there() -> None:
    if importlib.util.find_spec("msdata._stream_fill") is None:
        assert not IN_CI, "CI has a compiler and Python.h, and yet stream_fill.c was not compiled"
        pytest.skip("msdata/stream_fill.c was not compiled: no compiler or no Python.h")


@pytest.mark.parametrize("command", ["msdata", "mstrain"])
def test_the_console_scripts_run(command: str) -> None:
    script = Path(sys.executable).with_name(command)
    if not script.exists():
        assert not IN_CI, f"{script} is missing"
        pytest.skip("msdata is on the path, but not installed")
    found = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith(f"{command} ")
    assert found.stderr == ""


@pytest.mark.parametrize("package", ["msdata", "mstrain"])
def test_the_packages_are_marked_as_typed(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).with_name("py.typed").exists()
