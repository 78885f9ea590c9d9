"""The stand-in services: their grids by astropy's reckoning, their headers beside real ones."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import fetching
import numpy as np
import pytest
import requests
from fake_services import imagery
from fake_services.faults import FaultPlan
from fake_services.fitsfile import coadd_cards, image_file, panstarrs_cards, viewer_cards
from fake_services.grid import Grid, centered, home_cell, sky_cell, tiles_at
from fake_services.sky import BANDS, Galaxy, galaxies_near, render
from hypothesis import given, settings
from hypothesis import strategies as st

from msdata.errors import UsageError
from msdata.sources.fits_image import read_planes

REAL = Path(__file__).parents[4] / "shared" / "realdata"
POSITIONS = st.tuples(st.floats(0, 359.999), st.floats(-29, 80))


def wcs_of(content: bytes) -> Any:
    from astropy.io import fits
    from astropy.wcs import WCS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old form of the PC matrix
        return WCS(fits.Header.fromstring(content), naxis=2, fix=False)


def files_of(grid: Grid) -> dict[str, bytes]:
    return {
        "ps1": image_file(None, panstarrs_cards(grid, "g", "1329.005", 43.0)),
        "legacy": image_file(None, viewer_cards(grid, "GALEX", ["n", "f"])),
        "unwise_me": image_file(None, coadd_cards(grid, "1")),
    }


@settings(max_examples=30)
@given(POSITIONS)
def test_pixels_lie_on_the_sky_where_astropy_has_them(position: tuple[float, float]) -> None:
    ra, dec = position
    cell = home_cell(ra, dec).grid
    x, y = cell.pixel(ra, dec)
    for grid in (cell.cut(int(x) - 20, int(y) - 20, 40, 40), centered(ra, dec, 33, 2.75)):
        ra_HW, dec_HW = grid.sky()
        for name, content in files_of(grid).items():
            wcs = wcs_of(content)
            theirs = wcs.all_pix2world([[3.0, 7.0]], 0)[0]
            turn = (theirs[0] - ra_HW[7, 3] + 180) % 360 - 180
            assert abs(turn) * np.cos(np.radians(dec)) < 1e-8, name
            assert abs(theirs[1] - dec_HW[7, 3]) < 1e-8, name
            np.testing.assert_allclose(
                wcs.all_world2pix([[ra, dec]], 0)[0], grid.pixel(ra, dec), atol=1e-4
            )


@settings(max_examples=30)
@given(POSITIONS)
def test_a_position_has_a_sky_cell_and_a_coadd_that_hold_its_cutout(
    position: tuple[float, float],
) -> None:
    cell = home_cell(*position)
    x, y = cell.grid.pixel(*position)
    assert 86 < x < cell.grid.width - 87
    assert 86 < y < cell.grid.height - 87
    assert sky_cell(cell.projection, cell.number) == cell
    tiles = [tile.grid.pixel(*position) for tile in tiles_at(*position, 17)]
    assert any(min(p) > 17 and max(p) < 2048 - 18 for p in tiles)


def test_a_galaxy_is_where_the_sky_has_it_and_as_bright() -> None:
    alone = next(
        g
        for g in galaxies_near(5, 120.0, 33.0, 0.2)
        if all(_distance_arcsec(g, o) > 45 for o in galaxies_near(5, g.ra, g.dec, 0.03) if o != g)
    )
    for band, scale, size in (("g", 0.25, 101), ("NUV", 1.5, 21), ("W1", 2.75, 11)):
        image = render(5, band, centered(alone.ra, alone.dec, size, scale))
        np.testing.assert_allclose(image.sum(), alone.flux(band), rtol=1e-3)
        assert np.unravel_index(image.argmax(), image.shape) == (size // 2, size // 2)


def _distance_arcsec(one: Galaxy, other: Galaxy) -> float:
    east = (one.ra - other.ra) * np.cos(np.radians(one.dec))
    return float(np.hypot(east, one.dec - other.dec) * 3600)


def test_north_is_up_and_east_is_left() -> None:
    grid = centered(200.0, 40.0, 101, 1.5)
    assert grid.pixel(200.0, 40.01)[1] > 50 > grid.pixel(200.0, 39.99)[1]
    assert grid.pixel(200.01, 40.0)[0] < 50 < grid.pixel(199.99, 40.0)[0]


def test_two_cutouts_of_one_sky_cell_agree_where_they_overlap() -> None:
    cell = home_cell(45.0, 10.0)
    step = 0.25 / 3600
    one = imagery.stack_cutout(1, cell, "r", (45.0, 10.0), 60)
    other = imagery.stack_cutout(1, cell, "r", (45.0, 10.0 + 20 * step), 60)
    shift = round(one.grid.y - other.grid.y)
    assert shift == 20
    assert one.pixels[shift:].tobytes() == other.pixels[:-shift].tobytes()


def test_bands_of_one_place_differ() -> None:
    images = {band: render(0, band, centered(10.0, 20.0, 32, 1.5)).tobytes() for band in BANDS}
    assert len(set(images.values())) == len(BANDS)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("hostphot/SN2006bh/PS1_g.fits", "ps1"),
        ("legacypipe/3460p121/unwise-3460p121-w1-img-m.fits", "unwise_me"),
    ],
)
def test_headers_have_the_cards_of_real_ones(name: str, ours: str) -> None:
    if not REAL.exists():
        pytest.skip(f"no real survey files here: {REAL}")
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = fits.getheader(REAL / name)
        mock = fits.Header.fromstring(files_of(centered(1.0, 2.0, 10, 0.25))[ours])
        placed = [k for k in real if k.startswith(("CR", "CD", "PC0", "CTYPE", "CUNIT", "MAGZP"))]
        placed += [k for k in ("EXPTIME", "FPA.ZP", "FPA.FILTERID", "RADESYS") if k in real]
        assert len(placed) >= 10
        for key in placed:
            assert key in mock, key
            assert type(mock[key]) is type(real[key]) or key.startswith(("CR", "CD")), key
    theirs = read_planes((REAL / name).read_bytes())[0]
    mine = read_planes(
        {
            "ps1": image_file(
                np.zeros((4, 4), np.float32),
                panstarrs_cards(centered(1, 2, 4, 0.25), "g", "1329.005", 860.0),
            ),
            "unwise_me": image_file(
                np.zeros((4, 4), np.float32), coadd_cards(centered(1, 2, 4, 2.75), "1")
            ),
        }[ours]
    )[0]
    assert mine.band == theirs.band
    assert mine.photometry == theirs.photometry


def test_services_answer_as_the_real_ones_do() -> None:
    with fetching.standins() as running:

        def ask(path: str, **query: Any) -> Any:
            return requests.get(running.url + path, params=query, timeout=10)

        place = {"ra": 10.0, "dec": 20.0}
        assert ask("/viewer/fits-cutout", **place, layer="nothing").text == "no such layer"
        assert ask("/viewer/fits-cutout", **place, layer="nothing").status_code == 200
        viewed = ask("/viewer/fits-cutout", **place, layer="galex", size=100_000, pixscale=1.5)
        assert [p.pixels.shape for p in read_planes(viewed.content)] == [(512, 512)] * 2
        assert ask("/cgi-bin/fitscut.cgi", **place, red="nothing").text.startswith("fitscut: error")
        assert ask("/viewer/fits-cutout", layer="galex").status_code == 400
        assert ask("/elsewhere").status_code == 404
        rows = ask("/cgi-bin/ps1filenames.py", **place, filters="gz").text.splitlines()
        assert [row.split()[4] for row in rows[1:]] == ["g", "z"]


def test_faults_come_as_often_as_they_are_asked_for() -> None:
    plan = FaultPlan(seed=4, passing_fraction=0.3, lasting_fraction=0.1, odd_fraction=0.2)
    passing = [plan.passing_fault(f"request {i}", i % 3) for i in range(4000)]
    assert 0.27 < np.mean([fault is not None for fault in passing]) < 0.33
    assert not any(plan.passing_fault(f"request {i}", plan.max_in_a_row) for i in range(99))
    objects = [plan.lasting_fault(i / 10, 0.0) for i in range(3000)]
    assert 0.27 < np.mean([fault is not None for fault in objects]) < 0.33
    with pytest.raises(UsageError, match="no passing fault"):
        FaultPlan(passing=("explosion",))
    with pytest.raises(UsageError, match="must be 0 to 1"):
        FaultPlan(passing_fraction=1.5)
