"""`msdata fetch` as typed: what it says, its exit codes, and on into a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fetching
import numpy as np
import packing
import pytest
from fake_services.faults import FaultPlan
from fake_services.server import StandIns

import msdata
from msdata.cli import main


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetching.write_catalog(tmp_path_factory.mktemp("catalog") / "catalog.csv", 12)


@pytest.fixture
def running() -> Iterator[StandIns]:
    with fetching.standins() as found:
        yield found


def refused(capsys: pytest.CaptureFixture[str], says: list[str], *words: str) -> None:
    """The command refuses these words as wrong usage, with one sentence that says all of this."""
    with fetching.loopback_only():
        assert main(["fetch", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    for text in says:
        assert text in shown.err


def at(running: StandIns, tmp_path: Path) -> tuple[str, str]:
    path = fetching.services_file(tmp_path / "services.toml", running.url)
    return "--services", str(path)


def test_it_says_what_it_fetched_and_from_whom(
    running: StandIns, catalog: Path, tmp_path: Path
) -> None:
    process = fetching.run(catalog, tmp_path / "out", *at(running, tmp_path))
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert "ps1: 72 requests, 0 of them asked again" in process.stdout
    assert "12 of 12 are there, 0 cannot be had" in process.stdout


def test_a_dry_run_counts_what_is_left(
    running: StandIns, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fetch", str(catalog), str(tmp_path / "out"), *at(running, tmp_path), "--quiet"]
    assert main([*words, "--slice", "0/2"]) == 0
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    assert "6 of 12 objects are left" in capsys.readouterr().out


def test_json_alone_is_on_stdout(running: StandIns, catalog: Path, tmp_path: Path) -> None:
    process = fetching.run(catalog, tmp_path / "out", *at(running, tmp_path), "--json")
    result = json.loads(process.stdout)
    assert result["num_fetched"] == result["num_fetched_now"] == result["num_objects"] == 12
    assert result["services"]["legacy"]["requests"] == 24


def test_objects_that_were_not_delivered_give_exit_code_1(catalog: Path, tmp_path: Path) -> None:
    plan = FaultPlan(passing_fraction=0.1, passing=("503",), max_in_a_row=99, retry_after_s=0)
    with fetching.standins(plan) as running:
        path = fetching.services_file(tmp_path / "s.toml", running.url, tries=1)
        process = fetching.run(catalog, tmp_path / "out", "--services", str(path))
    assert process.returncode == 1, process.stderr
    assert "were not delivered; run the same command again" in process.stdout


def test_a_dry_run_asks_nothing(running: StandIns, catalog: Path, tmp_path: Path) -> None:
    options = ("--dry-run", "--rate", "ps1=0.5", "--slice", "1/2", "--concurrent-slices", "1")
    process = fetching.run(catalog, tmp_path / "out", *at(running, tmp_path), *options)
    assert process.returncode == 0, process.stderr
    assert "ps1: 36 requests to http://127.0.0.1" in process.stdout
    assert "6 of 6 objects are left, 1:12 or more; nothing was asked" in process.stdout
    assert not running.log
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rate", "psi=3"], ["unknown service 'psi'", "did you mean 'ps1'?"]),
        (["--rate", "ps1=fast"], ["--rate 'ps1=fast': the value must be a number, got 'fast'"]),
        (["--rate", "ps1"], ["--rate 'ps1': write NAME=VALUE"]),
        (["--rate", "ps1=0"], ["requests_per_s must be > 0, got 0.0"]),
        (["--base-url", "ps1=http://ps1images.stsci.edu"], ["is not HTTPS", "write https://"]),
        (["--slice", "4/4"], ["--slice 4/4: slices count from 0/4 to 3/4"]),
        (["--slice", "x"], ["--slice must be a part such as 3/16, got 'x'"]),
        (["--concurrent-slices", "3"], ["there are 1 slices"]),
        (["--workers", "0"], ["--workers must be 1 to 256, got 0"]),
        (["--unwise-from", "irsa"], ["--unwise-from must be one of legacy, unwise_me, got 'irsa'"]),
        (["--unwise-from", "unwise.me", "--pixel-scale", "unwise=1.5"], ["unwise.me has 2.75"]),
        (["--pixel-scale", "panstarrs=1"], ["only galex and unwise are resampled"]),
        (["--keep-pickles"], ["--keep-pickles is for --pack only"]),
        (["--id-column", "name"], ["has no column 'name' (--id-column)"]),
        (["--contact", "me\nX-Evil: 1"], ["--contact goes into a request's header"]),
        (["--services", "no.toml"], ["services file no.toml is not a file"]),
    ],
)
def test_wrong_usage_is_one_sentence_and_nothing_is_made(
    options: list[str],
    says: list[str],
    catalog: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(capsys, ["msdata fetch: ", *says], str(catalog), str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[ps1]\nbase_ulr = 'https://a.example'", ["no setting 'base_ulr'", "did you mean"]),
        ("[ps2]\n", ["unknown service 'ps2'"]),
        ("ps1 = 3", ["ps1 must be a table; write [ps1]"]),
        ("[ps1", ["is not TOML"]),
        ("[ps1]\ntries = 2.5", ["tries must be a number, got 2.5"]),
        ("[ps1]\nread_timeout_s = -1", ["read_timeout_s must be > 0, got -1"]),
    ],
)
def test_a_faulty_services_file_is_one_sentence(
    text: str,
    says: list[str],
    catalog: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "services.toml"
    path.write_text(text)
    refused(capsys, says, str(catalog), str(tmp_path / "out"), "--services", str(path))


def test_a_missing_catalog_or_position_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "catalog.csv", str(tmp_path / "out")
    refused(capsys, ["catalog.csv is not a file"], str(path), out)
    path.write_text("id,x,y\n1,2,3\n")
    refused(capsys, ["has no column 'ra'", "rename"], str(path), out)


def test_fetched_objects_and_their_fits_files_pack_to_the_same_samples(
    running: StandIns, catalog: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    options = (*at(running, tmp_path), "--keep-fits", "--pack", str(data), "--quiet")
    process = fetching.run(catalog, out, *options)
    assert process.returncode == 0, process.stderr
    assert f"packed 12 samples into {data}" in process.stdout
    again = packing.run(
        [
            *packing.pack_command(out / "fits", tmp_path / "from_fits", "--jobs", "1"),
            *("--catalog", str(catalog)),
        ]
    )
    assert again.returncode == 0, again.stderr
    left, right = msdata.open(data), msdata.open(tmp_path / "from_fits")
    assert left.schema.name == "mantis_shrimp"
    for split in ("train", "val", "test"):
        assert len(left.split(split)) == len(right.split(split))
        for a, b in zip(left.split(split), right.split(split), strict=True):
            assert a["sample_id"] == b["sample_id"]
            for name in ("panstarrs", "galex", "unwise"):
                np.testing.assert_array_equal(a[name], b[name])
    # A data set of other objects is not added to behind its reader's back.
    last = fetching.run(catalog, tmp_path / "other", *options)
    packing.assert_sentence(last, code=2, says=["holds a data set already"])


def test_the_stand_ins_are_a_program(tmp_path: Path) -> None:
    import signal
    import sys

    catalog, services = tmp_path / "catalog.csv", tmp_path / "services.toml"
    command = [sys.executable, "tests/support/fake_services", "--n", "2"]
    command += ["--catalog", str(catalog), "--services", str(services)]
    process = packing.start(command, fetching.environment())
    assert process.stdout is not None
    assert "serving on http://127.0.0.1:" in process.stdout.readline()
    fetched = fetching.run(catalog, tmp_path / "out", "--services", str(services))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert fetched.returncode == 0, fetched.stderr
    assert (process.returncode, errors) == (0, "")
