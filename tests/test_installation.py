"""The installation that the tests run in is a whole one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]

IN_CI = os.environ.get("CI") == "true"


def test_the_compiled_copies_are_there() -> None:
    if importlib.util.find_spec("msdata.core._stream_fill") is None:
        assert not IN_CI, "CI has a compiler and Python.h, and yet stream_fill.c was not compiled"
        pytest.skip("msdata/core/stream_fill.c was not compiled: no compiler or no Python.h")


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


def lower_bounds(lines: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The `>=` of each requirement that holds for this Python, extras left out."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        for bound in requirement.specifier:
            if bound.operator == ">=":
                name = canonicalize_name(requirement.name)
                found[name] = max(Version(bound.version).release, found.get(name, ()))
    return found


def test_no_package_that_is_required_asks_for_a_later_numpy_than_setup_py() -> None:
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    listed = re.search(r"install_requires=\[(.*?)\]", text, re.S)
    assert listed is not None
    ours = lower_bounds(re.findall(r'^ *"([^"]+)",', listed[1], re.M))
    assert set(ours) >= {"numpy", "opencv-python-headless"}
    for name in set(ours) - {"numpy"}:
        theirs = lower_bounds(importlib.metadata.requires(name) or ()).get("numpy", ())
        assert theirs <= (*ours["numpy"], 0, 0), name


def test_the_tested_versions_are_those_that_setup_py_allows() -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    versions = {canonicalize_name(name): Version(text) for name, text in pinned.items()}
    for line in importlib.metadata.requires("msdata") or ():
        requirement = Requirement(line)
        version = versions.get(canonicalize_name(requirement.name))
        if version is not None:
            assert version in requirement.specifier, line
