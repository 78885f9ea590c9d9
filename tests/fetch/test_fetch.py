"""200 objects from faulty services: all that can be had, bit for bit; kills change nothing."""

from __future__ import annotations

import functools
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fetching
import packing
import pytest
from fake_services import imagery
from fake_services.faults import LASTING, ODDITIES, PASSING, FaultPlan

from msdata.fetch.run import fetch
from msdata.fetch.settings import FetchSettings

SEED = 3
NUM_OBJECTS = 200
# Of answers 30 % are faulty for a while, of objects 25 % for good, and 20 % are odd.
# Hangs take time, so they are the rarest.
PLAN = FaultPlan(
    seed=0,
    passing_fraction=0.3,
    lasting_fraction=0.25,
    odd_fraction=0.2,
    passing=(*[kind for kind in PASSING if kind != "hang"] * 4, "hang"),
    hang_s=4.0,
    retry_after_s=0,
)
NUM_KILLS = 10


@pytest.fixture(scope="module", autouse=True)
def _each_picture_once() -> Iterator[None]:
    """Servers and expectations draw the same pictures several times; it takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagery, "_picture", functools.cache(imagery._picture))
        yield


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "catalog.csv"
    return fetching.write_catalog(path, NUM_OBJECTS, seed=SEED)


@pytest.mark.slow
def test_every_good_object_arrives_once_and_bit_correct_and_every_bad_one_is_named(
    catalog: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with fetching.standins(PLAN, seed=SEED) as running:
        settings = FetchSettings(
            catalog=catalog,
            out=out,
            services=fetching.services(running.url, read_timeout_s=2.0),
            workers=16,
        )
        report = fetch(settings)
        log = list(running.log)
    fetching.assert_complete(out, catalog, PLAN, SEED)
    assert report.is_settled
    assert report.num_fetched_now == report.states["fetched"]
    # That it was no easy exercise: about a third of the answers, every kind, all kinds of objects.
    faults = Counter(r.fault for r in log)
    assert set(faults) == {None, *PASSING}
    assert 0.25 < 1 - faults[None] / len(log) < 0.35
    kinds = {PLAN.lasting_fault(ra, dec) for _, ra, dec in fetching.rows_of(catalog)}
    assert kinds == {None, *LASTING, *ODDITIES}


@pytest.mark.slow
def test_a_fetch_that_is_killed_ten_times_and_resumed_gives_the_same(
    catalog: Path, tmp_path: Path
) -> None:
    out, rate = tmp_path / "out", 150
    journal = out / ".fetch" / "journal.jsonl"
    moments = random.Random(SEED)
    with fetching.standins(PLAN, seed=SEED) as running:
        services = fetching.services_file(
            tmp_path / "services.toml", running.url, requests_per_s=float(rate), read_timeout_s=2.0
        )
        options = ("--services", str(services), "--workers", "16", "--quiet")
        command = fetching.command(catalog, out, *options)
        for kill in range(1, NUM_KILLS + 1):
            process = packing.start(command, fetching.environment())
            enough = kill * NUM_OBJECTS // (NUM_KILLS + 2)
            is_alive = packing.wait_for(lambda n=enough: _num_lines(journal) >= n, process)
            time.sleep(moments.uniform(0, 0.1))
            packing.kill_group(process)
            process.communicate()
            assert is_alive, "it ended before it was killed"
        last = packing.run(command, fetching.environment())
        times_s = {name: running.times_s(name) for name in ("ps1", "legacy")}
    assert last.returncode == 0, last.stderr
    fetching.assert_complete(out, catalog, PLAN, SEED)
    # Restarts do not begin a new second's allowance.
    for name, times in times_s.items():
        assert fetching.most_in_a_second(times) <= rate, name


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
