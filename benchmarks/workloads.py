"""Data sets that benchmarks run on: made once by the product's own commands, kept for the next."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONTAINERS = ("tar", "hdf5")


def run_msdata(*arguments: str | Path) -> None:
    """Runs and shows an `msdata` command; ends this process with its exit code if it fails."""
    _run("msdata", arguments)


def run_mstrain(*arguments: str | Path) -> None:
    """Runs and shows an `mstrain` command; ends this process with its exit code if it fails."""
    _run("mstrain", arguments)


def _run(module: str, arguments: Sequence[str | Path]) -> None:
    words = [str(a) for a in arguments]
    print(f"\n$ {module} {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", module, *words]).returncode
    if code:
        raise SystemExit(code)


def make_objects(folder: Path, num_objects: int) -> Path:
    """Mock objects, unless they are there.

    Args:
        folder: the benchmarks' data.
        num_objects: how many.

    Returns:
        Their folder; `catalog.csv` is in it.
    """
    objects = folder / f"objects-{num_objects}"
    if not (objects / "catalog.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run_msdata("mock", objects, "--n", str(num_objects), "--seed", "0")
    return objects


def make_dataset(folder: Path, container: str, num_objects: int) -> Path:
    """A data set whose one split, train, holds all mock objects; packed unless it is there.

    Args:
        folder: the benchmarks' data.
        container: "tar" or "hdf5".
        num_objects: how many.

    Returns:
        The data set's folder.
    """
    out = folder / f"{container}-{num_objects}"
    if not (out / "dataset.json").exists():
        objects = make_objects(folder, num_objects)
        # No object is rejected: the number of samples is part of the question.
        options = ("--split", "1,0,0", "--max-nan-fraction", "1", "--resume")
        catalog = objects / "catalog.csv"
        run_msdata("pack", objects, out, "--catalog", catalog, "--format", container, *options)
    return out
