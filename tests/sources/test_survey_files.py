"""FITS files of any survey: headers as the surveys write them, positions, magnitudes, refusals."""

from __future__ import annotations

import io
import json
from pathlib import Path

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
    "hsc": ({"FILTER": "HSC-G"}, {"FLUXMAG0": 10**10.8, "EXTTYPE": "IMAGE"}, "", 10**1.8, 0.168),
    "sdss": ({"BUNIT": "nanomaggy", "FILTER": "{band}"}, {}, None, None, 0.396),
    "vista": (
        {"TELESCOP": "ESO-VISTA", "INSTRUME": "VIRCAM", "PHOTSYS": "VEGA", "PHOTZP": 30.0},
        {},
        None,
        None,
        0.34,
    ),
    "euclid_vis": ({"TELESCOP": "EUCLID", "MAGZERO": 23.9}, {}, None, 10 ** (0.4 * 1.4), 0.1),
    "euclid_nisp": ({"INSTRUME": "NISP", "MAGZERO": 23.9}, {}, None, 10 ** (0.4 * 1.4), 0.1),
    "nircam": (
        {"TELESCOP": "JWST", "INSTRUME": "NIRCAM"},
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


def write_band(path: Path, survey: str, band: str, turn_deg: float = 0.0) -> None:
    """A file as the survey writes it: weights and masks beside the image where it has them."""
    primary, cards, extension, _, scale = CASES[survey]
    rules = read_survey(survey)
    size = 3 * rules.size // 2 + 10
    header = skyimages.header_of(size, scale, turn_deg=turn_deg)
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
        mask = fits.ImageHDU(np.ones_like(sources), other, name="WHT" if extension else None)
        hdus = [fits.PrimaryHDU(header=first), image, mask]
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


def tree_of(folder: Path, survey: SurveyFile, calibration: str = "none") -> FitsTree:
    patterns = {survey.name: survey.files}
    return FitsTree(
        folder, FitsOptions(patterns=patterns, surveys=(survey,), calibration=calibration)
    )


@pytest.mark.parametrize(("survey", "scale"), [(name, case[4]) for name, case in CASES.items()])
@pytest.mark.parametrize("turn_deg", [0.0, 90.0, 33.0])
def test_sources_have_their_position_and_ab_magnitude(
    survey: str, scale: float, turn_deg: float, tmp_path: Path
) -> None:
    rules = read_survey(survey)
    for band in rules.bands:
        name = rules.pattern.format(id="7", band=band)
        write_band(tmp_path / name, survey, band, turn_deg)
    for calibration in ("none", "ab"):
        tree = tree_of(tmp_path, rules, calibration)
        assert tree.scan()["sample_id"].to_pylist() == ["7"]
        sample = tree.read("7", -1, HERE)
        image = sample[survey].astype(np.float64)
        steps = np.arange(rules.size) - (rules.size - 1) / 2
        for number, band in enumerate(rules.bands):
            total = image[number].sum()
            zero_point = sample[f"zero_point_{survey}_{band}"] if calibration == "none" else 22.5
            magnitude = skyimages.magnitude(total, zero_point)
            assert magnitude == pytest.approx(22.5 - 2.5 * np.log10(TOTAL), abs=0.02)
            east = -(image[number].sum(axis=0) * steps).sum() / total
            north = (image[number].sum(axis=1) * steps).sum() / total
            # Centroids of the three: 30 % of 20 pixels east, 20 % of 15 pixels north.
            assert east == pytest.approx(6.0, abs=0.5)
            assert north == pytest.approx(3.0, abs=0.5)


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
    with pytest.raises(UsageError, match="'WHT' is named like weights, errors or a mask"):
        SurveyFile(**{**vars(rules), "extension": "WHT"})
    header = skyimages.header_of(300, 0.03)
    weights = fits.ImageHDU(np.ones((300, 300), np.float32), header, name="WHT")
    for band in rules.bands:
        path = tmp_path / rules.pattern.format(id="7", band=band)
        fits.HDUList([fits.PrimaryHDU(), weights]).writeto(path)
    with pytest.raises(SampleError, match="it has no image extension SCI: WHT"):
        tree_of(tmp_path, rules).read("7", -1, HERE)


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
