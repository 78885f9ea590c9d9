"""The loader's and the cache's rates beside their limits, in turns of one run.

What is asked for (0.9, 0.85, 0.7) is measured by `python -m benchmarks` on a machine that has
nothing else to do. The floors here are what twenty busy processes on two cores left of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import packing
import pytest
import raw_dataset

import msdata
from benchmarks.questions import cache_rates, load_rates, peer_rates_mpi
from msdata.schema import MANTIS_SHRIMP

pytestmark = pytest.mark.speed
_TRIES = 4


def assert_reaches(floor: float, measure: Callable[[], dict[str, Any]], name: str) -> None:
    """One of some measurements has the ratio: what else runs disturbs, but never helps, ours."""
    found = []
    for _ in range(_TRIES):
        found.append(measure()["contestants"][name]["of_limit"])
        if found[-1]["median"] > floor:
            return
    raise AssertionError(found)


def test_hot_epochs_come_at_the_rate_of_bare_reads(tmp_path: Path) -> None:
    data = raw_dataset.write_raw(tmp_path / "data", MANTIS_SHRIMP, (128,) * 5, has_checksums=True)
    split = msdata.open(data).split("train")
    assert_reaches(0.5, lambda: load_rates.measure_from_memory(split, 7), load_rates.LOADER)


def test_local_hits_come_at_the_rate_of_bare_copies_from_shared_memory(
    packed: Callable[..., Path], mantis_source: Path
) -> None:
    split = msdata.open(packed(mantis_source, "--split", "1,0,0")).split("train")
    assert_reaches(0.6, lambda: cache_rates.measure(split, 15), cache_rates.LOADER)


@pytest.mark.mpi
@pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py")
def test_records_of_peers_come_at_the_rate_of_bare_one_sided_reads() -> None:
    assert_reaches(0.4, lambda: peer_rates_mpi.measure(128, 9), "LinkFetcher")
