"""Which image of a FITS file is taken, what its header may say, and what blank pixels become."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import skyimages
from astropy.io import fits

from msdata.errors import SampleError
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.fits import FitsTree
from msdata.sources.fits_image import Photometry, read_planes
from msdata.sources.fits_options import FitsOptions
from msdata.sources.zero_points import zero_point_ab

HERE = {"ra": skyimages.RA, "dec": skyimages.DEC}
GALEX_ONLY = FitsOptions(patterns={"galex": "{id}.Galex.fits"})


def _one_band(folder: Path, *hdus: tuple[str, float], cube: int = 0, **cards: Any) -> FitsTree:
    """An object whose g file has extensions of (name, factor on the picture)."""
    header = skyimages.header_of(200, 0.25, style="old_pc")
    header["EXPTIME"] = 43.0
    header.update(cards)
    image = skyimages.paint(header, 200, 0.25, 3.0)
    if cube:
        image = np.stack([image] * cube)
    parts = [fits.PrimaryHDU(image * hdus[0][1], header)]
    parts += [fits.ImageHDU(image * factor, header) for _, factor in hdus[1:]]
    for hdu, (name, _) in zip(parts, hdus, strict=True):
        hdu.name = name
    fits.HDUList(parts).writeto(folder / "x.g.fits", overwrite=True)
    return _tree_of_g(folder, "{id}.{band}.fits")


def _tree_of_g(folder: Path, pattern: str) -> FitsTree:
    return FitsTree(
        folder, FitsOptions(patterns={"panstarrs": pattern}, bands={"panstarrs": ("g",)})
    )


def _brightest(tree: FitsTree) -> float:
    return float(np.nanmax(tree.read("x", -1, HERE)["panstarrs"]))


@pytest.mark.parametrize(
    "hdus",
    [
        [("WHT", 7), ("SCI", 1)],
        [("g_weight", 7), ("", 1)],
        [("INVVAR", 7), ("COMPRESSED_IMAGE", 1), ("DQ", 3)],
        [("CCD1", 7), ("IMAGE", 1)],
        [("", 1), ("err", 7)],
    ],
)
def test_an_image_of_one_band_is_found_by_its_extensions_name_not_by_its_place(tmp_path, hdus):
    usual = _brightest(_one_band(tmp_path, ("", 1)))
    assert _brightest(_one_band(tmp_path, *hdus)) == usual


def test_one_of_several_images_is_asked_for_and_taken_by_its_name_or_number(tmp_path):
    usual = _brightest(_one_band(tmp_path, ("", 1)))
    tree = _one_band(tmp_path, ("CCD1", 7), ("CCD2", 1))
    with pytest.raises(SampleError, match=r"x\.g\.fits: it holds several images \(CCD1, CCD2\)"):
        _brightest(tree)
    for extension in ("ccd2", "1"):
        assert _brightest(_tree_of_g(tmp_path, f"{{id}}.{{band}}.fits[{extension}]")) == usual
    with pytest.raises(SampleError, match=r"it has no image extension SCI: CCD1, CCD2"):
        _brightest(_tree_of_g(tmp_path, "{id}.{band}.fits[SCI]"))
    assert _tree_of_g(tmp_path, "{id}.{band}.fits[CCD1]").scan().num_rows == 1


def test_a_cube_or_a_weight_map_alone_is_not_taken_for_one_bands_image(tmp_path):
    with pytest.raises(SampleError, match="its image is a cube of 3 planes, not one of g"):
        _brightest(_one_band(tmp_path, ("", 1), cube=3))
    with pytest.raises(SampleError, match="only images of weights, errors or masks: WHT"):
        _brightest(_one_band(tmp_path, ("WHT", 1)))
    for card in ("PRODTYPE", "IMTYPE"):
        with pytest.raises(SampleError, match="only images of weights, errors or masks"):
            _brightest(_one_band(tmp_path, ("COMPRESSED_IMAGE", 1), **{card: "invvar"}))
    named = _one_band(tmp_path, ("", 1), cube=2, BAND0="r", BAND1="g")
    assert _brightest(named) > 0


def test_weights_before_the_image_of_several_bands_are_not_taken_for_it(tmp_path):
    skyimages.write_object(tmp_path, "x")
    tree = FitsTree(tmp_path, GALEX_ONLY)
    usual = tree.read("x", -1, HERE)["galex"]
    with fits.open(tmp_path / "x.Galex.fits") as hdus:
        header, cube = hdus[0].header.copy(), hdus[0].data.copy()
    weights = fits.PrimaryHDU(np.full_like(cube, 7), header)
    weights.header["EXTNAME"] = "INVVAR"
    image = fits.ImageHDU(cube, header)
    fits.HDUList([weights, image]).writeto(tmp_path / "x.Galex.fits", overwrite=True)
    np.testing.assert_array_equal(tree.read("x", -1, HERE)["galex"], usual)


@pytest.mark.parametrize("kind", [fits.PrimaryHDU, fits.CompImageHDU])
@pytest.mark.parametrize(
    ("dtype", "blank"), [("u2", -32768), ("u4", -(1 << 31)), ("i2", -5), ("i1", 0), ("u1", 255)]
)
def test_blank_pixels_of_integer_images_are_nan_and_the_others_exact(kind, dtype, blank):
    header = skyimages.header_of(20, 0.25)
    stored = {"u2": ("i2", 1 << 15), "u4": ("i4", 1 << 31), "i1": ("u1", -128)}.get(
        dtype, (dtype, 0)
    )
    raw = np.arange(400).reshape(20, 20).astype(stored[0])
    raw[3, 4] = blank
    hdu = kind(raw, header)
    hdu.header["BLANK"] = blank
    file = io.BytesIO()
    parts = [hdu] if kind is fits.PrimaryHDU else [fits.PrimaryHDU(), hdu]
    fits.HDUList(parts).writeto(file)
    # Put in behind the writer, which would scale the pixels by it.
    content = file.getvalue()
    if stored[1]:
        card = fits.Card("BZERO", float(stored[1])).image.encode()
        place = content.rindex(b"END" + b" " * 77)
        assert content[place + 80 : place + 160] == b" " * 80, "room for a card"
        content = content[:place] + card + content[place : place + 80] + content[place + 160 :]
    (plane,) = read_planes(content)
    expected = raw.astype(np.float64) + stored[1]
    expected[raw == blank] = np.nan
    np.testing.assert_array_equal(plane.pixels, expected)


@pytest.mark.parametrize(
    "cards",
    [
        {"TELESCOP": "ESO-VST", "INSTRUME": "OMEGACAM"},
        {"INSTRUME": "DECam"},
        {"SURVEY": "LegacySurvey"},
        {"TELESCOP": "WISE"},
    ],
)
def test_a_file_of_another_survey_gets_no_panstarrs_zero_point(tmp_path, cards):
    card, value = next(iter(cards.items()))
    tree = _one_band(tmp_path, ("", 1), **cards)
    with pytest.raises(SampleError, match=rf"x\.g\.fits: its header says {card} '{value}'.* not"):
        tree.read("x", -1, HERE)
    # Nanomaggies mean the same in files of all surveys.
    tree = _one_band(tmp_path, ("", 1), BUNIT="nanomaggy", **cards)
    assert tree.read("x", -1, HERE)["zero_point_panstarrs_g"] == 22.5


@pytest.mark.parametrize(
    ("array", "cards"),
    [
        ("panstarrs", {"FPA.TELESCOPE": "PS1", "PSCAMERA": "GPC1"}),
        ("panstarrs", {"TELESCOP": "PS2", "INSTRUME": "GPC2"}),
        ("panstarrs", {"TELESCOP": "unknown"}),
        ("galex", {"TELESCOP": "GALEX", "INSTRUME": "MIC"}),
        ("galex", {"SURVEY": "LegacySurvey"}),
        ("unwise", {"TELESCOP": "WISE"}),
        ("unwise", {"SURVEY": "unWISE NEO7"}),
    ],
)
def test_files_of_the_survey_itself_keep_its_zero_point(array, cards):
    survey = MANTIS_SHRIMP[array]
    photometry = Photometry(exposure_s=1.0, origin=tuple(cards.items()))
    assert zero_point_ab(survey, survey.bands[0], photometry) is not None


@pytest.mark.parametrize(
    ("exposure", "found"),
    [
        (0.0, "has EXPTIME 0.0, not seconds > 0"),
        (-5, "has EXPTIME -5, not seconds > 0"),
        ("NaN", "has EXPTIME 'NaN', not seconds > 0"),
        ("long", "has EXPTIME 'long', not seconds > 0"),
        (None, "has no EXPTIME"),
    ],
)
def test_an_exposure_time_that_is_none_is_quoted(tmp_path, exposure, found):
    _one_band(tmp_path, ("", 1))
    with fits.open(tmp_path / "x.g.fits", mode="update") as hdus:
        hdus[0].header["EXPTIME"] = exposure
        if exposure is None:
            del hdus[0].header["EXPTIME"]
    tree = FitsTree(
        tmp_path,
        FitsOptions(
            patterns={"panstarrs": "{id}.{band}.fits"},
            bands={"panstarrs": ("g",)},
            calibration="ab",
        ),
    )
    with pytest.raises(SampleError, match=f"its header {found}, so its zero-point is unknown"):
        tree.read("x", -1, HERE)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_packing_fits_with_leftover_cards_writes_its_json_alone_to_stdout(tmp_path, jobs):
    folder = tmp_path / "raw"
    rows = []
    for name in "ab":
        skyimages.write_object(folder, name)
        rows.append((name, skyimages.RA, skyimages.DEC))
        with fits.open(folder / f"{name}.g.fits", mode="update") as hdus:
            # Distortion of the exposures, left by what stacked them; astropy remarks on it.
            hdus[0].header.update({"A_ORDER": 2, "A_2_0": 0.0, "B_ORDER": 2, "B_0_2": 0.0})
    (folder / "catalog.csv").write_text(skyimages.catalog_text(rows))
    ran = packing.pack(folder, tmp_path / "out", "--json", "--jobs", jobs)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["num_samples"] == 2
    assert ran.stderr == ""


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path):
    header = skyimages.header_of(40, 0.25)
    plain = skyimages.content_of(np.zeros((40, 40), np.float32), header)
    with pytest.raises(SampleError, match="unpacked it has more than 128 MiB"):
        read_planes(gzip.compress(plain + bytes(1 << 28)))
    zeros = fits.CompImageHDU(
        np.zeros((6000, 6000), np.float32), header, compression_type="GZIP_1", quantize_level=0.0
    )
    file = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), zeros]).writeto(file)
    assert len(file.getvalue()) < 2 << 20
    with pytest.raises(SampleError, match=r"an image of \(6000, 6000\) has more than 128 MiB"):
        read_planes(file.getvalue())
    # Zeros of a usual size may be as small as they like.
    (plane,) = read_planes(gzip.compress(plain))
    assert plane.pixels.shape == (40, 40)
