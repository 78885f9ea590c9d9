"""Real survey FITS become samples with the right orientation, scale and flux.

Magnitudes are measured on the files, with astropy's WCS and the zero-point formulas written out
here, and again on the samples that were packed and loaded.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import skyimages
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

import msdata
from msdata.augment import AugmentConfig, open_augmenter
from msdata.cli import main

PLACES = [folder / "shared" / "realdata" for folder in Path(__file__).parents]
SHARED = next((place for place in PLACES if place.is_dir()), Path())
pytestmark = pytest.mark.skipif(
    Path() == SHARED, reason="the survey files of ../shared/realdata are not beside this checkout"
)
OBJECTS = ("2010H", "2010ag", "2010ai")
TOLERANCE_MAG = 0.02
# AB magnitude of a pixel value of 1, from each survey's documentation and the file's header.
FORMULAS = {
    "NUV": lambda header: 20.08,
    "FUV": lambda header: 18.82,
    "W1": lambda header: header["MAGZP"] + 2.699,
    "W2": lambda header: header["MAGZP"] + 3.339,
    **{b: lambda header: 25 + 2.5 * np.log10(header["EXPTIME"]) for b in "griz"},
}


def open_image(path: Path) -> tuple[np.ndarray, fits.Header, WCS]:
    with fits.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        return file[0].data.astype(np.float64), file[0].header, WCS(file[0].header)


def brightest(path: Path, margin: int) -> tuple[float, float]:
    """Position on the sky of the brightest pixel away from the edges, and a little beside it.

    In the very middle of a pixel it would be open which of two corners a stamp of even size has.
    """
    image, _, wcs = open_image(path)
    inner = np.nan_to_num(image[margin:-margin, margin:-margin])
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    ra, dec = wcs.all_pix2world([[x + margin + 0.2, y + margin - 0.3]], 0)[0]
    return float(ra), float(dec)


def catalog(folder: Path, positions: dict[str, tuple[float, float]]) -> list[str]:
    rows = [(name, *at) for name, at in positions.items()]
    (folder / "catalog.csv").write_text(skyimages.catalog_text(rows))
    return ["--catalog", str(folder / "catalog.csv"), "--split", "1,0,0", "--jobs", "1", "--quiet"]


def magnitude_in_file(
    path: Path, band: str, at: tuple[float, float], radius_arcsec: float
) -> float:
    image, header, wcs = open_image(path)
    x, y = wcs.all_world2pix([at], 0)[0]
    scale = np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600
    flux = skyimages.aperture_sum(np.nan_to_num(image), x, y, radius_arcsec / scale)
    return skyimages.magnitude(flux, FORMULAS[band](header))


def magnitude_in_stamp(
    image: np.ndarray, scale: float, offset: tuple[float, float], radius_arcsec: float
) -> float:
    """Of a source at `offset` (arcsec east and north of the stamp's center), in nanomaggies."""
    center = (image.shape[0] - 1) / 2
    x, y = center - offset[0] / scale, center + offset[1] / scale
    return skyimages.magnitude(skyimages.aperture_sum(image, x, y, radius_arcsec / scale), 22.5)


@pytest.fixture(scope="module")
def galex_and_wise(tmp_path_factory) -> tuple[Path, dict[str, tuple[float, float]]]:
    """GALEX and AllWISE of three objects, packed with calibration; and where they are."""
    folder = tmp_path_factory.mktemp("blast")
    (folder / "raw").mkdir()
    positions = {}
    for name in OBJECTS:
        for survey, bands in (("GALEX", ("NUV", "FUV")), ("WISE", ("W1", "W2"))):
            for band in bands:
                path = SHARED / "blast" / name / survey / f"{survey}_{band}.fits"
                shutil.copyfile(path, folder / "raw" / f"{name}.{band}.fits")
        # 2010ai lies at the edge of a WISE tile: the file has 144 rows only.
        band, margin = ("W1", 36) if name == "2010ai" else ("NUV", 60)
        positions[name] = brightest(folder / "raw" / f"{name}.{band}.fits", margin)
    options = catalog(folder, positions)
    for array in ("galex", "unwise"):
        options += ["--fits", f"{array}={{id}}.{{band}}.fits"]
    command = ["pack", str(folder / "raw"), str(folder / "out"), *options, "--calibrate", "ab"]
    assert main(command) == 0
    return folder, positions


def loaded(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by sample and name, as one batch of the loader has them."""
    data = msdata.open(out)
    split = data.split("train")
    (batch,) = msdata.Loader(split, batch_size=len(split), seed=0)
    ids = batch["sample_id"]
    names = data.schema.names
    return {str(n): {a: batch[a][k].copy() for a in names} for k, n in enumerate(ids)}


def augmented(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """The same after the augmentation that changes nothing."""
    data = msdata.open(out)
    samples = loaded(out)
    batch = {a: np.stack([s[a] for s in samples.values()]) for a in data.schema.names}
    batch["sample_id"] = np.array(list(samples))
    config = AugmentConfig(
        fusion="late",
        rotation="none",
        flips=False,
        scaling="none",
        crops={a.name: a.shape[1] for a in data.schema.arrays},
    )
    with open_augmenter(data.schema, config, seed=0, batch_size=len(samples)) as augmenter:
        images = {a: np.array(v) for a, v in augmenter.run(batch, 0).items()}
        images = {a: v * augmenter.flux_factors[a] for a, v in images.items()}
    return {n: {a: v[k] for a, v in images.items()} for k, n in enumerate(samples)}


@pytest.mark.parametrize("read", [loaded, augmented])
@pytest.mark.parametrize("name", OBJECTS)
def test_galex_and_wise_magnitudes_survive_pack_load_and_augmentation(galex_and_wise, name, read):
    folder, positions = galex_and_wise
    sample = read(folder / "out")[name]
    surveys = {a.name: a for a in msdata.open(folder / "out").schema.arrays}
    num_measured = 0
    for array, radius in (("galex", 12.0), ("unwise", 16.5)):
        survey = surveys[array]
        for k, band in enumerate(survey.bands):
            path = folder / "raw" / f"{name}.{band}.fits"
            expected = magnitude_in_file(path, band, positions[name], radius)
            offset = (0.0, 0.0) if array == "unwise" else own_offset(path, positions[name], survey)
            found = magnitude_in_stamp(sample[array][k], survey.pixel_scale_arcsec, offset, radius)
            assert found == pytest.approx(expected, abs=TOLERANCE_MAG), band
            num_measured += 1
    assert num_measured == 4


def own_offset(path: Path, at: tuple[float, float], survey: msdata.Survey) -> tuple[float, float]:
    """Arcsec from a whole-pixel stamp's center to the position: the stamp's corner is known."""
    x, y = open_image(path)[2].all_world2pix([at], 0)[0]
    size, scale = survey.shape[1], survey.pixel_scale_arcsec
    half = (size - 1) / 2
    low_x, low_y = (np.floor(v - half + 0.5) for v in (x, y))
    return -(x - low_x - half) * scale, (y - low_y - half) * scale


@pytest.fixture(scope="module")
def panstarrs(tmp_path_factory) -> tuple[Path, tuple[float, float]]:
    """Pan-STARRS griz around a source away from the image's center, packed with calibration."""
    folder = tmp_path_factory.mktemp("hostphot")
    (folder / "raw").mkdir()
    for band in "griz":
        path = SHARED / "hostphot" / "SN2006bh" / f"PS1_{band}.fits"
        shutil.copyfile(path, folder / "raw" / f"SN2006bh.{band}.fits")
    at = brightest(folder / "raw" / "SN2006bh.r.fits", 86)
    options = catalog(folder, {"SN2006bh": at})
    options += ["--fits", "panstarrs={id}.{band}.fits", "--fits-bands", "panstarrs=g,r,i,z"]
    command = ["pack", str(folder / "raw"), str(folder / "out"), *options, "--calibrate", "ab"]
    assert main(command) == 0
    return folder, at


@pytest.mark.parametrize("read", [loaded, augmented])
def test_panstarrs_magnitudes_survive_pack_load_and_augmentation(panstarrs, read):
    folder, at = panstarrs
    data = msdata.open(folder / "out")
    survey = data.schema["panstarrs"]
    sample = {**data[0], **read(folder / "out")["SN2006bh"]}
    assert sample["panstarrs"].shape == (4, 170, 170)
    for k, band in enumerate("griz"):
        path = folder / "raw" / f"SN2006bh.{band}.fits"
        expected = magnitude_in_file(path, band, at, 3.0)
        found = magnitude_in_stamp(sample["panstarrs"][k], 0.25, own_offset(path, at, survey), 3.0)
        assert found == pytest.approx(expected, abs=TOLERANCE_MAG), band
        exposure = open_image(path)[1]["EXPTIME"]
        assert sample[f"zero_point_panstarrs_{band}"] == pytest.approx(
            25 + 2.5 * np.log10(exposure)
        )


def test_a_source_to_the_north_east_lies_up_and_left_in_the_stamp(panstarrs):
    folder, at = panstarrs
    image, _, wcs = open_image(folder / "raw" / "SN2006bh.i.fits")
    stamp = msdata.open(folder / "out")[0]["panstarrs"][2].astype(np.float64)
    # Ten arcseconds to the east and twenty to the north, and their mirror images.
    offsets = [(10.0, 18.0), (-10.0, 18.0), (10.0, -18.0), (-10.0, -18.0), (18.0, 10.0)]
    differences = []
    for east, north in offsets:
        sky = (at[0] + east / 3600 / np.cos(np.radians(at[1])), at[1] + north / 3600)
        x, y = (round(float(v)) for v in wcs.all_world2pix([sky], 0)[0])
        patch = image[y - 3 : y + 4, x - 3 : x + 4]
        column, row = round(84.5 - east / 0.25), round(84.5 + north / 0.25)
        near = stamp[row - 4 : row + 5, column - 4 : column + 5]
        windows = np.lib.stride_tricks.sliding_window_view(near, (7, 7)).reshape(-1, 49)
        scale = 10 ** (0.4 * (22.5 - 25 - 2.5 * np.log10(1860.0)))
        differences.append(np.abs(windows - scale * patch.ravel()).max(axis=1).min())
    assert max(differences) < 1e-6 * float(stamp.max())


def test_unwise_tiles_with_names_and_cd_matrices_of_their_own_are_cut_whole(tmp_path):
    folder = SHARED / "legacypipe" / "1866p257"
    path = folder / "unwise-1866p257-w1-img-m.fits"
    image, _, wcs = open_image(path)
    ra, dec = (float(v) for v in wcs.all_pix2world([[12.2, 11.8]], 0)[0])
    options = catalog(tmp_path, {"1866p257": (ra, dec)})
    options += ["--fits", "unwise=unwise-{id}-{band}-img-m.fits", "--fits-size", "unwise=17"]
    assert main(["pack", str(folder), str(tmp_path / "out"), *options]) == 0
    found = msdata.open(tmp_path / "out")[0]["unwise"]
    assert found[0].tobytes() == image[4:21, 4:21].astype("<f4").tobytes()
