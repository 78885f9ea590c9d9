"""Jobs of seconds on a real Slurm: an array that fetches, and all benchmarks on two nodes."""

from __future__ import annotations

import sys
from pathlib import Path

import fetching
import pytest
from slurm_cluster import SlurmCluster, wait_until

from msdata.standin.faults import FaultPlan

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "slurm" / "fetch.sh"
TIMEOUT_S = 300
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]


def test_an_array_of_jobs_fetches_a_catalogue_and_keeps_the_rate(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    catalog = fetching.write_catalog(tmp_path / "catalog.csv", 8)
    out, rate = tmp_path / "objects", 24
    with fetching.standins() as running:
        services = fetching.services_file(
            tmp_path / "services.toml", running.url, requests_per_s=float(rate)
        )
        words = ("--array=0-2%2", str(SCRIPT), str(catalog), str(out), "--services", str(services))
        job = cluster.submit(
            f"--output={tmp_path}/log-%a",
            *words,
            PYTHONPATH=str(ROOT),
            PYTHON=sys.executable,
            NO_PROXY="*",
        )
        wait_until(
            "end of the array",
            lambda: not cluster.run("squeue", "--noheader", "--job", job).strip(),
            TIMEOUT_S,
        )
        logs = [(tmp_path / f"log-{n}").read_text() for n in range(3)]
        times_s = running.times_s("ps1")
    for number, text in enumerate(logs):
        assert f"slice {number}/3 of" in text, text
        assert "2 at a time" in text, text
        assert "0 cannot be had" in text, text
    assert len(times_s) == 6 * 8
    assert fetching.most_in_a_second(times_s) <= rate
    for sample_id, ra, dec in fetching.rows_of(catalog):
        fetching.assert_object(out, sample_id, fetching.expected_sample(FaultPlan(), 0, ra, dec))
