"""Settings of all tests, and sources to pack, made once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import packing
import pytest
import training
from hypothesis import settings
from slurm_cluster import SlurmCluster, why_not

# Examples are timed by the wall clock: beside other work a deadline would fail sound tests.
settings.register_profile("msdata", deadline=None)
settings.load_profile("msdata")

# Side by side, threads of torch that wait for cores in use take six times as long as one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it starts in the background ignore Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 objects of 1 KB in an inferred schema."""
    return packing.make_source(tmp_path_factory.mktemp("tiny"), 300, packing.tiny_object)


@pytest.fixture(scope="session")
def mantis_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 objects of the default schema."""
    return packing.make_source(tmp_path_factory.mktemp("mantis"), 40, packing.mantis_object)


@pytest.fixture(scope="session")
def flawed_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 tiny objects, a fifth of them unusable in different ways."""
    folder = packing.make_source(tmp_path_factory.mktemp("flawed"), 120, packing.tiny_object)
    for number in range(0, 120, 20):
        path = next(folder.rglob(f"{number:07d}.*"))
        path.write_bytes(path.read_bytes()[:-200])
        next(folder.rglob(f"{number + 3:07d}.*")).write_bytes(b"")
        wrong = {**packing.tiny_object(0), "image": np.zeros((3, 8, 9), np.float32)}
        packing.write_object(next(folder.rglob(f"{number + 6:07d}.*")), wrong)
    packing.write_catalog(folder / "catalog.csv", [n for n in range(120) if n % 20 != 9])
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the data set that one process makes of a source; each is packed once a session."""
    made: dict[tuple[object, ...], Path] = {}

    def pack_once(source: Path, *options: str) -> Path:
        key = (source, *options)
        if key not in made:
            out = tmp_path_factory.mktemp("packed") / "out"
            process = packing.pack(source, out, *options, "--jobs", "1")
            assert process.returncode == 0, process.stderr
            assert process.stderr == ""
            made[key] = out
        return made[key]

    return pack_once


@pytest.fixture(scope="session")
def galaxies(tmp_path_factory: pytest.TempPathFactory, packed: Callable[..., Path]) -> Path:
    """A small data set to train on: 51 samples in "train", 9 in "val"."""
    source = training.make_source(tmp_path_factory.mktemp("galaxies"))
    return packed(source, "--split", "0.85,0.15,0", "--max-nan-fraction", "1")


@pytest.fixture(scope="session")
def ranks() -> Iterator[training.Ranks]:
    """Processes that train."""
    with training.Ranks() as made:
        yield made


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A Slurm of two nodes on this machine."""
    reason = why_not()
    if reason:
        assert not os.environ.get("CI"), f"CI must not skip Slurm tests: {reason}"
        pytest.skip(reason)
    with SlurmCluster() as cluster:
        yield cluster


# Files run side by side (`make test`): long ones start first, so that none is alone at the end.
_FIRST = (
    *("test_slurm_jobs.py", "test_readme.py", "test_fetch.py", "test_pack_resume.py"),
    *("test_train_resume.py", "test_slurm_smoke.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first; within a file the order stays."""
    rank = {name: number for number, name in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(_FIRST)))
