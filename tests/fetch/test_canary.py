"""msdata fetch with --canary: what a service changed, band by band, and what counts as equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fetching
import pytest
from fake_services import fitsfile, imagery
from fake_services.faults import FaultPlan
from fake_services.server import StandIns

from msdata.cli import main
from msdata.fetch import canary, run

COUNT = 3


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Few positions, and no wait for the rate of the run before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canary, "NUM_POSITIONS", COUNT)
        patch.setattr(run, "_PAUSE_BEFORE_RESUMING_S", 0.0)
        yield


@pytest.fixture(scope="module")
def folder(running: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog, the stand-ins' settings, and a reference."""
    made = tmp_path_factory.mktemp("canary")
    fetching.write_catalog(made / "catalog.csv", 12)
    fetching.services_file(made / "services.toml", running.url)
    assert fetch(made, str(made / "catalog.csv")) == 0
    return made


def fetch(folder: Path, *words: str, services: Path | None = None) -> int:
    where = ["--services", str(services or folder / "services.toml"), "--quiet"]
    return main(["fetch", *words, "--canary", str(folder / "ref.json"), *where])


def changes(folder: Path, capsys: pytest.CaptureFixture[str], code: int, **kinds: str) -> list[str]:
    """The lines of changes; JSON says the same, and each kind is one of `kinds` by band."""
    assert fetch(folder, "--json") == code
    found = json.loads(capsys.readouterr().out)
    assert found["is_changed"] == (code == 1)
    assert {c["band"]: c["kind"] for c in found["changes"]} == kinds
    assert all(change["num_positions"] == COUNT for change in found["changes"])
    assert fetch(folder) == code
    return capsys.readouterr().out.splitlines()


def test_positions_over_the_catalog_are_kept_once_without_pixels_or_addresses(
    folder: Path, running: StandIns
) -> None:
    kept = json.loads((folder / "ref.json").read_text())
    assert set(kept) == {"format_version", "settings", "places"}
    assert [place["arrays"].keys() for place in kept["places"]] == [
        {"panstarrs", "galex", "unwise"}
    ] * COUNT
    rows = {
        (round(ra, 6), round(dec, 6)) for _, ra, dec in fetching.rows_of(folder / "catalog.csv")
    }
    assert {(round(p["ra"], 6), round(p["dec"], 6)) for p in kept["places"]} < rows
    assert set(kept["places"][0]["arrays"]["panstarrs"]) == set("grizy")
    assert "127.0.0.1" not in (folder / "ref.json").read_text()
    # The stand-ins' noise is uniform in [-4, 4]: half of it lies within 2 of the median.
    noise = [place["arrays"]["panstarrs"]["g"]["noise"] for place in kept["places"]]
    assert noise == pytest.approx([1.4826 * 2] * COUNT, rel=0.1)
    assert sum(request.service == "ps1" for request in running.log[: 8 * COUNT]) == 6 * COUNT


def test_unchanged_services_are_no_change_and_the_file_stays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "ref.json").read_bytes()
    (line,) = changes(folder, capsys, 0)
    assert line.startswith("no value is known to have changed since")
    assert f"panstarrs {COUNT}, galex {COUNT}, unwise {COUNT} of {COUNT} positions" in line
    assert (folder / "ref.json").read_bytes() == before


def test_new_headers_alone_are_said_and_cost_no_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fitsfile.viewer_cards
    monkeypatch.setattr(
        fitsfile, "viewer_cards", lambda *a: [*real(*a), ("DATE", "2026-11-30")], raising=True
    )
    bands = ("galex.NUV", "galex.FUV", "unwise.W1", "unwise.W2")
    lines = changes(folder, capsys, 0, **dict.fromkeys(bands, "bytes only"))
    assert f"legacy unwise.W1: bytes only at {COUNT} of {COUNT} positions" in lines


def test_values_noise_and_zero_points_are_told_apart_by_band(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seconds = imagery.render, imagery.exposure_s
    monkeypatch.setitem(imagery._NOISE, "W1", 4.4)
    monkeypatch.setattr(
        imagery, "render", lambda s, band, grid: real(s, band, grid) + 0.5 * (band == "g")
    )
    monkeypatch.setattr(
        imagery, "exposure_s", lambda s, c, band: seconds(s, c, band) * (2 if band == "y" else 1)
    )
    kinds = {"panstarrs.g": "values", "panstarrs.y": "zero-point", "unwise.W1": "noise"}
    # Both bands of unWISE come in one file.
    lines = changes(folder, capsys, 1, **kinds, **{"unwise.W2": "bytes only"})
    by_band = {line.split(":")[0]: line for line in lines}
    values = by_band["ps1 panstarrs.g"].split("most at ")[1]
    a, b = (float(values.split("mean ")[1].split()[i]) for i in (0, 2))
    assert b - a == pytest.approx(0.5, abs=1e-3)
    assert "noise" not in values
    # Twice the exposure time: 0.753 mag.
    zero = by_band["ps1 panstarrs.y"].split("zero-point ")[2].split()
    assert float(zero[2]) - float(zero[0]) == pytest.approx(0.753, abs=2e-3)
    factor = by_band["legacy unwise.W1"].split("noise ")[2].split("times ")[1]
    assert float(factor.split(")")[0]) == pytest.approx(1.1, abs=0.04)
    assert lines[-1].startswith("values changed since")


def test_what_a_service_refuses_now_is_missing_and_one_that_is_down_is_no_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = FaultPlan(lasting_fraction=1, lasting=("no_unwise",))
    with fetching.standins(plan) as other:
        path = fetching.services_file(tmp_path / "other.toml", other.url)
        assert fetch(folder, services=path) == 1
    said = capsys.readouterr()
    assert f"legacy unwise: missing at {COUNT} of {COUNT} positions, such as" in said.out
    assert "the service has no coadd there" in said.out
    assert said.err == ""
    # Nothing listens there any more.
    path = fetching.services_file(tmp_path / "dead.toml", other.url, tries=1)
    before = (folder / "ref.json").read_bytes()
    assert fetch(folder, services=path) == 1
    said = capsys.readouterr()
    assert "no value is known" in said.out
    assert len(said.err.splitlines()) == 2
    assert f"service legacy ({other.url}/viewer) delivered nothing at {COUNT} of" in said.err
    assert (folder / "ref.json").read_bytes() == before
    # A page about maintenance does not make an object missing; the others are compared.
    plan = FaultPlan(passing_fraction=1, passing=("busy-page",), max_in_a_row=99)
    with fetching.standins(plan) as busy:
        path.write_text(
            (folder / "services.toml").read_text()
            + f'[legacy]\nbase_url = "{busy.url}/viewer"\nrequests_per_s = 1e3\ntries = 1\n'
        )
        text = path.read_text()
        first, second = text.index("[legacy]"), text.index("[unwise_me]")
        path.write_text(text[:first] + text[second:])
        assert fetch(folder, services=path) == 1
    said = capsys.readouterr()
    assert f"compared: panstarrs {COUNT}, galex 0, unwise 0 of" in said.out
    assert said.err.count("please come back later") == 1


def test_a_new_reference_needs_every_service_and_a_catalog(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "services.toml", tmp_path / "services.toml")
    assert fetch(tmp_path) == 2
    assert "ref.json does not exist, and no catalog was given" in capsys.readouterr().err
    dead = tmp_path / "dead.toml"
    dead.write_text('[legacy]\nbase_url = "http://127.0.0.1:1"\ntries = 1\n')
    text = (folder / "services.toml").read_text()
    first, second = text.index("[legacy]"), text.index("[unwise_me]")
    dead.write_text(text[:first] + text[second:] + dead.read_text())
    assert fetch(tmp_path, str(folder / "catalog.csv"), services=dead) == 1
    said = capsys.readouterr().err
    assert "cannot make the reference: service legacy (http://127.0.0.1:1): " in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "ref.json").exists()
    for words, says in (
        (["catalog.csv", "out"], "leave OUT out"),
        (["--pack", "DATA"], "leave --pack out"),
        (["--dry-run"], "leave --dry-run out"),
    ):
        assert fetch(tmp_path, *words) == 2
        assert f"--canary fetches no objects; {says}" in capsys.readouterr().err
    assert main(["fetch", "catalog.csv"]) == 2
    assert "give a catalog and a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"format_version": 1', '"format_version": 2', "format_version must be one of 1, got 2"),
        ('"ra": ', '"ra": -', "ra must be a number at least 0"),
        ('"places": [', '"places": [], "x": [', "x must be left out"),
        ('"galex": {', '"galaxy": {', "must have the arrays panstarrs, galex, unwise"),
        ('"FUV"', '"XUV"', "with all their bands"),
        ('"unwise_from": "legacy"', '"unwise_from": "unwise_me"', "with --unwise-from unwise_me"),
    ],
)
def test_a_reference_of_a_stranger_is_refused_by_a_sentence_before_anything_is_asked(
    folder: Path,
    tmp_path: Path,
    running: StandIns,
    old: str,
    new: str,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (folder / "ref.json").read_text()
    assert old in text
    (tmp_path / "ref.json").write_text(text.replace(old, new, 1))
    num_asked = len(running.log)
    code = fetch(tmp_path, services=folder / "services.toml")
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert says in said
    assert len(said.splitlines()) == 1
    assert len(running.log) == num_asked
