"""FITS files of any survey: headers as the surveys write them, positions, magnitudes, refusals."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import skyimages
from astropy.io import fits

from msdata.errors import SampleError, UsageError
from msdata.sources.fits import FitsTree
from msdata.sources.fits_image import Photometry
from msdata.sources.fits_options import FitsOptions
from msdata.sources.survey_file import SHIPPED, SurveyFile, read_survey
from msdata.verify.repair import repair
from msdata.verify.verify import verify_dataset

HERE = {"ra": skyimages.RA, "dec": skyimages.DEC}
# Of the three sources of `skyimages`, in units of which one has AB magnitude 22.5.
TOTAL = sum(flux for *_, flux in skyimages.SOURCES)
JANSKY_OF_NANOMAGGY = 10 ** (-0.4 * (22.5 - 8.9))
# Per survey: cards of the primary header, of the image, the image's extension, what a nanomaggy is
# in the file's unit (None: by band), its pixel scale, and how north is turned.
CASES = {
    "hsc": (
        {"TELESCOP": "Subaru Telescope", "INSTRUME": "Hyper Suprime-Cam", "FILTER": "HSC-G"},
        {"FLUXMAG0": 63095734448.0194, "EXTTYPE": "IMAGE"},
        "",
        10**1.8,
        0.168,
    ),
    "sdss": (
        {"TELESCOP": "2.5m", "BUNIT": "nanomaggy", "NMGY": 0.0053, "FILTER": "{band}"},
        {"RADECSYS": "ICRS"},
        None,
        None,
        0.396,
    ),
    "vista": (
        {"TELESCOP": "ESO-VISTA", "INSTRUME": "VIRCAM", "PHOTSYS": "VEGA", "PHOTZP": 30.0}
        | {"BUNIT": "ADU", "FILTER": "{band}"},
        {},
        None,
        None,
        0.34,
    ),
    "euclid_vis": (
        {"TELESCOP": "EUCLID", "INSTRUME": "VIS", "FILTER": "VIS", "MAGZERO": 23.9},
        {},
        None,
        10 ** (0.4 * 1.4),
        0.1,
    ),
    "euclid_nisp": (
        {"TELESCOP": "EUCLID", "INSTRUME": "NISP", "FILTER": "NIR_{band}", "MAGZERO": 23.9},
        {},
        None,
        10 ** (0.4 * 1.4),
        0.1,
    ),
    "nircam": (
        {"TELESCOP": "JWST", "INSTRUME": "NIRCAM", "FILTER": "{band}", "PUPIL": "CLEAR"},
        {"BUNIT": "MJy/sr", "PIXAR_SR": (0.03 / 206264.806) ** 2},
        "SCI",
        JANSKY_OF_NANOMAGGY / 1e6 / (0.03 / 206264.806) ** 2,
        0.03,
    ),
}
VISTA_AB = {"Z": 0.502, "Y": 0.6, "J": 0.916, "H": 1.366, "Ks": 1.827}
SDSS_AB = {"u": -0.04, "z": 0.02}


def per_nanomaggy(survey: str, band: str) -> float:
    """Pixel values of a source of AB magnitude 22.5."""
    if survey == "vista":
        return 10 ** (0.4 * (30.0 + VISTA_AB[band] - 22.5))
    if survey == "sdss":
        return 10 ** (0.4 * SDSS_AB.get(band, 0.0))
    found = CASES[survey][3]
    assert found is not None
    return found


def write_band(path: Path, survey: str, band: str, **grid: Any) -> None:
    """A file as the survey writes it: weights and masks beside the image where it has them.

    Those of JWST have no WCS of their own, and the context is a cube.
    """
    primary, cards, extension, _, scale = CASES[survey]
    rules = read_survey(survey)
    size = 3 * rules.size // 2 + 10
    header = skyimages.header_of(size, scale, **grid)
    fwhm = 12 * scale
    sources = skyimages.paint(header, size, scale, fwhm) * per_nanomaggy(survey, band)
    first = fits.Header(
        {k: str(v).format(band=band) if k == "FILTER" else v for k, v in primary.items()}
    )
    if survey == "hsc":
        first["FILTER"] = f"HSC-{band.upper()}"
    if extension is None:
        header.update(first)
        hdus = [fits.PrimaryHDU(sources, header)]
    else:
        header.update(cards)
        image = fits.ImageHDU(sources, header, name=extension or None)
        other = header.copy()
        other["EXTTYPE"] = "MASK"
        hdus = [fits.PrimaryHDU(header=first), image]
        if extension:
            for name in ("ERR", "CON", "WHT", "VAR_POISSON"):
                blank = np.ones((1, size, size) if name == "CON" else (size, size), np.int32)
                hdus.append(fits.ImageHDU(blank, name=name))
        else:
            bits = np.zeros((size, size), np.int32)
            bits[size // 2 + 30] = 1 << 8
            hdus.append(fits.ImageHDU(bits, other))
            other["EXTTYPE"] = "VARIANCE"
            hdus.append(fits.ImageHDU(np.ones_like(sources), other))
    content = io.BytesIO()
    fits.HDUList(hdus).writeto(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())


# Small sources: two of the three lie outside of most stamps.
@pytest.fixture(autouse=True)
def close_sources(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    scale = (
        request.node.callspec.params.get("scale", 0.1) if hasattr(request.node, "callspec") else 0.1
    )
    sources = ((0.0, 0.0, 50.0), (20 * scale, 0.0, 30.0), (0.0, 15 * scale, 20.0))
    monkeypatch.setattr(skyimages, "SOURCES", sources)


def tree_of(
    folder: Path, survey: SurveyFile, calibration: str = "none", bands: tuple[str, ...] = ()
) -> FitsTree:
    options = FitsOptions(
        patterns={survey.name: survey.files},
        surveys=(survey,),
        calibration=calibration,
        bands={survey.name: bands or survey.bands},
    )
    return FitsTree(folder, options)


@pytest.mark.parametrize(("survey", "scale"), [(name, case[4]) for name, case in CASES.items()])
@pytest.mark.parametrize(
    "grid",
    [
        {"turn_deg": 0.0, "style": "cd"},
        # Rows from north to south: the determinant is positive.
        {"turn_deg": 180.0, "mirrored": True, "style": "cd"},
        {"turn_deg": 33.0, "mirrored": True, "style": "pc"},
        {"turn_deg": 270.0, "style": "crota"},
    ],
    ids=lambda grid: "-".join(map(str, grid.values())),
)
def test_sources_have_their_position_and_ab_magnitude(
    survey: str, scale: float, grid: dict[str, Any], tmp_path: Path
) -> None:
    rules = read_survey(survey)
    # Constants of every band once, grids with the first and the last.
    is_plain = grid["turn_deg"] == 0
    bands = rules.bands if is_plain else tuple(dict.fromkeys((rules.bands[0], rules.bands[-1])))
    for band in bands:
        name = rules.pattern.format(id="7", band=band)
        write_band(tmp_path / name, survey, band, **grid)
    for calibration in ("none", "ab"):
        tree = tree_of(tmp_path, rules, calibration, bands)
        assert tree.scan()["sample_id"].to_pylist() == ["7"]
        # The object lies 3.4 pixels east and 2.3 south of the image's middle.
        east_deg, south_deg = (pixels * scale / 3600 for pixels in (3.4, 2.3))
        dec = skyimages.DEC - south_deg
        ra = skyimages.RA + east_deg / np.cos(np.radians(dec))
        sample = tree.read("7", -1, {"ra": ra, "dec": dec})
        image = sample[survey].astype(np.float64)
        steps = np.arange(rules.size) - (rules.size - 1) / 2
        for number, band in enumerate(bands):
            total = image[number].sum()
            zero_point = sample[f"zero_point_{survey}_{band}"] if calibration == "none" else 22.5
            magnitude = skyimages.magnitude(total, zero_point)
            assert magnitude == pytest.approx(22.5 - 2.5 * np.log10(TOTAL), abs=0.02)
            east = -(image[number].sum(axis=0) * steps).sum() / total
            north = (image[number].sum(axis=1) * steps).sum() / total
            # Centroids of the three: 30 % of 20 pixels east, 20 % of 15 pixels north.
            assert east == pytest.approx(6.0 - 3.4, abs=0.5)
            assert north == pytest.approx(3.0 + 2.3, abs=0.5)


def write_cube(path: Path, bands: str, unit: str = "nanomaggy") -> None:
    size, scale = 150, 0.262
    header = skyimages.header_of(size, scale)
    header["BUNIT"], header["BANDS"] = unit, bands
    image = skyimages.paint(header, size, scale, 2.0)
    cube = np.stack([(k + 1) * image for k in range(len(bands))])
    path.write_bytes(skyimages.content_of(cube, header))


@pytest.mark.parametrize("scale", [0.262])
def test_a_cube_of_the_legacy_surveys_viewer_is_taken_by_its_bands(
    scale: float, tmp_path: Path
) -> None:
    write_cube(tmp_path / "7.legacy.fits", "rgz")
    sample = tree_of(tmp_path, read_survey("legacy")).read("7", -1, HERE)
    sums = sample["legacy"].sum(axis=(1, 2))
    assert sums == pytest.approx([2 * TOTAL, TOTAL, 3 * TOTAL], rel=1e-3)
    assert sample["zero_point_legacy_z"] == 22.5
    write_cube(tmp_path / "8.legacy.fits", "grz", "adu")
    with pytest.raises(SampleError, match="unit is 'adu', expected 'nanomaggy' of legacy"):
        tree_of(tmp_path, read_survey("legacy")).read("8", -1, HERE)


def test_two_surveys_are_packed_and_repaired_by_command(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name in ("7", "8"):
        for band in "gri":
            write_band(raw / name / f"{name}.hsc.{band}.fits", "hsc", band)
        write_band(raw / name / f"{name}.euclid.VIS.fits", "euclid_vis", "VIS")
    (tmp_path / "own.toml").write_text((SHIPPED / "hsc.toml").read_text().replace("144", "100"))
    rows = [(name, skyimages.RA, skyimages.DEC) for name in ("7", "8")]
    (tmp_path / "labels.csv").write_text(skyimages.catalog_text(rows))
    options = (
        *("--survey", str(tmp_path / "own.toml"), "--survey", "euclid_vis"),
        *("--fits-bands", "hsc=g,r,i", "--calibrate", "ab", "--split", "1,0,0"),
        *("--catalog", str(tmp_path / "labels.csv")),
    )
    process = packing.pack(raw, tmp_path / "out", *options)
    assert process.returncode == 0, process.stderr
    samples = skyimages.packed_samples(tmp_path / "out")
    assert samples["8"]["hsc"].shape == (3, 100, 100)
    assert samples["8"]["euclid_vis"].shape == (1, 240, 240)
    said = json.loads((tmp_path / "out" / "dataset.json").read_text())["schema"]["arrays"]
    assert [(a["name"], a["unit"]) for a in said] == [
        ("hsc", "nanomaggy"),
        ("euclid_vis", "nanomaggy"),
    ]
    (shard,) = (tmp_path / "out").rglob("*.tar")
    whole = shard.read_bytes()
    shard.unlink()
    assert all(r.is_repaired for r in repair(verify_dataset(tmp_path / "out")))
    assert shard.read_bytes() == whole


def test_a_weight_map_is_never_packed_as_an_image(tmp_path: Path) -> None:
    rules = read_survey("nircam")
    with pytest.raises(UsageError, match=r"\[WHT\]' is named like weights, errors or a mask"):
        SurveyFile(**{**vars(rules), "extension": "WHT"})
    header = skyimages.header_of(300, 0.03)
    image = np.ones((300, 300), np.float32)
    path = tmp_path / rules.pattern.format(id="7", band="F090W")

    def refusal(survey: SurveyFile, *hdus: tuple[str, dict[str, Any]]) -> str:
        images = [
            fits.ImageHDU(image, fits.Header({**header, **cards}), name) for name, cards in hdus
        ]
        fits.HDUList([fits.PrimaryHDU(), *images]).writeto(path, overwrite=True)
        with pytest.raises(SampleError) as caught:
            tree_of(tmp_path, survey, bands=("F090W",)).read("7", -1, HERE)
        return str(caught.value)

    one, auxiliary = replace(rules, extension="1"), "holds weights, errors or a mask"
    any_image = replace(rules, extension="")
    assert "it has no image extension SCI: WHT" in refusal(rules, ("WHT", {}))
    assert f"its extension 1 {auxiliary}: WHT" in refusal(one, ("WHT", {}))
    assert f"its extension 1 {auxiliary}" in refusal(one, ("A", {"EXTTYPE": "VARIANCE"}))
    for unit in ("1/nanomaggy^2", "(MJy/sr)^2", "adu**2", "nanomaggy^-2", "bitmask"):
        assert "only images of weights, errors or masks: A" in refusal(
            any_image, ("A", {"BUNIT": unit})
        )
    # Names and units that say something else.
    assert "it holds several images (A, B)" in refusal(any_image, ("A", {}), ("B", {}))
    for pattern in ("{id}.{band}.wht.fits", "{id}_{band}_invvar.fits", "{id}.fits[ERR]"):
        with pytest.raises(UsageError, match="is named like weights, errors or a mask"):
            FitsOptions(patterns={"nircam": pattern}, surveys=(rules,))
    assert FitsOptions(patterns={"nircam": "{id}.expert.{band}.fits"}, surveys=(rules,))


MASKED = """
name = "m"
pattern = "{id}.fits"
bands = ["g", "r"]
pixel_scale_arcsec = 1.0
size = 20
zero_points_ab = [25]
mask = { extension = "MASK", bad_bits = [0, 3] }
weight = { extension = "IVAR" }
"""


def masked_file(folder: Path, **change: Any) -> FitsTree:
    """A file whose image has ten bad rows in each half: by bits of each kind, and by weights."""
    (folder / "m.toml").write_text(MASKED)
    header = skyimages.header_of(20, 1.0)
    header["BAND0"], header["BAND1"] = "g", "r"
    images = {"SCI": np.ones((2, 20, 20), np.int16), "MASK": np.zeros((20, 20), np.int32)}
    images["MASK"][0], images["MASK"][1], images["MASK"][2] = 1, 8, 16
    images["IVAR"] = np.ones((2, 20, 20), np.float32)
    images["IVAR"][0, :, 0], images["IVAR"][1, :, 1] = 0, np.nan
    images |= change
    hdus = [
        fits.ImageHDU(data, header if name == "SCI" else None, name=name)
        for name, data in images.items()
        if data is not None
    ]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(folder / "7.fits", overwrite=True)
    return tree_of(folder, read_survey(str(folder / "m.toml")))


def test_bad_pixels_by_mask_and_weight_are_nan_and_nothing_else_is(tmp_path: Path) -> None:
    image = masked_file(tmp_path).read("7", -1, HERE)["m"]
    expected = np.ones((2, 20, 20), np.float32)
    expected[:, :2] = np.nan
    expected[0, :, 0] = expected[1, :, 1] = np.nan
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"MASK": None}, "it has no mask extension MASK: SCI, IVAR"),
        ({"IVAR": np.ones((9, 9))}, "its weight IVAR has 9x9 pixels, its image 20x20"),
        ({"IVAR": np.ones((3, 20, 20))}, "its weight IVAR has 3 planes, its image 2"),
        ({"MASK": np.full((20, 20), 0.5)}, "its mask MASK holds float64, not bits"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SampleError, match=says):
        masked_file(tmp_path, **change).read("7", -1, HERE)


def test_photometry_that_does_not_fit_the_survey_is_refused() -> None:
    hsc, vista, nircam = map(read_survey, ("hsc", "vista", "nircam"))
    assert hsc.zero_point_ab("g", Photometry()) == 27.0
    with pytest.raises(SampleError, match="its header has none of PHOTZP, so its zero-point"):
        vista.zero_point_ab("J", Photometry())
    is_ab = Photometry(cards={"PHOTZP": 30.0, "PHOTSYS": "AB"})
    assert vista.zero_point_ab("J", is_ab) == 30.0
    with pytest.raises(SampleError, match=r"says wfcam, so it is not of vista"):
        vista.zero_point_ab("J", Photometry(origin=(("INSTRUME", "WFCAM"),)))
    with pytest.raises(SampleError, match=r"unit is 'dn/s', expected 'mjy/sr' of nircam"):
        nircam.zero_point_ab("F115W", Photometry(unit="dn/s"))
    with pytest.raises(SampleError, match="header has no BUNIT, expected 'mjy/sr' of nircam; add"):
        nircam.zero_point_ab("F115W", Photometry(cards={"PIXAR_SR": 1e-14}))
    with pytest.raises(SampleError, match=r"PIXAR_SR is 8\.462e-14 sr, but a pixel of its WCS has"):
        card = Photometry(unit="mjy/sr", cards={"PIXAR_SR": 8.462e-14})
        nircam.zero_point_ab("F115W", card, 0.03**2)
    for unit in ("njy", "mjy/sr", "nanomaggy", "w/m2"):
        with pytest.raises(SampleError, match=f"unit is '{unit}', expected counts of hsc; say"):
            hsc.zero_point_ab("g", Photometry(unit=unit))
    # VISTA is not VIS.
    with pytest.raises(SampleError, match="says eso-vista, so it is not of euclid_vis"):
        of_vista = Photometry(origin=(("TELESCOP", "ESO-VISTA"),))
        read_survey("euclid_vis").zero_point_ab("VIS", of_vista)


def test_every_shipped_survey_is_read_and_survives_its_json() -> None:
    for path in SHIPPED.glob("*.toml"):
        survey = read_survey(path.stem)
        assert survey.name == path.stem
        options = FitsOptions(patterns={survey.name: survey.files}, surveys=(survey,))
        assert FitsOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "is not TOML"),
        ("zeropoint = 1", "unknown key 'zeropoint'; known are name, pattern"),
        ('name = "x"', "field 'bands' is missing"),
        (
            'bands = ["g"]\nname = "x"\npattern = "{id}.fits"\npixel_scale_arcsec = 1\nsize = 3',
            "needs",
        ),
    ],
)
def test_a_wrong_survey_file_is_refused_with_its_name(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_survey(str(tmp_path / "x.toml"))
    assert "x.toml" in str(caught.value) or "survey 'x'" in str(caught.value)
    with pytest.raises(UsageError, match=r"--survey must be one of euclid_nisp, .*got 'hcs'"):
        read_survey("hcs")
