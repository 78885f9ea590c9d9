"""The cache's rates beside their limits, in turns of one run; floors far below what is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import packing
import pytest

import msdata
from benchmarks import cache_rates, peer_rates_mpi

pytestmark = pytest.mark.speed


def test_local_hits_come_at_the_rate_of_bare_copies_from_shared_memory(
    packed: Callable[..., Path], mantis_source: Path
) -> None:
    split = msdata.open(packed(mantis_source, "--split", "1,0,0")).split("train")
    found = cache_rates.measure(split, 15)["contestants"][cache_rates.LOADER]
    assert found["of_limit"]["median"] > 0.4, found


@pytest.mark.mpi
@pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py")
def test_records_of_peers_come_at_the_rate_of_bare_one_sided_reads() -> None:
    found = peer_rates_mpi.measure(128, 9)["contestants"]["LinkFetcher"]
    assert found["of_limit"]["median"] > 0.2, found
