"""Never more than the allowed requests per second: threads, slow answers, slices, restarts."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import fetching
import packing
import pytest

from msdata.errors import UsageError
from msdata.fetch.failures import StoppedError
from msdata.fetch.rate import RateLimiter
from msdata.fetch.run import fetch
from msdata.fetch.settings import FetchSettings


def test_no_second_of_the_servers_clock_holds_more_than_the_rate_however_requests_are_held_up() -> (
    None
):
    rate, stop, arrived_s = 40, threading.Event(), []
    limiter = RateLimiter(rate, stop)
    draws = random.Random(0)

    def ask() -> None:
        while time.monotonic() < end_s:
            with limiter.slot():
                # On its way, sometimes for long; then the server sees it; then the answer's way.
                time.sleep(draws.choice([0, 0.001, 0.05]))
                arrived_s.append(time.monotonic())
                time.sleep(draws.choice([0, 0.01]))

    end_s = time.monotonic() + 2.5
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    most = fetching.most_in_a_second(sorted(arrived_s))
    assert most <= rate
    # Nor is it shy: most of what is allowed is asked.
    assert most >= 0.4 * rate


def test_below_one_a_second_they_are_as_far_apart() -> None:
    limiter = RateLimiter(4.0 / 3, threading.Event())
    started_s = time.monotonic()
    for _ in range(2):
        with limiter.slot():
            pass
    assert time.monotonic() - started_s >= 0.75


def test_a_waiting_thread_hears_of_the_end() -> None:
    stop = threading.Event()
    limiter = RateLimiter(0.001, stop)
    with limiter.slot():
        pass
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(StoppedError), limiter.slot():
        pass


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_must_be_a_rate(rate: float) -> None:
    with pytest.raises(UsageError, match="requests_per_s must be > 0"):
        RateLimiter(rate, threading.Event())


def test_the_server_counts_no_more_than_the_rate(tmp_path: Path) -> None:
    catalog = fetching.write_catalog(tmp_path / "catalog.csv", 8)
    rate = 20
    with fetching.standins() as running:
        settings = FetchSettings(
            catalog=catalog,
            out=tmp_path / "out",
            services=fetching.services(running.url, requests_per_s=float(rate)),
            workers=16,
        )
        assert fetch(settings).states == {"fetched": 8}
        ps1, legacy = running.times_s("ps1"), running.times_s("legacy")
    assert len(ps1) == 6 * 8
    assert len(legacy) == 2 * 8
    assert fetching.most_in_a_second(ps1) <= rate
    assert fetching.most_in_a_second(legacy) <= rate


def test_slices_share_the_rate(tmp_path: Path) -> None:
    catalog = fetching.write_catalog(tmp_path / "catalog.csv", 6)
    rate, out = 24, tmp_path / "out"
    with fetching.standins() as running:
        services = fetching.services_file(
            tmp_path / "services.toml", running.url, requests_per_s=float(rate)
        )
        commands = [
            fetching.command(
                catalog, out, "--services", str(services), "--slice", f"{i}/3", "--json"
            )
            for i in range(3)
        ]
        processes = [packing.start(c, fetching.environment()) for c in commands]
        for process in processes:
            _, errors = process.communicate(timeout=packing.TIMEOUT_S)
            assert process.returncode == 0, errors
        times_s = running.times_s("ps1")
    assert len(times_s) == 6 * 6
    assert fetching.most_in_a_second(times_s) <= rate
    assert len(list((out / "photometry").rglob("*.npy"))) == 6
    assert len(list(out.glob("failed-000*-of-0003.csv"))) == 3


def test_fewer_slices_at_a_time_have_larger_shares(tmp_path: Path) -> None:
    def share(*options: int) -> float:
        from msdata.fetch.targets import Slice

        index, count, together = options
        settings = FetchSettings(
            catalog=tmp_path,
            out=tmp_path,
            part=Slice(index=index, count=count),
            concurrent_slices=together or None,
        )
        return settings.shared_services()["ps1"].requests_per_s

    assert share(0, 1, 0) == 5.0
    assert share(3, 10, 0) == 0.5
    assert share(3, 10, 2) == 2.5
