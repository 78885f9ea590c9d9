"""Positions in, densities out, from stand-ins of the services: as fetch, pack and predict do it."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fetching
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import training
from astropy.io import fits
from fake_services.catalog import galaxies as galaxies_of
from fake_services.faults import FaultPlan
from fake_services.server import StandIns

import msdata.cli
import mstrain
from msdata.errors import DataError, UsageError
from msdata.fetch.service import read_services
from mstrain.cli import main
from mstrain.data.batches import evaluation_batches
from mstrain.evaluation.predictions import read_predictions
from mstrain.overrides import apply_overrides

NUM_OBJECTS = 4
EBV = 0.0625


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the list `in.csv`, a map of E(B-V), and settings of running stand-ins."""
    folder = tmp_path_factory.mktemp("positions")
    lines = ["id,ra,dec,note"]
    for number, galaxy in enumerate(galaxies_of(0, NUM_OBJECTS), 1):
        lines.append(f"{number},{galaxy.ra!r},{galaxy.dec!r},n{number}")
    (folder / "in.csv").write_text("\n".join(lines) + "\n")
    column = fits.Column("EBV", "E", array=np.full(12, EBV, np.float32))
    hdu = fits.BinTableHDU.from_columns([column])
    hdu.header["ORDERING"], hdu.header["COORDSYS"] = "RING", "G"
    hdu.writeto(folder / "ebv.fits")
    with fetching.standins() as running:
        fetching.services_file(folder / "services.toml", running.url)
        yield folder


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, in which nothing may stay."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def options_of(place: Path) -> list[str]:
    options = ["--services", str(place / "services.toml"), "--ebv-map", str(place / "ebv.fits")]
    return [*options, "--any-pixels", "--quiet", "--device", "cpu"]


def positions_of(place: Path) -> list[tuple[float, float]]:
    with (place / "in.csv").open() as file:
        return [(float(row["ra"]), float(row["dec"])) for row in csv.DictReader(file)]


def densities_of(path: Path) -> np.ndarray:
    return np.concatenate(list(read_predictions(path).density_parts()))


def test_densities_are_those_of_fetch_pack_and_predict_bit_for_bit(
    place: Path, weighted_run: Path, tmp_path: Path, scratch: Path
) -> None:
    listed, objects, data = tmp_path / "listed.parquet", tmp_path / "objects", tmp_path / "data"
    ebv = f"csfd={place / 'ebv.fits'}"
    words = [["catalog", "positions", str(place / "in.csv"), str(listed), "--ebv", ebv]]
    services = ["--services", str(place / "services.toml"), "--quiet"]
    words += [["fetch", str(listed), str(objects), *services]]
    words += [["pack", str(objects / "photometry"), str(data), "--catalog", str(listed)]]
    words[-1] += ["--unlabeled", "--jobs", "1", "--quiet"]
    assert [msdata.cli.main(step) for step in words] == [0, 0, 0]
    by_hand, table = tmp_path / "by_hand.parquet", tmp_path / "table.parquet"
    plain = ["--any-pixels", "--quiet", "--device", "cpu"]
    assert main(["predict", str(weighted_run), str(data), str(by_hand), *plain]) == 0
    asked = ["predict", str(weighted_run), str(place / "in.csv"), str(table)]
    assert main([*asked, *options_of(place), "--columns", "note,ebv_csfd"]) == 0
    expected = densities_of(by_hand)
    assert densities_of(table).tobytes() == expected.tobytes()
    assert expected.std(axis=0).max() > 0
    found = pq.read_table(table)
    assert found["sample_id"].to_pylist() == pq.read_table(by_hand)["sample_id"].to_pylist()
    assert [f"n{int(name)}" for name in found["sample_id"].to_pylist()] == found["note"].to_pylist()
    assert set(found["ebv_csfd"].to_pylist()) == {EBV}
    assert found["filled_panstarrs"].to_pylist() == [0] * NUM_OBJECTS
    assert found["missing_bands"].null_count == 0
    assert read_predictions(table).origin["data"] == str(place / "in.csv")
    assert not list(tmp_path.glob("*-failed.csv"))


def test_a_network_of_two_maps_takes_both_from_training_to_positions(
    place: Path, galaxies: Path, tmp_path: Path, scratch: Path
) -> None:
    data, run = Path(shutil.copytree(galaxies, tmp_path / "data")), tmp_path / "run"
    ids = msdata.open(data).table["sample_id"].to_pylist()
    planck = {"id": ids, "ebv_planck": [0.5 + int(name) / 100 for name in ids]}
    pq.write_table(pa.table(planck), tmp_path / "planck.parquet")
    msdata.add_columns(data, tmp_path / "planck.parquet")
    settings = {**training.SETTINGS, "epochs": "1"}
    settings["ebv_columns"] = '["ebv_csfd","ebv_planck"]'
    config = apply_overrides(mstrain.RECIPES["demo"](), [f"{n}={v}" for n, v in settings.items()])
    mstrain.train(config, data, run, is_quiet=True)
    assert [*json.loads((run / "config.json").read_text())["added_columns"]] == ["ebv_planck"]
    model, config = mstrain.load_model(run)
    (batch, *_) = evaluation_batches(msdata.open(data), "val", config)
    assert batch.ebv is not None
    wanted = torch.tensor([0.5 + int(name) / 100 for name in batch.sample_id])
    assert torch.equal(batch.ebv[:, 1], wanted)
    # The network looks at both.
    logits = model(batch.images, batch.ebv)
    for column in (0, 1):
        changed = batch.ebv.clone()
        changed[:, column] += 0.1
        assert not torch.equal(model(batch.images, changed), logits)
    at = positions_of(place)[0]
    opened, services = mstrain.load(run), read_services(place / "services.toml")
    both = {"ebv_csfd": 0.25, "ebv_planck": 0.5}
    (one,) = opened.at([at], ebv=both, services=services, has_any_pixels=True, device="cpu").objects
    assert one.ebv == (0.25, 0.5)
    # The same from a table of positions.
    table, out = tmp_path / "positions.csv", tmp_path / "out.parquet"
    table.write_text(f"id,ra,dec,ebv_csfd,ebv_planck\n1,{at[0]!r},{at[1]!r},0.25,0.5\n")
    plain = ["--services", str(place / "services.toml"), "--any-pixels", "--quiet"]
    assert main(["predict", str(run), str(table), str(out), *plain, "--device", "cpu"]) == 0
    assert densities_of(out)[0].tobytes() == one.density.tobytes()
    assert main(["predict", str(run), "--at", f"{at[0]!r} {at[1]!r}", *options_of(place)]) == 2
    for ebv, message in (
        (0.1, "takes ebv_csfd and ebv_planck, got one E.B-V.; give a table of"),
        ({"ebv_sfd": 0.1}, "ebv must be of ebv_csfd and ebv_planck, got ebv_sfd"),
        ({"ebv_csfd": 0.1}, "takes ebv_planck, which the positions do not have; give a table of"),
    ):
        with pytest.raises(UsageError, match=message):
            opened.at([at], ebv=ebv, services=services)


def test_one_position_is_printed_and_drawn_and_asked_again_from_python_it_is_the_same(
    place: Path,
    weighted_run: Path,
    galaxies: Path,
    tmp_path: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, figure = tmp_path / "MODEL.msz", tmp_path / "one.png"
    run = training.run_with_fit(weighted_run, galaxies, tmp_path)
    assert main(["export", str(run), str(model), "--license", "CC0"]) == 0
    ra, dec = positions_of(place)[0]
    options = [*options_of(place), "--figure", str(figure), "--json"]
    capsys.readouterr()
    assert main(["predict", str(model), "--at", f"{ra!r} {dec!r}", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    opened = mstrain.load(model)
    assert opened.license == "CC0"
    services = read_services(place / "services.toml")
    found = opened.at([(ra, dec)], ebv=EBV, services=services, has_any_pixels=True, device="cpu")
    (one,) = found.objects
    assert said["density"] == one.density.tolist()
    assert {name: said[name] for name in one.estimates} == dict(one.estimates)
    assert {name: said[name] for name in one.oddness} == dict(one.oddness)
    assert np.isfinite([one.oddness["ood_sigma"], one.oddness["ood_distance"]]).all()
    assert said["bin_edges"] == found.edges.tolist()
    assert float(one.density @ np.diff(found.edges)) == pytest.approx(1, abs=1e-6)
    assert (one.ra, one.dec, one.ebv) == (ra, dec, EBV)
    assert not found.failures
    sky = fetching.expected_sample(FaultPlan(), 0, ra, dec)
    for name in ("galex", "unwise"):
        assert one.cutouts[name].tobytes() == sky[name].tobytes()
    with pytest.raises(UsageError, match="takes ebv_csfd, which the positions do not have"):
        opened.at([(ra, dec)], services=services)
    with pytest.raises(UsageError, match="ebv must be one finite number, or 1 of them"):
        opened.at([(ra, dec)], ebv=[0.1, 0.2], services=services)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, StandIns]]:
    """Services for which half of the sky is outside of the survey, or a band is missing."""
    folder = tmp_path_factory.mktemp("faulty")
    plan = FaultPlan(seed=3, lasting_fraction=0.5)
    with fetching.standins(plan) as running:
        fetching.services_file(folder / "services.toml", running.url)
        yield folder, running


def test_positions_that_cannot_be_had_are_listed_and_the_others_predicted(
    faulty: tuple[Path, StandIns],
    place: Path,
    weighted_run: Path,
    tmp_path: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = FaultPlan(seed=3, lasting_fraction=0.5)
    galaxies = galaxies_of(1, 6)
    bad = {k for k, g in enumerate(galaxies) if plan.lasting_fault(g.ra, g.dec) is not None}
    assert 0 < len(bad) < len(galaxies)
    rows = [f"{k},{g.ra!r},{g.dec!r},{EBV}" for k, g in enumerate(galaxies)]
    (tmp_path / "in.csv").write_text("\n".join(["id,ra,dec,ebv_csfd", *rows]) + "\n")
    options = ["--services", str(faulty[0] / "services.toml"), "--any-pixels", "--quiet"]
    out = tmp_path / "out.parquet"
    assert main(["predict", str(weighted_run), str(tmp_path / "in.csv"), str(out), *options]) == 1
    assert f"{len(bad)} of 6 positions could not be predicted" in capsys.readouterr().err
    found = {int(name) for name in pq.read_table(out)["sample_id"].to_pylist()}
    assert found == set(range(6)) - bad
    with (tmp_path / "out-failed.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert {int(row["sample_id"]) for row in listed} == bad
    assert all(row["reason"] for row in listed)
    # One that cannot be had, by itself: a sentence, and nothing is written.
    lost = galaxies[min(bad)]
    words = ["--at", f"{lost.ra!r} {lost.dec!r}", "--ebv-map", str(place / "ebv.fits")]
    figure = ["--figure", str(tmp_path / "one.png")]
    assert main(["predict", str(weighted_run), *words, *options, *figure]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mstrain predict: cannot predict the position ")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "one.png").exists()


def test_a_dead_service_ends_in_one_sentence(
    place: Path,
    weighted_run: Path,
    tmp_path: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import training

    dead = f"http://127.0.0.1:{training.free_port()}"
    services = fetching.services_file(tmp_path / "services.toml", dead, tries=2)
    words = ["--at", "197.6144 +18.4381", *options_of(place), "--services", str(services)]
    with fetching.loopback_only():
        assert main(["predict", str(weighted_run), *words]) == 1
    said = capsys.readouterr().err
    assert "service ps1: panstarrs: the connection failed" in said
    assert said.endswith("given up after 2 tries; try again later\n")
    assert len(said.splitlines()) == 1
    with fetching.loopback_only(), pytest.raises(DataError, match="service ps1"):
        mstrain.load(weighted_run).at([(10, 5)], ebv=0.1, services=read_services(services))


BAD = {
    "too low": (["--at", "197.6 -30.5"], "declination must be at least -30"),
    "no position": (["--at", "197.6"], "a position must be a right ascension and a declination"),
    "both": (["{data}", "--at", "1 2"], "--at predicts one position and prints it"),
    "nothing": ([], "predict needs DATA and OUT.parquet, or --at 'RA DEC'"),
    "figure": (["--at", "1 2", "--figure", "{out}/a.jpg"], "--figure must end in .png"),
    "picture": (["--at", "1 2", "--figure", "{out}/own.png"], "this command did not make it"),
    "figure of many": (["{data}", "{out}/p.parquet", "--figure", "a.png"], "is for one position"),
    "map": (["--at", "1 2", "--ebv-map", "typo.fits"], "typo.fits of E(B-V) is not a file"),
    "no map": (["--at", "1 2"], "takes ebv_csfd, which the positions do not have; give --ebv-map"),
    "map of data": (["{data}", "{out}/p.parquet", "--ebv-map", "a.fits"], "is for positions"),
    "suffix": (["{list}", "{out}/p.csv"], "must end in .parquet"),
    "column": (["{list}", "{out}/p.parquet", "--columns", "x"], "the positions have no column x"),
    "typo": (["{out}/typo.csv", "{out}/p.parquet", "--contact", "me"], "typo.csv does not exist"),
    "split": (["{list}", "{out}/p.parquet", "--split", "test"], "--split is for data sets"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_said_before_anything_is_asked_for(
    case: str,
    place: Path,
    weighted_run: Path,
    galaxies: Path,
    tmp_path: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own.png").write_text("the user's own")
    words, message = BAD[case]
    places = {"data": galaxies, "out": tmp_path, "list": place / "in.csv"}
    with fetching.loopback_only():
        filled = [word.format(**places) for word in words]
        assert main(["predict", str(weighted_run), *filled]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.png", "tmp"]
