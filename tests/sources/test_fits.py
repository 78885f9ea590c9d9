"""FITS files become samples: orientation, scale, flux, bands, units; what is wrong is named."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import packing
import pytest
import skyimages
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

import msdata
from msdata.cli import main
from msdata.errors import SampleError
from msdata.pack.settings import PackSettings
from msdata.sources.detect import detect_source, holds_fits
from msdata.sources.fits import FitsTree
from msdata.sources.fits_image import Photometry, read_planes
from msdata.sources.fits_options import FitsOptions
from msdata.sources.stamp import Placement, cut_stamp
from msdata.sources.zero_points import nanomaggies_per_unit, zero_point_ab

HERE = {"ra": skyimages.RA, "dec": skyimages.DEC}
GALEX_ONLY = FitsOptions(patterns={"galex": "{id}.Galex.fits"})


def stamp_of(header: fits.Header, image: np.ndarray, size: int, scale: float):
    plane = read_planes(skyimages.content_of(image, header))[0]
    placement = plane.grid.locate(header["CRVAL1"], header["CRVAL2"])
    return cut_stamp(plane.pixels, placement, size, scale)


def reference(size: int, scale: float) -> np.ndarray:
    """What a stamp has to look like: north up (rows), east to the left (columns)."""
    return skyimages.paint(skyimages.header_of(size, scale), size, scale)


@pytest.mark.parametrize(
    ("style", "mirrored"),
    # CROTA2 turns, it does not mirror.
    [(s, m) for s in skyimages.STYLES for m in (False, True) if (s, m) != ("crota", True)],
)
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_turned_or_mirrored_image_gives_the_same_stamp_by_whole_pixels(style, turn, mirrored):
    header = skyimages.header_of(48, 1.5, turn_deg=turn, mirrored=mirrored, style=style)
    image = skyimages.paint(header, 48, 1.5)
    stamp = stamp_of(header, image, 32, 1.5)
    assert not stamp.is_resampled
    assert set(stamp.pixels.ravel()) <= set(image.ravel())
    assert np.abs(stamp.offset_pixels).max() < 1e-6
    np.testing.assert_allclose(stamp.pixels, reference(32, 1.5), atol=1e-5)


@given(
    st.floats(0, 360),
    st.booleans(),
    st.sampled_from([0.6, 1.0, 1.375, 2.0]),
    st.sampled_from([(150.1, 2.2), (0.0, 88.9), (359.9999, -29.0)]),
)
def test_resampling_keeps_flux_and_places_sources_by_the_sky(turn, mirrored, scale, at):
    header = skyimages.header_of(180, scale, turn_deg=turn, mirrored=mirrored, at=at)
    image = skyimages.paint(
        skyimages.header_of(180, scale, turn_deg=turn, mirrored=mirrored), 180, scale
    )
    stamp = stamp_of(header, image, 24, 2.75)
    assert stamp.is_resampled
    total = sum(flux for *_, flux in skyimages.SOURCES)
    assert stamp.pixels.sum() == pytest.approx(total, rel=2e-4)
    # Regridding by area moves centroids by some hundredths of a pixel of 2.75 arcsec.
    steps = np.arange(24) - 11.5
    east = -(stamp.pixels.sum(axis=0) * steps).sum() * 2.75 / total
    north = (stamp.pixels.sum(axis=1) * steps).sum() * 2.75 / total
    assert east == pytest.approx(sum(e * f for e, _, f in skyimages.SOURCES) / total, abs=0.1)
    assert north == pytest.approx(sum(n * f for _, n, f in skyimages.SOURCES) / total, abs=0.1)


@given(st.floats(20, 40), st.floats(20, 40), st.integers(8, 17))
def test_whole_pixels_put_the_position_within_half_a_pixel_of_the_center(x, y, size):
    image = np.arange(3600.0).reshape(60, 60)
    sky = np.diag([-1.5, 1.5])
    stamp = cut_stamp(image, Placement(x=x, y=y, sky_per_pixel=sky), size, 1.5)
    assert np.abs(stamp.offset_pixels).max() <= 0.5 + 1e-5
    row, column = (size - 1) / 2 + stamp.offset_pixels[1], (size - 1) / 2 + stamp.offset_pixels[0]
    # The image is a plane, so its value at the position follows from the corner's.
    assert stamp.pixels[0, 0] + 60 * row + column == pytest.approx(60 * y + x)


@given(st.floats(15.51, 16.49), st.floats(15.51, 16.49))
def test_a_file_of_the_stamps_own_size_is_taken_as_fitscut_cuts_it(x, y):
    # The corner is floor(x - size / 2 + 0.5), so the position lies in pixel 16 of 32.
    image = np.arange(1024.0).reshape(32, 32)
    stamp = cut_stamp(image, Placement(x=x, y=y, sky_per_pixel=np.diag([-1.5, 1.5])), 32, 1.5)
    np.testing.assert_array_equal(stamp.pixels, image)
    assert stamp.offset_pixels == pytest.approx((x - 15.5, y - 15.5))
    with pytest.raises(SampleError, match="ends 2 pixels before the stamp"):
        cut_stamp(image, Placement(x=x + 1.5, y=y, sky_per_pixel=np.diag([-1.5, 1.5])), 32, 1.5)


@pytest.mark.parametrize("scale", [1.5, 1.2])
def test_a_stamp_beyond_the_image_is_refused_with_how_much_is_missing(scale):
    image = np.zeros((40, 40))
    placement = Placement(x=10.0, y=20.0, sky_per_pixel=np.diag([-scale, scale]))
    with pytest.raises(
        SampleError, match=r"of 40x40 pixels ends \d+ pixels before the stamp of 32"
    ):
        cut_stamp(image, placement, 32, 1.5)


def test_nan_beside_a_stamp_do_not_spread_into_it():
    image = np.ones((60, 60))
    image[:, :10] = np.nan
    placement = Placement(x=30.0, y=30.0, sky_per_pixel=np.diag([-1.375, 1.375]))
    assert np.isfinite(cut_stamp(image, placement, 16, 2.75).pixels).all()


def test_files_are_read_plain_gzipped_and_with_compressed_images():
    header = skyimages.header_of(40, 1.5)
    image = skyimages.paint(header, 40, 1.5)
    plain = skyimages.content_of(image, header)
    contents = (plain, gzip.compress(plain), skyimages.content_of(image, header, compressed=True))
    for content in contents:
        (plane,) = read_planes(content)
        np.testing.assert_array_equal(plane.pixels, image)
        assert plane.grid.locate(skyimages.RA, skyimages.DEC).x == pytest.approx(19.5)


def test_pixels_stored_with_the_asinh_scaling_of_panstarrs_become_linear():
    header = skyimages.header_of(20, 0.25)
    linear = np.linspace(-5, 5000, 400).reshape(20, 20)
    softening, offset = 12.5, 3.0
    stored = 2.5 * np.log10(np.e) * np.arcsinh((linear - offset) / (2 * softening))
    header["BSOFTEN"], header["BOFFSET"] = softening, offset
    (plane,) = read_planes(skyimages.content_of(stored, header))
    np.testing.assert_allclose(plane.pixels, linear, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no such layer", "not a FITS file; it begins with 'no such layer'"),
        (b"", "not a FITS file"),
        (skyimages.content_of(np.zeros((9, 9)), skyimages.header_of(9, 1.0))[:3000], "truncated"),
        (skyimages.content_of(None, fits.Header()), "holds no image, only headers"),
        (gzip.compress(b"SIMPLE" * 500)[:30], "gzip stream is broken"),
    ],
    ids=["text", "empty", "truncated", "headers", "gzip"],
)
def test_what_is_no_image_is_refused_with_the_reason(content, reason):
    with pytest.raises(SampleError, match=reason):
        read_planes(content)


@pytest.mark.parametrize(
    ("survey", "band", "photometry", "zero_point"),
    [
        ("galex", "NUV", Photometry(), 20.08),
        ("galex", "FUV", Photometry(), 18.82),
        ("galex", "FUV", Photometry(unit="counts", exposure_s=100.0), 23.82),
        ("panstarrs", "r", Photometry(exposure_s=1000.0), 32.5),
        ("panstarrs", "r", Photometry(exposure_s=1000.0, zero_point=24.0), 31.5),
        ("panstarrs", "r", Photometry(), None),
        ("unwise", "W1", Photometry(), 25.199),
        ("unwise", "W2", Photometry(), 25.839),
        ("unwise", "W1", Photometry(vega_zero_point=20.5), 23.199),
        ("unwise", "W2", Photometry(unit="dn", vega_zero_point=19.5), 22.839),
        ("panstarrs", "z", Photometry(unit="nanomaggy"), 22.5),
    ],
)
def test_zero_points_follow_the_surveys_formulas(survey, band, photometry, zero_point):
    found = zero_point_ab(msdata.MANTIS_SHRIMP[survey], band, photometry)
    assert found == (zero_point if zero_point is None else pytest.approx(zero_point))


def test_a_source_of_a_given_magnitude_has_that_many_nanomaggies():
    # 17.5 mag is a hundred times 22.5 mag; a pixel sum of 10^(0.4 (25 - 17.5)) has it at 25.
    assert 1000 * nanomaggies_per_unit(25.0) == pytest.approx(100)
    with pytest.raises(SampleError, match="unit 'mjy/sr' is neither"):
        zero_point_ab(msdata.MANTIS_SHRIMP["galex"], "NUV", Photometry(unit="mjy/sr"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Three objects in folders of their own, with a catalog."""
    root = tmp_path_factory.mktemp("fits")
    rows = []
    for k, name in enumerate(("0000001", "0000002", "0000003")):
        at = (skyimages.RA + k, skyimages.DEC - 3 * k)
        skyimages.write_object(root / "raw" / name[-1], name, at=at)
        rows.append((name, *at))
    (root / "catalog.csv").write_text(skyimages.catalog_text(rows))
    return root


def pack(tree: Path, out: Path, *options: str) -> int:
    catalog = ["--catalog", str(tree / "catalog.csv"), "--split", "1,0,0"]
    return main(["pack", str(tree / "raw"), str(out), *catalog, "--jobs", "1", "--quiet", *options])


def test_a_folder_of_fits_files_is_packed_and_its_index_has_the_zero_points(tree, tmp_path):
    assert pack(tree, tmp_path / "out") == 0
    samples = skyimages.packed_samples(tmp_path / "out")
    assert sorted(samples) == ["0000001", "0000002", "0000003"]
    sample = samples["0000002"]
    assert msdata.open(tmp_path / "out").schema.names == ("panstarrs", "galex", "unwise")
    galex = reference_of("galex")
    np.testing.assert_allclose(sample["galex"][0], galex, atol=2e-4)
    np.testing.assert_allclose(sample["galex"][1], 2 * galex, atol=4e-4)
    ratios = sample["panstarrs"].sum(axis=(1, 2)) / sample["panstarrs"][0].sum()
    np.testing.assert_allclose(ratios, [1, 2, 3, 4, 5], rtol=1e-5)
    assert sample["zero_point_panstarrs_i"] == pytest.approx(25 + 2.5 * np.log10(900.0))
    assert main(["verify", str(tmp_path / "out"), "--quiet"]) == 0


def test_coded_shards_of_fits_files_are_sized_by_what_they_store(tree, tmp_path):
    coded = ("--quantize", "4", "--compress", "lz4", "--shard-size", "1500KiB")
    assert pack(tree, tmp_path / "out", *coded) == 0
    split = msdata.open(tmp_path / "out").split("train")
    # Of float32 objects two fit into a shard.
    assert len(split) == 3
    assert len(split.shards) == 1


def reference_of(array: str) -> np.ndarray:
    survey = msdata.MANTIS_SHRIMP[array]
    size, scale = survey.shape[1], survey.pixel_scale_arcsec
    header = skyimages.header_of(size, scale, at=(skyimages.RA + 1, skyimages.DEC - 3))
    return skyimages.paint(header, size, scale, 6.0)


def test_calibrated_stamps_give_the_magnitudes_of_the_files(tree, tmp_path):
    assert pack(tree, tmp_path / "out", "--calibrate", "ab") == 0
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content["provenance"]["settings"]["fits"]["calibration"] == "ab"
    assert {a["unit"] for a in content["schema"]["arrays"]} == {"nanomaggy"}
    sample = skyimages.packed_samples(tmp_path / "out")["0000001"]
    total = sum(flux for *_, flux in skyimages.SOURCES)
    for k, band in enumerate("grizy"):
        expected = skyimages.magnitude((k + 1) * total, 25 + 2.5 * np.log10(700.0 + 100 * k))
        found = skyimages.magnitude(float(sample["panstarrs"][k].sum()), 22.5)
        assert found == pytest.approx(expected, abs=0.005), band
    for array, zero_points in (("galex", (20.08, 18.82)), ("unwise", (25.199, 25.839))):
        for k, zero_point in enumerate(zero_points):
            expected = skyimages.magnitude((k + 1) * total, zero_point)
            found = skyimages.magnitude(float(sample[array][k].sum()), 22.5)
            assert found == pytest.approx(expected, abs=0.005), (array, k)


def spoil(folder: Path) -> dict[str, str]:
    """Objects with one fault each; what the reason has to say, by id."""
    reasons = {}

    def make(name: str, reason: str) -> Path:
        skyimages.write_object(folder, name)
        reasons[name] = reason
        return folder

    make("a", "a.Galex.fits: it is not a FITS file; it begins with 'no such layer'")
    (folder / "a.Galex.fits").write_bytes(b"no such layer")
    make("b", "it has no file b.i.fits")
    (folder / "b.i.fits").unlink()
    make("c", "c.z.fits: its header says that it holds band y")
    (folder / "c.z.fits").write_bytes((folder / "c.y.fits").read_bytes())
    make("d", "d.Unwise.fits: it has no band W2, only W1")
    header = skyimages.header_of(36, 2.75)
    header["BANDS"] = "1"
    image = skyimages.paint(header, 36, 2.75)
    (folder / "d.Unwise.fits").write_bytes(skyimages.content_of(image[None], header))
    make("e", "its AB zero-point is 23.199, the schema's 25.199; pack with --calibrate ab")
    with fits.open(folder / "e.Unwise.fits", mode="update") as hdus:
        hdus[0].header["MAGZP"] = 20.5
    make("f", "does not name the bands of its 2 images; say their order with --fits-bands galex")
    with fits.open(folder / "f.Galex.fits", mode="update") as hdus:
        for card in ("BANDS", "BAND0", "BAND1"):
            del hdus[0].header[card]
    make("g", "ends 33 pixels before the stamp of 170x170")
    make("h", "it is broken or truncated")
    path = folder / "h.g.fits"
    path.write_bytes(path.read_bytes()[:-5000])
    make("i", "i.r.fits: its pixels lie 0.00 pixels and 2.00 degrees off those of band g; cut all")
    turned = skyimages.header_of(200, 0.25, style="old_pc", turn_deg=2.0)
    with fits.open(folder / "i.r.fits", mode="update") as hdus:
        hdus[0].header.update(turned)
    make("j", "j.y.fits: its pixels lie 0.30 pixels and 0.00 degrees off those of band g")
    with fits.open(folder / "j.y.fits", mode="update") as hdus:
        hdus[0].header["CRPIX1"] += 0.3
    return reasons


def test_every_fault_of_a_file_is_named_in_rejected_csv(tmp_path):
    folder = tmp_path / "raw"
    skyimages.write_object(folder, "good")
    reasons = spoil(folder)
    rows = [(name, skyimages.RA, skyimages.DEC) for name in ("good", *reasons)]
    rows = [(n, ra + (12 / 3600 if n == "g" else 0), dec) for n, ra, dec in rows]
    (tmp_path / "catalog.csv").write_text(skyimages.catalog_text(rows))
    assert pack(tmp_path, tmp_path / "out", "--max-rejected", "10") == 0
    with (tmp_path / "out" / "rejected.csv").open(newline="") as file:
        found = {row["sample_id"]: row["reason"] for row in csv.DictReader(file)}
    assert sorted(found) == sorted(reasons)
    assert not [(found[n], r) for n, r in reasons.items() if r not in found[n]]
    assert list(skyimages.packed_samples(tmp_path / "out")) == ["good"]


def test_planes_are_taken_by_their_names_whatever_their_order(tmp_path):
    skyimages.write_object(tmp_path, "x")
    tree = FitsTree(tmp_path, GALEX_ONLY)
    usual = tree.read("x", -1, HERE)["galex"]
    path = tmp_path / "x.Galex.fits"
    with fits.open(path) as hdus:
        header, cube = hdus[0].header.copy(), hdus[0].data[::-1].copy()
    header["BANDS"], header["BAND0"], header["BAND1"] = "fn", "f", "n"
    path.write_bytes(skyimages.content_of(cube, header))
    np.testing.assert_array_equal(tree.read("x", -1, HERE)["galex"], usual)


def test_an_inverse_variance_behind_the_image_is_not_taken_for_it(tmp_path):
    skyimages.write_object(tmp_path, "x")
    tree = FitsTree(tmp_path, GALEX_ONLY)
    usual = tree.read("x", -1, HERE)["galex"]
    with fits.open(tmp_path / "x.Galex.fits", mode="append") as hdus:
        hdus.append(fits.ImageHDU(np.full_like(hdus[0].data, 7), hdus[0].header))
    np.testing.assert_array_equal(tree.read("x", -1, HERE)["galex"], usual)


def test_patterns_with_folders_find_compressed_files_too(tmp_path):
    skyimages.write_object(tmp_path, "x")
    for survey in ("Galex", "Unwise"):
        (tmp_path / "1" / survey).mkdir(parents=True)
        content = gzip.compress((tmp_path / f"x.{survey}.fits").read_bytes())
        (tmp_path / "1" / survey / "obj-x.fits.gz").write_bytes(content)
    patterns = {"galex": "Galex/obj-{id}.fits", "unwise": "Unwise/obj-{id}.fits"}
    tree = FitsTree(tmp_path, FitsOptions(patterns=patterns))
    rows = tree.scan().to_pylist()
    assert rows == [{"sample_id": "x", "path": "1/x", "row": -1}]
    assert set(tree.read("1/x", -1, HERE)) >= {"galex", "unwise"}


def test_pickles_are_preferred_where_raw_files_were_kept_beside_them(tmp_path):
    skyimages.write_object(tmp_path / "a", "x")
    assert holds_fits(tmp_path)
    packing.write_object(tmp_path / "a" / "x.pkl", packing.tiny_object(1))
    assert not holds_fits(tmp_path)
    assert not holds_fits(tmp_path / "absent")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--fits", "galx={id}.fits"], "unknown array 'galx'; known are panstarrs, galex, unwise"),
        (["--fits", "galex=Galex.fits"], "needs {id} once"),
        (["--fits", "galex"], "--fits must be like galex={id}.Galex.fits, got 'galex'"),
        (["--fits-size", "galex=big"], "--fits-size must be like galex=120, got galex=big"),
        (["--fits-bands", "panstarrs=g,q"], "give some of g, r, i, z, y, each once"),
        (["--fits", "galex={id}.Galaxy.fits"], "holds no file named {id}.Galaxy.fits"),
        (["--catalog", "CATALOG"], "lacks the columns ra and dec"),
    ],
)
def test_wrong_options_are_one_sentence(tree, tmp_path, capsys, options, says):
    poor = tmp_path / "poor.csv"
    poor.write_text("id,redshift\n0000001,0.1\n")
    options = [str(poor) if o == "CATALOG" else o for o in options]
    assert pack(tree, tmp_path / "out", *options) in (1, 2)
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_calibration_of_pickles_is_refused(tiny_source, tmp_path, capsys):
    assert main(["pack", str(tiny_source), str(tmp_path / "o"), "--calibrate", "ab"]) == 2
    assert "--calibrate is for FITS files" in capsys.readouterr().err


def test_two_workers_give_the_bytes_of_one_and_a_repair_reads_the_files_again(tree, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert pack(tree, one, "--calibrate", "ab", "--shard-size", "700KB") == 0
    assert pack(tree, two, "--calibrate", "ab", "--shard-size", "700KB", "--jobs", "2") == 0
    packing.assert_same(one, two)
    shard = next(one.rglob("*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:5000] + b"\xff\xff\xff\xff" + whole[5004:])
    assert main(["verify", str(one), "--quiet", "--repair"]) == 0
    assert shard.read_bytes() == whole


def test_a_killed_pack_is_resumed_to_the_same_bytes_and_not_with_other_options(
    tree, tmp_path, capsys
):
    options = ["--calibrate", "ab", "--shard-size", "700KB", "--split", "1,0,0", "--quiet"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    catalog = ["--catalog", str(tree / "catalog.csv")]
    command = packing.pack_command(tree / "raw", out, *options, *catalog, "--jobs", "1")
    process = packing.start(command)
    notes = out / ".pack"
    packing.wait_for(lambda: any(notes.glob("shard-*.parquet")), process)
    packing.kill_group(process)
    process.communicate()
    if not (out / "dataset.json").exists():
        assert pack(tree, out, "--shard-size", "700KB", "--resume") == 2
        assert "was started with --calibrate ab, not none; resume with" in capsys.readouterr().err
    assert pack(tree, out, *options, "--resume") == 0
    assert pack(tree, whole, *options) == 0
    packing.assert_same(out, whole)


def test_the_options_survive_the_way_to_a_worker():
    options = FitsOptions(
        patterns={"unwise": "{id}-{band}.fits"},
        bands={"unwise": ("W2",)},
        sizes={"unwise": 16},
        pixel_scales_arcsec={"unwise": 1.5},
        calibration="ab",
    )
    assert FitsOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    settings = PackSettings(source=Path("s"), out=Path("o"), fits=options)
    assert settings.provenance()["fits"] == options.to_json()
    survey = options.schema()["unwise"]
    assert (survey.shape, survey.pixel_scale_arcsec, survey.bands) == ((1, 16, 16), 1.5, ("W2",))


def test_a_source_without_fits_options_stays_what_it_was(tmp_path):
    packing.write_object(tmp_path / "x.pkl", packing.tiny_object(1))
    assert detect_source(tmp_path).schema is None
