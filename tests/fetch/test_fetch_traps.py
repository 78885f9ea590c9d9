"""Each trap of the services by itself: what is refused, with which words, and what is not."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fetching
import numpy as np
import pytest
import requests
from fake_services.answers import Asked, neighbor_of, stack_picture
from fake_services.faults import LASTING, ODDITIES, PASSING, FaultPlan
from fake_services.grid import home_cell, tiles_at
from fake_services.imagery import coadd_cutout, exposure_s

from msdata.fetch.answer import Wanted, band_stamp, fits_planes, planes_by_band
from msdata.fetch.failures import RefusedError, SpoiledError
from msdata.fetch.journal import read_entries
from msdata.fetch.legacy import LAYERS
from msdata.fetch.panstarrs import Cut, _check_one_grid, choose_stacks
from msdata.fetch.run import FetchReport, fetch
from msdata.fetch.settings import FetchSettings
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.pickles import read_object

PANSTARRS = MANTIS_SHRIMP["panstarrs"]
Fetch = Callable[..., FetchReport]


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return fetching.write_catalog(tmp_path / "catalog.csv", 3)


@pytest.fixture
def fetched(tmp_path: Path, catalog: Path) -> Iterator[Fetch]:
    """Fetches the catalog from stand-ins with a plan, into `tmp_path / "out"`."""

    def run(plan: FaultPlan, services: dict[str, Any] | None = None, **options: Any) -> FetchReport:
        with fetching.standins(plan) as running:
            settings = FetchSettings(
                catalog=catalog,
                out=tmp_path / "out",
                services=fetching.services(running.url, **(services or {})),
                **options,
            )
            return fetch(settings)

    yield run


@pytest.mark.parametrize("kind", LASTING)
def test_an_object_with_a_lasting_fault_is_refused_with_its_reason(
    kind: str, fetched: Fetch, catalog: Path, tmp_path: Path
) -> None:
    plan = FaultPlan(lasting_fraction=1, lasting=(kind,))
    report = fetched(plan)
    assert report.states == {"refused": 3}
    assert report.is_settled
    fetching.assert_complete(tmp_path / "out", catalog, plan, 0)


@pytest.mark.parametrize("kind", ODDITIES)
def test_an_odd_object_is_good_and_bit_correct(
    kind: str, fetched: Fetch, catalog: Path, tmp_path: Path
) -> None:
    plan = FaultPlan(lasting_fraction=1, lasting=(kind,))
    report = fetched(plan)
    assert report.states == {"fetched": 3}
    fetching.assert_complete(tmp_path / "out", catalog, plan, 0)


@pytest.mark.parametrize("kind", PASSING)
def test_a_passing_fault_is_asked_again_and_leaves_no_trace(
    kind: str, fetched: Fetch, catalog: Path, tmp_path: Path
) -> None:
    in_a_row = 1 if kind == "hang" else 2
    plan = FaultPlan(
        passing_fraction=1, passing=(kind,), max_in_a_row=in_a_row, hang_s=0.5, retry_after_s=0
    )
    report = fetched(plan, {"read_timeout_s": 0.4} if kind == "hang" else None)
    assert report.states == {"fetched": 3}
    assert sum(c["retries"] for c in report.services.values()) >= in_a_row * 8 * 3
    fetching.assert_complete(tmp_path / "out", catalog, FaultPlan(), 0)


def test_galex_zeros_are_no_fault_and_are_told(fetched: Fetch) -> None:
    report = fetched(FaultPlan(lasting_fraction=1, lasting=("no_galex",)))
    assert report.no_coverage["galex.FUV"] == 3


def test_swapped_bands_are_put_right_by_the_header(fetched: Fetch, tmp_path: Path) -> None:
    fetched(FaultPlan(lasting_fraction=1, lasting=("swapped_bands",)))
    swapped = read_object(fetching.object_file(tmp_path / "out", "0000001"))
    (ra, dec), plan = fetching.rows_of(tmp_path / "catalog.csv")[0][1:], FaultPlan()
    plain = fetching.expected_sample(plan, 0, ra, dec)
    assert swapped["galex"].tobytes() == plain["galex"].tobytes()
    assert plain["galex"][0].tobytes() != plain["galex"][1].tobytes()


def test_of_several_sky_cells_the_one_without_missing_pixels_is_taken(
    fetched: Fetch, catalog: Path, tmp_path: Path
) -> None:
    plan = FaultPlan(lasting_fraction=1, lasting=("several_cells",))
    fetched(plan)
    sample_id, ra, dec = fetching.rows_of(catalog)[0]
    # The list names the wrong one first, and it has missing pixels.
    asked = Asked(seed=0, plan=plan, query={"ra": str(ra), "dec": str(dec), "size": "172"})
    wrong = stack_picture(asked, neighbor_of(home_cell(ra, dec)), "g")
    assert np.isnan(wrong.pixels).any()
    found = read_object(fetching.object_file(tmp_path / "out", sample_id))
    assert np.isfinite(found["panstarrs"]).all()


@pytest.mark.parametrize("kind", ["split_bands", "ragged_cells"])
def test_bands_of_one_projections_cells_are_combined_and_each_keeps_its_own_zero_point(
    kind: str, fetched: Fetch, catalog: Path, tmp_path: Path
) -> None:
    plan = FaultPlan(lasting_fraction=1, lasting=(kind,))
    fetched(plan)
    entries = read_entries(tmp_path / "out")
    for sample_id, ra, dec in fetching.rows_of(catalog):
        query = {"ra": f"{ra:.8f}", "dec": f"{dec:.8f}", "size": "172"}
        asked = Asked(seed=0, plan=plan, query=query)
        cells = {band: fetching.cell_of(asked, band) for band in "grizy"}
        assert len({cell.name for cell in cells.values()}) == 2
        found = read_object(fetching.object_file(tmp_path / "out", sample_id))
        assert np.isfinite(found["panstarrs"]).all()
        for band, cell in cells.items():
            seconds = exposure_s(0, cell, band)
            expected = 25 + 2.5 * np.log10(seconds)
            assert found[f"zero_point_panstarrs_{band}"] == pytest.approx(expected, abs=1e-4)
            assert entries[sample_id].notes["panstarrs"]["sky_cell"][band] == cell.name


def test_bands_whose_pixel_grids_differ_are_refused_not_resampled() -> None:
    with fetching.standins() as running:
        query = {"ra": "10", "dec": "5", "size": "172", "format": "fits"}
        home = home_cell(10, 5)
        red = f"/rings.v3.skycell/x/rings.v3.skycell.{home.name}.stk.g.unconv.fits"
        url = f"{running.url}/cgi-bin/fitscut.cgi"
        content = requests.get(url, params={**query, "red": red}, timeout=10).content
    wanted = Wanted(survey=PANSTARRS, position=(10.0, 5.0), size=172, center=86)
    (plane,) = fits_planes(content, 1 << 24)
    right = Cut(cell="1329.005", band=band_stamp(plane, "g", wanted), content=b"")
    x, y = right.band.offset_pixels
    _check_one_grid({"g": right, "r": right})
    for changes in ({"offset_pixels": (x, y + 0.1)}, {"tilt_deg": right.band.tilt_deg + 0.1}):
        other = replace(right, cell="1329.006", band=replace(right.band, **changes))
        with pytest.raises(RefusedError, match="lies on another grid of pixels than band g"):
            _check_one_grid({"g": right, "r": other})


def test_nan_cores_stay_nan_for_pack_to_fill(fetched: Fetch, tmp_path: Path) -> None:
    fetched(FaultPlan(lasting_fraction=1, lasting=("nan_core",)))
    found = read_object(fetching.object_file(tmp_path / "out", "0000002"))
    num_nan = np.count_nonzero(np.isnan(found["panstarrs"]), axis=(1, 2))
    assert sorted(num_nan)[:4] == [0, 0, 0, 0]
    assert 50 < max(num_nan) < 100


def test_a_position_lies_within_half_a_pixel_of_the_stamps_center(
    fetched: Fetch, catalog: Path, tmp_path: Path
) -> None:
    fetched(FaultPlan(), keep_fits=True)
    from astropy.io import fits
    from astropy.wcs import WCS

    for sample_id, ra, dec in fetching.rows_of(catalog):
        name = tmp_path.joinpath("out", "fits", *sample_id[:4], f"{sample_id}.g.fits")
        with fits.open(name) as hdus, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old form of the PC matrix
            raw, wcs = hdus[0].data.copy(), WCS(hdus[0].header, fix=False)
        stamp = read_object(fetching.object_file(tmp_path / "out", sample_id))["panstarrs"][0]
        # Where in the raw file the stamp was cut.
        corners = [
            (x, y)
            for y in range(3)
            for x in range(3)
            if raw[y : y + 170, x : x + 170].astype("<f4").tobytes() == stamp.tobytes()
        ]
        assert len(corners) == 1
        offset = wcs.all_world2pix([[ra, dec]], 0)[0] - corners[0] - 84.5
        assert np.abs(offset).max() <= 0.5


def test_unknown_bands_get_all_bands_from_the_viewer_and_are_refused_here() -> None:
    with fetching.standins() as running:
        query = {"ra": "10", "dec": "5", "size": "32", "pixscale": "1.5", "layer": "galex"}
        url = f"{running.url}/viewer/fits-cutout"
        asked = requests.get(url, params={**query, "bands": "x"}, timeout=10).content
        one = requests.get(url, params={**query, "bands": "n"}, timeout=10).content
    planes = fits_planes(asked, 1 << 24)
    assert [plane.band for plane in planes] == ["n", "f"]
    galex = MANTIS_SHRIMP["galex"]
    zero_points = (galex.zero_points_ab or ())[:1] or None
    only_nuv = replace(galex, bands=("NUV",), shape=(1, 32, 32), zero_points_ab=zero_points)
    with pytest.raises(RefusedError, match="it sent band f; wanted are NUV"):
        planes_by_band(planes, only_nuv, {"n": "NUV"})
    with pytest.raises(RefusedError, match="it sent no band FUV, only NUV"):
        planes_by_band(fits_planes(one, 1 << 24), MANTIS_SHRIMP["galex"], LAYERS["galex"][2])


def test_a_list_of_files_of_another_position_is_not_believed() -> None:
    with fetching.standins() as running:
        content = requests.get(
            f"{running.url}/cgi-bin/ps1filenames.py", params={"ra": 10, "dec": 5}, timeout=10
        ).content
    assert choose_stacks(content, PANSTARRS, (10.0, 5.0))
    with pytest.raises(SpoiledError, match="its list is of the position"):
        choose_stacks(content, PANSTARRS, (10.1, 5.0))


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>maintenance</html>", b"projcell subcell ra dec filter mjd type filename\n1 2 3"],
)
def test_what_is_no_list_of_files_is_spoiled_not_outside_of_the_survey(content: bytes) -> None:
    with pytest.raises(SpoiledError):
        choose_stacks(content, PANSTARRS, (10.0, 5.0))


def test_a_position_across_right_ascension_zero_is_fetched(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("id,ra,dec\n1,359.99999,0.1\n2,0.00001,-0.1\n3,-0.5,80.5\n")
    with fetching.standins() as running:
        settings = FetchSettings(
            catalog=catalog, out=tmp_path / "out", services=fetching.services(running.url)
        )
        assert fetch(settings).states == {"fetched": 3}
    fetching.assert_object(
        tmp_path / "out", "0000003", fetching.expected_sample(FaultPlan(), 0, 359.5, 80.5)
    )


def test_unwise_me_gives_the_coadds_own_pixels(tmp_path: Path) -> None:
    # The middle of a coadd, and a place where two overlap.
    edge_ra = next(
        ra
        for ra in np.arange(30, 32, 0.005)
        if [_holds_whole(t, ra, 30.3) for t in tiles_at(ra, 30.3, 17)] == [True, True]
    )
    rows = [(30.2, 30.0), (round(float(edge_ra), 6), 30.3)]
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("id,ra,dec\n" + "".join(f"{i},{r},{d}\n" for i, (r, d) in enumerate(rows)))
    with fetching.standins() as running:
        settings = FetchSettings(
            catalog=catalog,
            out=tmp_path / "out",
            services=fetching.services(running.url),
            unwise_from="unwise_me",
            keep_fits=True,
        )
        assert fetch(settings).states == {"fetched": 2}
    for number, (ra, dec) in enumerate(rows):
        tiles = [t for t in tiles_at(ra, dec, 17) if _holds_whole(t, ra, dec)]
        assert len(tiles) == number + 1
        near = min(tiles, key=lambda t: np.hypot(*np.subtract(t.grid.pixel(ra, dec), 1023.5)))
        found = read_object(fetching.object_file(tmp_path / "out", f"{number:07d}"))["unwise"]
        for band, image in zip("12", found, strict=True):
            whole = coadd_cutout(0, near, band, (ra, dec), 34)
            assert image.tobytes() == fetching._middle(whole, ra, dec, 32).tobytes()


def _holds_whole(tile: Any, ra: float, dec: float) -> bool:
    x, y = tile.grid.pixel(ra, dec)
    return 17 < x < 2030 and 17 < y < 2030


def test_an_object_without_a_position_is_refused_without_a_request(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("id,ra,dec\n1,,5\n2,10,95\n")
    with fetching.standins() as running:
        settings = FetchSettings(
            catalog=catalog, out=tmp_path / "out", services=fetching.services(running.url)
        )
        assert fetch(settings).states == {"refused": 2}
        assert not running.log
    with (tmp_path / "out" / "failed.csv").open() as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    assert reasons == [
        "it has no position in the catalog",
        "it has no position in the catalog",
    ]
