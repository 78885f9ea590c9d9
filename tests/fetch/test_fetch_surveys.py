"""FITS files of survey files: a layer of the viewer, HiPS, and the data set made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fetching
import numpy as np
import pytest
import skyimages
from fake_services.answers import Asked, layer_picture
from fake_services.faults import FaultPlan
from fake_services.imagery import hips_cutout
from fake_services.server import StandIns

from msdata.cli import main
from msdata.errors import UsageError
from msdata.fetch.run import FetchReport, fetch
from msdata.fetch.settings import FetchSettings
from msdata.sources.survey_file import read_survey

HIPS = """
name = "deep"
pattern = "{{id}}.deep.{{band}}.fits"
bands = ["g", "i"]
pixel_scale_arcsec = 0.262
size = 30
unit = "nanomaggy"
zero_points_ab = [22.5]
[hips]
g = "CDS/P/DESI-Legacy-Surveys/DR10/g"
i = "{i}"
"""
GOOD = "CDS/P/DESI-Legacy-Surveys/DR10/i"


def hips_file(folder: Path, i: str = GOOD) -> Path:
    path = folder / "deep.toml"
    path.write_text(HIPS.format(i=i))
    return path


@pytest.fixture(scope="module")
def running() -> Iterator[StandIns]:
    # One answer in four is spoiled once.
    plan = FaultPlan(passing_fraction=0.25, passing=("503", "truncated", "busy-page", "empty"))
    plan = FaultPlan(**{**vars(plan), "max_in_a_row": 1, "retry_after_s": 0})
    with fetching.standins(plan) as found:
        yield found


def fetched(running: StandIns, folder: Path, survey: str, **options: Any) -> FetchReport:
    catalog = fetching.write_catalog(folder / "catalog.csv", 2)
    settings = FetchSettings(
        catalog=catalog,
        out=folder / "out",
        services=fetching.services(running.url),
        surveys=(read_survey(survey),),
        **options,
    )
    return fetch(settings)


def test_legacy_grz_and_hips_are_fetched_resumed_and_packed_bit_for_bit(
    running: StandIns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = fetching.write_catalog(tmp_path / "catalog.csv", 2)
    services = fetching.services_file(tmp_path / "services.toml", running.url)
    out, surveys = tmp_path / "out", ("--survey", "legacy", "--survey", str(hips_file(tmp_path)))
    command = ["fetch", str(catalog), str(out), *surveys, "--quiet", "--services", str(services)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"to pack them: msdata pack {out / 'fits'} DATA --survey legacy --survey" in said
    names = {path.name for path in (out / "fits").rglob("*.fits")}
    ids = [sample_id for sample_id, *_ in fetching.rows_of(catalog)]
    ends = ("legacy.fits", "deep.g.fits", "deep.i.fits")
    assert names == {f"{i}.{end}" for i in ids for end in ends}
    # A file that went is fetched again, and nothing else.
    (lost,) = out.rglob(f"{ids[0]}.deep.i.fits")
    whole = lost.read_bytes()
    lost.unlink()
    num_before = len(running.log)
    assert main(command) == 0
    assert lost.read_bytes() == whole
    assert 3 <= len(running.log) - num_before <= 6
    data = tmp_path / "data"
    words = ("--catalog", str(catalog), "--split", "1,0,0", "--jobs", "1", "--quiet")
    assert main(["pack", str(out / "fits"), str(data), *surveys, *words]) == 0
    samples = skyimages.packed_samples(data)
    for sample_id, ra, dec in fetching.rows_of(catalog):
        query = {"ra": f"{ra:.8f}", "dec": f"{dec:.8f}", "size": "128", "pixscale": "0.262"}
        asked = Asked(seed=0, plan=FaultPlan(), query=query)
        layer = [layer_picture(asked, "ls-dr10", band).pixels for band in "grz"]
        np.testing.assert_array_equal(samples[sample_id]["legacy"], np.stack(layer))
        at = (float(query["ra"]), float(query["dec"]))
        scale = float(f"{30 * 0.262 / 3600:.12f}") * 3600 / 30
        hips = [hips_cutout(0, band, at, 30, scale).pixels for band in "gi"]
        np.testing.assert_array_equal(samples[sample_id]["deep"], np.stack(hips))
        assert samples[sample_id]["zero_point_legacy_z"] == 22.5


@pytest.mark.parametrize(
    ("hips", "says"),
    [
        ("test/jpeg", "HiPS test/jpeg has tiles of a picture, 3 planes of uint8, not flux"),
        ("test/page", "it sent no FITS but the text '<!DOCTYPE html><html>busy</html>'"),
        ("test/small", "band i has 24x24 pixels, asked for were 30x30"),
        ("test/off", "has the position 2.50 pixels from its center"),
        ("test/scale", "band i has 0.2882 arcsec per pixel instead of 0.262"),
        ("test/blank", "band i is NaN throughout"),
        ("test/zeros", "band i has 900 pixels of exactly 0: the service has no coadd there"),
        ("test/unit", "its pixels' unit is 'mjy/sr', expected 'nanomaggy' of deep"),
        ("CDS/P/Typo/i", "HTTP 404"),
    ],
)
def test_what_a_hips_may_send_instead_is_refused(
    running: StandIns, hips: str, says: str, tmp_path: Path
) -> None:
    report = fetched(running, tmp_path, str(hips_file(tmp_path, hips)))
    assert report.states == {"refused": 2}
    reasons = {row["reason"] for row in fetching.failed_rows(tmp_path / "out").values()}
    assert all(says in reason for reason in reasons), reasons
    assert not list(tmp_path.rglob("*.fits"))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("clamped", "band g has 24x24 pixels, asked for were 128x128"),
        ("off_center", "more than half a pixel"),
        ("one_band", "it sent no band r, z, only g"),
        ("no_unwise", "pixels of exactly 0: the service has no coadd there"),
    ],
)
def test_what_the_viewer_may_send_instead_is_refused(kind: str, says: str, tmp_path: Path) -> None:
    with fetching.standins(FaultPlan(lasting_fraction=1, lasting=(kind,))) as running:
        assert fetched(running, tmp_path, "legacy").states == {"refused": 2}
    assert all(says in row["reason"] for row in fetching.failed_rows(tmp_path / "out").values())


def test_settings_that_do_not_fit_are_refused_before_anything_is_asked(
    running: StandIns, tmp_path: Path
) -> None:
    legacy, own = read_survey("legacy"), tmp_path / "own.toml"

    def refusal(text: str = "", **options: Any) -> str:
        own.write_text(text)
        with pytest.raises(UsageError) as caught:
            surveys = (read_survey(str(own)),) if text else (legacy,)
            FetchSettings(catalog=Path("c.csv"), out=Path("out"), surveys=surveys, **options)
        return str(caught.value)

    assert "fetch first, then run 'msdata pack out/fits data --survey legacy --catalog" in refusal(
        pack=Path("data")
    )
    assert "--keep-fits is for Pan-STARRS" in refusal(keep_fits=True)
    good = HIPS.format(i=GOOD)
    assert "its service sends one file per band; its pattern must be with {band}" in refusal(
        good.replace(".{band}", "")
    )
    assert "hips must name one HiPS per band" in refusal(good.replace('i = "CDS', 'z = "CDS'))
    assert "give layer or hips, not both" in refusal('layer = "ls-dr9"' + good)
    assert "pattern must stay in its folder" in refusal(good.replace("{id}", "../{id}"))
    coarse = ('layer = "ls-dr10"' + good).partition("[hips]")[0].replace(".{band}", "")
    assert "layer ls-dr10 has 0.262 arcsec per pixel, not 1" in refusal(
        coarse.replace("0.262", "1.0")
    )
    with pytest.raises(UsageError, match="survey 'hsc' names no service to fetch from; give layer"):
        FetchSettings(catalog=own, out=own, surveys=(read_survey("hsc"),))
    with pytest.raises(UsageError, match="distinct surveys, got legacy, legacy"):
        FetchSettings(catalog=own, out=own, surveys=(legacy, legacy))
    with pytest.raises(UsageError, match=r"was started with --survey deep=\w{8}, not legacy="):
        folder = tmp_path / "begun"
        folder.mkdir()
        fetched(running, folder, str(hips_file(tmp_path, "test/zeros")))
        fetched(running, folder, "legacy")
