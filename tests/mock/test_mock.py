"""Mock objects: files as upstream writes them, and pixels from which the redshift can be learnt."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from msdata.errors import MissingPackageError, StorageError, UsageError
from msdata.mock import command, objects, photometry, profiles, templates, write
from msdata.mock.cosmology import luminosity_distance_mpc
from msdata.mock.field import Source
from msdata.mock.observe import to_counts
from msdata.mock.photometry import BANDS
from msdata.mock.population import moved_maggies
from msdata.mock.render import draw_images
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.pickles import object_path

_ABSENT = [name for name in ("kcorrect", "speclite", "scipy") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(_ABSENT), reason=f"needs {', '.join(_ABSENT)}: pip install 'msdata[mock]'"
)

NUM_OBJECTS = 600
SEED = 7


@pytest.fixture(scope="module")
def model():
    return objects.build_model()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Mock objects, and the processor time that two processes took to make them."""
    out = tmp_path_factory.mktemp("mock") / "data"
    before = _processor_seconds()
    catalog = write.write_mock(out, num_objects=NUM_OBJECTS, seed=SEED, jobs=2)
    assert catalog == out / "catalog.csv"
    return out, _processor_seconds() - before


@pytest.fixture(scope="module")
def folder(made):
    return made[0]


@pytest.fixture(scope="module")
def catalog(folder):
    return _read_catalog(folder)


@pytest.fixture(scope="module")
def samples(folder, catalog):
    paths = (object_path(row["mantis_id"], ".npy") for row in catalog)
    return [_load(folder / "photometry" / path) for path in paths]


def _read_catalog(folder):
    with (folder / "catalog.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _load(path):
    return np.load(path, allow_pickle=True).item()


def _numbers(catalog, column):
    return np.array([float(row[column] or "nan") for row in catalog])


def _aperture_sum(image_HW, pixel_scale_arcsec, radius_arcsec):
    """Counts inside a circle over the background outside 1.5 radii."""
    axis = (np.arange(len(image_HW)) - (len(image_HW) - 1) / 2) * pixel_scale_arcsec
    distance = np.hypot(axis[:, None], axis)
    inside = distance < radius_arcsec
    outside = image_HW[distance > 1.5 * radius_arcsec]
    outside = outside[np.isfinite(outside)]
    # The median keeps neighbors out; where most GALEX pixels hold no photon it measures nothing.
    spread = 1.4826 * np.median(np.abs(outside - np.median(outside)))
    background = np.median(outside) if spread > 0 else outside.mean()
    return np.nansum(image_HW[inside]) - inside.sum() * background


# Files


def test_every_object_is_an_object_array_file_below_four_folders_of_one_digit(folder, catalog):
    paths = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    expected = [Path("catalog.csv")]
    for row in catalog:
        digits = row["mantis_id"]
        assert len(digits) == 7
        assert digits.isdigit()
        expected.append(Path("photometry", *digits[:4], f"{digits}.npy"))
    assert paths == sorted(expected)
    stored = np.load(folder / expected[1], allow_pickle=True)
    assert stored.shape == ()
    assert stored.dtype == object


def test_samples_have_the_arrays_of_the_schema_and_nothing_else(samples):
    for sample in samples:
        assert set(sample) == set(MANTIS_SHRIMP.names)
        for survey in MANTIS_SHRIMP.arrays:
            assert sample[survey.name].shape == survey.shape
            assert sample[survey.name].dtype == survey.numpy_dtype
            assert sample[survey.name].flags.c_contiguous


def test_ids_are_unique_and_spread_over_the_id_space(catalog):
    ids = np.array([int(row["mantis_id"]) for row in catalog])
    assert len(set(ids.tolist())) == NUM_OBJECTS
    assert np.bincount(ids // 1_000_000, minlength=10).min() > 0.8 * NUM_OBJECTS / 10
    many = [objects.mantis_id(SEED, n) for n in range(50_000)]
    assert len(set(many)) == len(many)


def test_fewer_objects_are_a_prefix_and_one_job_writes_the_bytes_of_two(folder, tmp_path):
    small = tmp_path / "small"
    write.write_mock(small, num_objects=60, seed=SEED, jobs=1)
    lines = (small / "catalog.csv").read_bytes().splitlines()
    assert lines == (folder / "catalog.csv").read_bytes().splitlines()[: len(lines)]
    for path in small.rglob("*.npy"):
        assert path.read_bytes() == (folder / path.relative_to(small)).read_bytes()


def test_another_seed_gives_other_objects(model):
    one, other = objects.make_object(model, 0, 0), objects.make_object(model, 1, 0)
    assert one.row["mantis_id"] != other.row["mantis_id"]
    assert not np.array_equal(one.sample["unwise"], other.sample["unwise"])


def test_progress_counts_up_to_all_objects(tmp_path):
    seen = []
    write.write_mock(tmp_path / "out", num_objects=30, seed=0, jobs=1, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 30


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"is not empty, so nothing was written; name a new"):
        write.write_mock(tmp_path, num_objects=1, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="is a file"):
        write.write_mock(tmp_path / "thesis.txt", num_objects=1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_objects": 0, "seed": 0}, "mock objects must be 1 to 10,000,000, got 0"),
        ({"num_objects": -3, "seed": 0}, "mock objects must be 1 to 10,000,000, got -3"),
        ({"num_objects": 10_000_001, "seed": 0}, "seven digits"),
        ({"num_objects": 1, "seed": -1}, "seed must be at least 0, got -1"),
        ({"num_objects": 1, "seed": 0, "jobs": 0}, "--jobs must be at least 1, got 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        write.write_mock(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_leaves_no_catalog_and_no_half_file(tmp_path, monkeypatch):
    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(StorageError, match=r"No space left on device.*has no catalog"):
        write.write_mock(tmp_path / "out", num_objects=1, seed=0, jobs=1)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_a_killed_run_leaves_no_catalog_and_no_process_behind(tmp_path):
    code = (
        "import sys; from pathlib import Path; from msdata.mock import write_mock;"
        "show = lambda n: print(n, flush=True);"
        "write_mock(Path(sys.argv[1]), num_objects=100_000, seed=0, jobs=2, progress=show)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert int(process.stdout.readline()) > 0
    process.kill()
    # The pipe ends when the last process that holds it is gone: the workers hold it too.
    process.communicate(timeout=20)
    assert not (tmp_path / "out" / "catalog.csv").exists()


def test_importing_the_package_loads_none_of_the_optional_packages():
    code = (
        "import sys, msdata.mock.command;"
        "print([m for m in ('kcorrect', 'speclite', 'scipy', 'astropy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("speclite", photometry.load_passbands),
        ("scipy.optimize", profiles.sersic_mixtures),
    ],
)
def test_an_absent_package_is_named_with_its_cure(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'msdata\[mock\]'"):
        call()


def test_absent_templates_are_named_with_their_cure(monkeypatch):
    monkeypatch.setattr(templates, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"kcorrect is absent.*msdata\[mock\]"):
        templates.load_templates()


def test_the_command_prints_one_summary_alone_on_stdout(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out"
    arguments = [str(out), "--n", "3", "--seed", "5", "--jobs", "1", "--json"]
    assert command.run(parser.parse_args(arguments)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["objects"] == 3
    assert summary["catalog"] == str(out / "catalog.csv")
    assert summary["bytes"] > 3 * MANTIS_SHRIMP.sample_nbytes
    assert command.run(parser.parse_args([str(tmp_path / "b"), "--n", "1", "--jobs", "1"])) == 0
    assert capsys.readouterr().out.startswith("wrote 1 objects (")


# Gaps and the catalog


def test_nan_is_in_panstarrs_of_a_few_objects_and_sometimes_above_one_per_cent(samples):
    share = np.array([np.isnan(s["panstarrs"]).mean(axis=(1, 2)).max() for s in samples])
    assert 0.015 < (share > 0).mean() < 0.08
    assert 1 <= (share > 0.01).sum() <= 0.015 * NUM_OBJECTS
    assert (share > 0.01).sum() < 0.5 * (share > 0).sum()
    for sample in samples:
        assert np.isfinite(sample["galex"]).all()
        assert np.isfinite(sample["unwise"]).all()


def test_galex_has_objects_without_coverage_and_objects_without_fuv_only(samples):
    nuv, fuv = np.array([[not band.any() for band in s["galex"]] for s in samples]).T
    assert 0.03 < (nuv & fuv).mean() < 0.15
    assert 0.03 < (fuv & ~nuv).mean() < 0.18
    assert not (nuv & ~fuv).any()


def test_the_catalog_has_its_columns_within_their_ranges(catalog):
    assert tuple(catalog[0]) == objects.CATALOG_COLUMNS
    redshift = _numbers(catalog, "redshift")
    assert 0 < redshift.min() < 0.05
    assert 1.0 < redshift.max() < 1.6
    assert (_numbers(catalog, "ra") >= 0).all()
    assert (_numbers(catalog, "ra") < 360).all()
    assert (np.abs(_numbers(catalog, "dec")) < 90).all()
    csfd, planck = _numbers(catalog, "ebv_csfd"), _numbers(catalog, "ebv_planck")
    assert (csfd > 0).all()
    assert np.corrcoef(csfd, planck)[0, 1] > 0.8
    exptime = _numbers(catalog, "exptime_s")
    assert 720 <= exptime.min() < 1000 < 2400 < exptime.max() <= 2685
    assert {"SDSS", "DESI", "GAMA", "WiggleZ"} <= {row["survey"] for row in catalog}


def test_comparison_photo_z_are_sometimes_absent_and_otherwise_near_the_truth(catalog):
    redshift = _numbers(catalog, "redshift")
    for column in ("photoz_ps1_strm", "photoz_legacy"):
        photoz = _numbers(catalog, column)
        assert 0.1 < np.isnan(photoz).mean() < 0.6
        error = (photoz - redshift) / (1 + redshift)
        assert np.nanmedian(np.abs(error)) < 0.05


# Physics


def test_luminosity_distance_agrees_with_astropy():
    from astropy.cosmology import FlatLambdaCDM

    redshift = np.array([0.01, 0.1, 0.7, 1.6])
    expected = FlatLambdaCDM(H0=70, Om0=0.3, Tcmb0=0).luminosity_distance(redshift).value
    np.testing.assert_allclose(luminosity_distance_mpc(redshift), expected, rtol=1e-5)


def test_band_fluxes_agree_with_speclite_for_a_redshifted_spectrum():
    from speclite import filters

    wavelength = np.geomspace(600.0, 1e5, 20_000)
    spectrum = 1e-13 * (wavelength / 5000) ** -1.3 * (1 + 0.3 * np.sin(wavelength / 400))
    fluxes = photometry.band_fluxes(
        wavelength, spectrum[None], photometry.load_passbands(), np.array([0.4])
    )[0, :, 0]
    names = ("galex-fuv", "galex-nuv", *(f"panstarrs-{b}" for b in "grizy"))
    for name, flux in zip((*names, "wise2010-W1", "wise2010-W2"), fluxes, strict=True):
        expected = filters.load_filter(name).get_ab_maggies(spectrum / 1.4, wavelength * 1.4)
        assert flux == pytest.approx(float(expected), rel=5e-3), name


def test_light_blueward_of_the_templates_is_zero():
    flux = photometry.band_fluxes(
        np.array([600.0, 5000.0]), np.ones((1, 2)), photometry.load_passbands(), np.array([2.5])
    )
    assert flux[0, BANDS.index("FUV"), 0] == 0
    assert flux[0, BANDS.index("g"), 0] > 0


def test_a_galaxy_left_where_it_is_keeps_the_magnitude_that_sdss_measured(model):
    from astropy.io import fits

    galaxies = model.population.galaxies
    path = Path(find_spec("kcorrect").submodule_search_locations[0], "data", "test")
    with fits.open(path / "gst_tests_small.fits") as hdus:
        table = hdus[1].data
        at = {round(float(ra), 7): n for n, ra in enumerate(table["RA"])}
        rows = np.arange(0, len(galaxies.ra), 100)
        there = [at[round(float(galaxies.ra[row]), 7)] for row in rows]
        measured = 22.5 - 2.5 * np.log10(table["PETROFLUX"][there, 2])
        measured -= table["EXTINCTION"][there, 2]
    drawn = [moved_maggies(model.population, np.array([n]), galaxies.redshift[n]) for n in rows]
    modeled = -2.5 * np.log10(np.concatenate(drawn)[:, BANDS.index("r")])
    assert abs(np.median(modeled - measured)) < 0.05
    assert np.percentile(np.abs(modeled - measured), 90) < 0.15


@pytest.mark.parametrize("index", [0.5, 1.0, 2.3, 4.0])
def test_half_of_a_sersic_galaxys_light_is_within_its_half_light_radius(index):
    weights = profiles.mixture_of_index(profiles.sersic_mixtures(), index)
    inside = weights * (1 - np.exp(-0.5 / profiles.MIXTURE_SIGMA**2))
    assert inside.sum() == pytest.approx(0.5, abs=0.02)


def test_a_drawn_galaxy_has_its_flux_its_place_and_its_elongation(model):
    shape = profiles.Component(
        share=1.0,
        half_light_arcsec=1.5,
        axis_ratio=0.4,
        angle_rad=0.5,
        mixture=profiles.mixture_of_index(profiles.sersic_mixtures(), 1.0),
    )
    source = Source(maggies=np.full(9, 1e-7), x_arcsec=1.0, y_arcsec=-2.0, components=(shape,))
    for telescope in (model.telescopes["panstarrs"], model.telescopes["unwise"]):
        grid = telescope.grid
        counts = to_counts([source], ["r"], [25.0])
        transform = telescope.psf[0] if grid.oversampling == 2 else None
        transform = np.ones_like(grid.frequency) if transform is None else transform
        image = draw_images(grid, [source], counts, [transform])[0].astype(float)
        axis = (np.arange(grid.size) - (grid.size - 1) / 2) * grid.pixel_scale_arcsec
        assert image.sum() == pytest.approx(counts[0, 0], rel=0.03)
        x = (image.sum(axis=0) * axis).sum() / image.sum()
        y = (image.sum(axis=1) * axis).sum() / image.sum()
        assert (x, y) == (pytest.approx(1.0, abs=0.25), pytest.approx(-2.0, abs=0.25))
        if telescope.survey.name == "panstarrs":
            xx = (image * (axis[None, :] - x) ** 2).sum()
            yy = (image * (axis[:, None] - y) ** 2).sum()
            xy = (image * (axis[None, :] - x) * (axis[:, None] - y)).sum()
            assert 0.5 * np.arctan2(2 * xy, xx - yy) == pytest.approx(0.5, abs=0.03)


def test_aperture_magnitudes_of_bright_galaxies_agree_with_the_catalog(catalog, samples):
    for name, band, limit, radius in (
        ("panstarrs", "g", 18.0, 8.0),
        ("panstarrs", "r", 17.3, 8.0),
        ("panstarrs", "i", 17.0, 8.0),
        ("panstarrs", "z", 16.8, 8.0),
        ("panstarrs", "y", 16.6, 8.0),
        ("unwise", "W1", 17.5, 16.0),
        ("unwise", "W2", 17.8, 16.0),
        ("galex", "NUV", 20.5, 9.0),
    ):
        survey = MANTIS_SHRIMP[name]
        at = survey.bands.index(band)
        differences = []
        for row, sample in zip(catalog, samples, strict=True):
            truth = float(row[f"mag_{band.lower()}_ab"] or "nan")
            image = sample[name][at]
            if not truth < limit or float(row["half_light_arcsec"]) > 4 or not image.any():
                continue
            zero_point = 25 + 2.5 * np.log10(float(row["exptime_s"]))
            if survey.zero_points_ab is not None:
                zero_point = survey.zero_points_ab[at]
            counts = _aperture_sum(image, survey.pixel_scale_arcsec, radius)
            if counts > 0 and not np.isnan(image).any():
                differences.append(zero_point - 2.5 * np.log10(counts) - truth)
        assert len(differences) >= 10, band
        assert abs(np.median(differences)) < 0.2, band


def test_far_galaxies_look_smaller_and_fainter(catalog):
    redshift = _numbers(catalog, "redshift")
    near, far = redshift < 0.1, redshift > 0.5
    size = _numbers(catalog, "half_light_arcsec")
    assert np.median(size[near]) > 2 * np.median(size[far])
    magnitude = _numbers(catalog, "mag_r_ab")
    assert np.median(magnitude[far]) - np.median(magnitude[near]) > 2


def _features(catalog, samples):
    """Aperture magnitudes (asinh), colors between neighboring bands, and r-band concentration."""
    exptime = _numbers(catalog, "exptime_s")
    columns = []
    for name, radius in (("galex", 5.0), ("panstarrs", 2.0), ("unwise", 6.0)):
        survey = MANTIS_SHRIMP[name]
        for at in range(survey.num_bands):
            flux = np.array(
                [_aperture_sum(s[name][at], survey.pixel_scale_arcsec, radius) for s in samples]
            )
            if name == "panstarrs":
                flux = flux / exptime
            columns.append(np.arcsinh(flux / (0.3 * np.median(np.abs(flux)) + 1e-12)))
    wide = np.array([_aperture_sum(s["panstarrs"][2], 0.25, 5.0) for s in samples]) / exptime
    narrow = np.array([_aperture_sum(s["panstarrs"][2], 0.25, 2.0) for s in samples]) / exptime
    columns.append(np.arcsinh(wide / 0.5) - np.arcsinh(narrow / 0.5))
    features = np.stack(columns, axis=1)
    features = np.concatenate([features, np.diff(features[:, 2:9], axis=1)], axis=1)
    return (features - features.mean(axis=0)) / features.std(axis=0)


def _r_squared(features, redshift, num_train=400, neighbors=8):
    """R^2 of k nearest neighbors on the objects after the first `num_train`."""
    distance = np.linalg.norm(features[num_train:, None] - features[None, :num_train], axis=2)
    nearest = np.argsort(distance, axis=1)[:, :neighbors]
    predicted = redshift[:num_train][nearest].mean(axis=1)
    truth = redshift[num_train:]
    return 1 - np.sum((predicted - truth) ** 2) / np.sum((truth - truth.mean()) ** 2)


def test_the_redshift_can_be_learnt_from_the_pixels_and_not_from_shuffled_ones(catalog, samples):
    features, redshift = _features(catalog, samples), _numbers(catalog, "redshift")
    assert _r_squared(features, redshift) > 0.6
    shuffled = np.random.default_rng(0).permutation(features)
    assert _r_squared(shuffled, redshift) < 0.1


# Speed


@pytest.mark.speed
def test_at_least_fifty_objects_a_second_and_two_cores_with_start_up(made):
    # Processor time: what the wall clock would show on two cores that have nothing else to do.
    assert NUM_OBJECTS / (made[1] / 2) > 50


def _processor_seconds() -> float:
    """Of this process and its children that have ended, user and system."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
