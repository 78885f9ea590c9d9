"""The manifest: what a later run takes up, does again, or refuses to resume."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fetching
import packing
import pytest
from fake_services.faults import FaultPlan
from fake_services.server import StandIns
from hypothesis import given
from hypothesis import strategies as st

from msdata.errors import DataError, MsdataError, UsageError
from msdata.fetch.journal import FETCHED, FOLDER, REFUSED, UNSETTLED, Entry, Journal, read_entries
from msdata.fetch.run import PATIENCE, FetchReport, fetch
from msdata.fetch.settings import FetchSettings
from msdata.fetch.targets import Slice, read_targets
from msdata.sources.pickles import object_path


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return fetching.write_catalog(tmp_path / "catalog.csv", 4)


@pytest.fixture
def running() -> Iterator[StandIns]:
    with fetching.standins() as found:
        yield found


def fetch_from(running: StandIns, catalog: Path, **options: Any) -> FetchReport:
    settings = FetchSettings(
        **{
            "catalog": catalog,
            "out": catalog.parent / "out",
            "services": fetching.services(running.url),
            **options,
        }
    )
    return fetch(settings)


def entry(sample_id: str, state: str = FETCHED) -> Entry:
    return Entry(sample_id=sample_id, state=state, ra=1.5, dec=-2.5, reason="why" * (state != "x"))


def test_what_is_fetched_is_not_asked_for_again(running: StandIns, catalog: Path) -> None:
    fetch_from(running, catalog)
    num_requests = len(running.log)
    again = fetch_from(running, catalog)
    assert again.num_fetched_now == 0
    assert again.states == {FETCHED: 4}
    assert len(running.log) == num_requests


def test_a_file_that_is_gone_or_short_is_fetched_again(running: StandIns, catalog: Path) -> None:
    fetch_from(running, catalog)
    gone, short = (fetching.object_file(catalog.parent / "out", f"000000{n}") for n in (1, 2))
    before = gone.read_bytes(), short.read_bytes()
    gone.unlink()
    short.write_bytes(before[1][:-1])
    assert fetch_from(running, catalog).num_fetched_now == 2
    assert (gone.read_bytes(), short.read_bytes()) == before


def test_an_object_whose_position_was_corrected_is_fetched_again(
    running: StandIns, catalog: Path
) -> None:
    fetch_from(running, catalog)
    lines = catalog.read_text().splitlines()
    words = lines[1].split(",")
    lines[1] = ",".join([words[0], "33.3", *words[2:]])
    catalog.write_text("\n".join(lines))
    assert fetch_from(running, catalog).num_fetched_now == 1
    sample = fetching.expected_sample(FaultPlan(), 0, 33.3, float(words[2]))
    fetching.assert_object(catalog.parent / "out", "0000001", sample)


def test_an_object_that_was_not_delivered_is_asked_for_by_the_next_run(
    running: StandIns, catalog: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    down = fetching.services(f"http://127.0.0.1:{port}", tries=1)
    report = fetch_from(running, catalog, services=down)
    assert report.states == {UNSETTLED: 4}
    assert not report.is_settled
    failed = fetching.failed_rows(catalog.parent / "out")
    assert {row["service"] for row in failed.values()} == {"ps1"}
    assert fetch_from(running, catalog).states == {FETCHED: 4}
    assert not fetching.failed_rows(catalog.parent / "out")


def test_the_refused_are_asked_for_again_only_on_request(catalog: Path) -> None:
    bad = FaultPlan(lasting_fraction=1, lasting=("outside",))
    with fetching.standins(bad) as running:
        assert fetch_from(running, catalog).states == {REFUSED: 4}
    with fetching.standins() as running:
        assert fetch_from(running, catalog).states == {REFUSED: 4}
        assert not running.log
        assert fetch_from(running, catalog, retry_refused=True).states == {FETCHED: 4}


def test_a_service_that_is_down_ends_the_run_early(tmp_path: Path) -> None:
    catalog = fetching.write_catalog(tmp_path / "catalog.csv", 60)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with fetching.loopback_only():
        settings = FetchSettings(
            catalog=catalog,
            out=tmp_path / "out",
            services=fetching.services(f"http://127.0.0.1:{port}", tries=1),
        )
        with pytest.raises(
            DataError, match=r"service ps1 .* 25 requests in a row and answered none"
        ):
            fetch(settings)
    assert len(fetching.failed_rows(tmp_path / "out")) < PATIENCE


def test_a_wrong_layer_ends_the_run_early(tmp_path: Path) -> None:
    catalog = fetching.write_catalog(tmp_path / "catalog.csv", 40)
    plan = FaultPlan(lasting_fraction=1, lasting=("no_such_layer",))
    with fetching.standins(plan) as running:
        settings = FetchSettings(
            catalog=catalog, out=tmp_path / "out", services=fetching.services(running.url)
        )
        with pytest.raises(DataError, match=r"no such layer.*nothing finished is lost"):
            fetch(settings)


@given(st.integers(0, 400))
def test_a_journal_cut_off_anywhere_loses_at_most_its_last_entry(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    out = tmp_path_factory.mktemp("journal")
    with Journal(out, Slice()) as journal:
        for number in range(4):
            journal.add(entry(f"{number:07d}"))
    path = out / FOLDER / "journal.jsonl"
    content = path.read_bytes()[:length]
    path.write_bytes(content)
    num_whole = content.count(b"\n")
    assert len(read_entries(out)) in (num_whole, num_whole + content.endswith(b"}"))
    with Journal(out, Slice()) as journal:
        journal.add(entry("0000009", REFUSED))
    after = read_entries(out)
    assert after["0000009"] == entry("0000009", REFUSED)
    assert len(after) >= num_whole + 1


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    full = Entry(
        sample_id="x",
        state=FETCHED,
        ra=0.0,
        dec=0.0,
        nbytes=5,
        crc32c=7,
        notes={"panstarrs": {"sky_cell": "1329.005"}},
    )
    nowhere = Entry(sample_id="y", state=REFUSED, ra=None, dec=None, reason="it has no position")
    with Journal(tmp_path, Slice()) as journal:
        journal.add(full)
        journal.add(nowhere)
    assert read_entries(tmp_path) == {"x": full, "y": nowhere}


def test_slices_may_be_cut_anew_between_runs(running: StandIns, catalog: Path) -> None:
    fetch_from(running, catalog, part=Slice(index=1, count=4))
    fetch_from(running, catalog, part=Slice(index=0, count=2))
    report = fetch_from(running, catalog)
    assert report.states == {FETCHED: 4}
    assert report.num_fetched_now == 1


def test_two_runs_of_one_slice_do_not_meet(running: StandIns, catalog: Path) -> None:
    out = catalog.parent / "out"
    with Journal(out, Slice()), pytest.raises(MsdataError, match="another 'msdata fetch' is at"):
        Journal(out, Slice()).__enter__()
    with Journal(out, Slice(index=0, count=2)), Journal(out, Slice(index=1, count=2)):
        pass


def test_a_folder_is_gone_on_with_as_it_was_begun(running: StandIns, catalog: Path) -> None:
    fetch_from(running, catalog)
    with pytest.raises(UsageError, match=r"started with --unwise-from legacy, not unwise_me"):
        fetch_from(running, catalog, unwise_from="unwise_me")
    with pytest.raises(UsageError, match=r"started with --pixel-scale \(none\), not .*unwise"):
        fetch_from(running, catalog, pixel_scales_arcsec={"unwise": 1.5})


def test_a_folder_with_other_things_in_it_is_left_alone(running: StandIns, catalog: Path) -> None:
    with pytest.raises(UsageError, match="is not empty and was not made by 'msdata fetch'"):
        fetch_from(running, catalog, out=catalog.parent)
    with pytest.raises(UsageError, match="is a file; give a folder"):
        fetch_from(running, catalog, out=catalog)
    assert sorted(p.name for p in catalog.parent.iterdir()) == ["catalog.csv"]


def test_sigterm_ends_a_fetch_and_keeps_what_there_is(catalog: Path) -> None:
    out = catalog.parent / "out"
    with fetching.standins(FaultPlan(passing_fraction=0.02, passing=("hang",))) as running:
        services = fetching.services_file(
            catalog.parent / "services.toml", running.url, requests_per_s=10.0, read_timeout_s=50.0
        )
        options = ("--services", str(services), "--workers", "2")
        process = packing.start(fetching.command(catalog, out, *options), fetching.environment())
        assert packing.wait_for(lambda: list(out.rglob("*.npy")), process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted; what is fetched is kept: run the same command again" in errors
    assert not fetching.failed_rows(out)
    with fetching.standins() as running:
        services = fetching.services_file(catalog.parent / "services.toml", running.url)
        last = packing.run(
            fetching.command(catalog, out, "--services", str(services)), fetching.environment()
        )
    assert last.returncode == 0
    fetching.assert_complete(out, catalog, FaultPlan(), 0)


@pytest.mark.parametrize("fault", ["fsync:4:ENOSPC", "fsync:9:EIO"])
def test_a_disk_that_fails_ends_in_a_sentence_and_loses_nothing(
    fault: str, running: StandIns, catalog: Path
) -> None:
    out = catalog.parent / "out"
    services = fetching.services_file(catalog.parent / "services.toml", running.url)
    command = fetching.command(catalog, out, "--services", str(services), "--quiet")
    env = {**fetching.environment(), "FAULT_AT": f"parent:{fault}"}
    process = packing.run(command, env)
    packing.assert_sentence(process, code=1, says=[f"msdata fetch: cannot write {out}"])
    last = packing.run(command, fetching.environment())
    assert last.returncode == 0, last.stderr
    fetching.assert_complete(out, catalog, FaultPlan(), 0)
    assert not list(out.rglob("*.partial"))


def test_requests_beyond_loopback_end_a_test() -> None:
    with (
        fetching.loopback_only(),
        socket.socket() as outward,
        pytest.raises(AssertionError, match="a request to"),
    ):
        outward.connect(("192.0.2.1", 80))
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    found = packing.run([sys.executable, "-c", code], fetching.environment())
    assert found.returncode == 97
    assert "LOOPBACK_ONLY" in found.stderr


def test_ids_become_paths_of_four_folders(tmp_path: Path) -> None:
    assert str(object_path("0012345", ".npy")) == "0/0/1/2/0012345.npy"
    assert str(object_path("123456789", ".npy")) == "1/2/3/4/123456789.npy"
    assert object_path("J1234+56", ".npy").name == "J1234+56.npy"
    assert len(object_path("J1234+56", ".npy").parts) == 5
    path = tmp_path / "catalog.csv"
    path.write_text("id,ra,dec\n7,1,2\n7,1,2\n,5,6\n8,1,2\n0000008,3,4\n")
    targets, notes = read_targets(path, id_column=None, part=Slice())
    assert [(t.sample_id, t.ra) for t in targets] == [("0000007", 1.0)]
    assert len(notes) == 3
    path.write_text("id,ra,dec\n../../etc/passwd,1,2\n")
    with pytest.raises(UsageError, match="cannot name a file"):
        read_targets(path, id_column=None, part=Slice())


def test_slices_are_disjoint_and_complete(tmp_path: Path) -> None:
    path = fetching.write_catalog(tmp_path / "catalog.csv", 23)
    slices = [
        {t.sample_id for t in read_targets(path, id_column=None, part=Slice(index=i, count=5))[0]}
        for i in range(5)
    ]
    assert sum(map(len, slices)) == len(set.union(*slices)) == 23
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_the_manifest_is_json_lines(running: StandIns, catalog: Path) -> None:
    fetch_from(running, catalog)
    path = catalog.parent / "out" / FOLDER / "journal.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert {e["state"] for e in entries} == {FETCHED}
    for e in entries:
        path = fetching.object_file(catalog.parent / "out", e["sample_id"])
        assert e["nbytes"] == path.stat().st_size
        assert e["notes"]["panstarrs"]["sky_cell"]
