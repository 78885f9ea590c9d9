"""Objects that lack a band or a survey: rejected with a count, or filled and listed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import packing
import pytest
import skyimages

import msdata
from msdata.augment import AugmentConfig, open_augmenter
from msdata.cli import main
from msdata.errors import SampleError, UsageError
from msdata.pack.finish import most_rejected, notes_on_missing
from msdata.pack.planning import infer_schema, schema_of
from msdata.pack.prepare import Preparation, prepare
from msdata.pack.settings import PackSettings
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.detect import detect_source
from msdata.sources.fits import FitsTree
from msdata.sources.fits_options import FitsOptions
from msdata.sources.pickles import PickleTree
from msdata.sources.survey_file import read_survey
from msdata.verify.repair import repair
from msdata.verify.verify import verify_dataset

SURVEY = """
name = "{name}"
pattern = "{{id}}.{name}.{{band}}.fits"
bands = {bands}
pixel_scale_arcsec = {scale}
size = 16
zero_points_ab = [22.5]
"""
SURVEYS = {"deep": (["g", "r"], 1.0), "wide": (["H"], 2.0)}
# Bands of each object; the file of "blank" is NaN throughout.
OBJECTS = {
    "whole": ("deep.g", "deep.r", "wide.H"),
    "no_r": ("deep.g", "wide.H"),
    "no_wide": ("deep.g", "deep.r"),
    "no_deep": ("wide.H",),
    "blank": ("deep.g",),
}
MISSING = {
    "whole": "",
    "no_r": "deep.r",
    "no_wide": "wide.H",
    "no_deep": "deep.g,deep.r",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FITS files of two surveys, and the options that read them."""
    folder = tmp_path_factory.mktemp("raw")
    for name, (bands, scale) in SURVEYS.items():
        text = SURVEY.format(name=name, bands=json.dumps(bands), scale=scale)
        (folder / f"{name}.toml").write_text(text)
    noise = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    for number, (name, bands) in enumerate(OBJECTS.items()):
        for band in bands:
            scale = SURVEYS[band.split(".")[0]][1]
            pixels = noise + number if name != "blank" else np.full_like(noise, np.nan)
            content = skyimages.content_of(pixels, skyimages.header_of(40, scale))
            (folder / "files").mkdir(exist_ok=True)
            (folder / "files" / f"{name}.{band}.fits").write_bytes(content)
    rows = [(name, skyimages.RA, skyimages.DEC) for name in OBJECTS]
    (folder / "labels.csv").write_text(skyimages.catalog_text(rows))
    return folder


def options(raw: Path, *more: str) -> tuple[str, ...]:
    surveys = (word for n in SURVEYS for word in ("--survey", str(raw / f"{n}.toml")))
    return (*surveys, "--catalog", str(raw / "labels.csv"), "--split", "1,0,0", *more)


def packed(raw: Path, out: Path, *more: str) -> int:
    words = options(raw, "--jobs", "1", "--quiet", *more)
    return main(["pack", str(raw / "files"), str(out), *words])


@pytest.fixture(scope="module")
def filled(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Missing bands are NaN; quantized and compressed."""
    out = tmp_path_factory.mktemp("filled") / "data"
    coded = ("--quantize", "4", "--compress", "lz4")
    assert packed(raw, out, "--missing", "fill", *coded) == 0
    return out


@pytest.fixture(scope="module")
def sevens(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Missing bands are 7.5."""
    out = tmp_path_factory.mktemp("sevens") / "data"
    assert packed(raw, out, "--missing", "fill=7.5") == 0
    return out


def missing_of(data: Path) -> dict[str, str]:
    table = msdata.open(data).table
    return dict(zip(*(table[n].to_pylist() for n in ("sample_id", "missing_bands")), strict=True))


def rejected(out: Path) -> dict[str, str]:
    with (out / "rejected.csv").open() as file:
        return {row["sample_id"]: row["reason"] for row in csv.DictReader(file)}


def test_objects_without_a_band_are_rejected_with_a_count_and_the_cure(raw, tmp_path, capsys):
    assert packed(raw, tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "note: 4 objects were rejected for a missing band; --missing fill keeps those" in said
    assert missing_of(tmp_path / "out") == {"whole": ""}
    assert rejected(tmp_path / "out") == {
        "no_r": "it has no file no_r.deep.r.fits",
        "no_wide": "it has no file no_wide.wide.H.fits",
        "no_deep": "it has no file no_deep.deep.g.fits",
        "blank": "it has no file blank.deep.r.fits",
    }


def test_missing_bands_are_filled_listed_and_counted(filled, sevens, capsys):
    whole = skyimages.packed_samples(filled)
    numbers = skyimages.packed_samples(sevens)
    assert missing_of(filled) == missing_of(sevens) == MISSING
    assert rejected(filled) == {"blank": "it has no band of any survey"}
    for name, bands in OBJECTS.items():
        for band in ("deep.g", "deep.r", "wide.H") if name != "blank" else ():
            array, place = band[:4], {"g": 0, "r": 1, "H": 0}[band[5]]
            is_there = band in bands
            pixels = (whole[name][array][place], numbers[name][array][place])
            assert np.isfinite(pixels[0]).all() == is_there
            assert np.isnan(pixels[0]).any() != is_there
            assert (pixels[1] == 7.5).all() != is_there
            zero_point = numbers[name]["zero_point_" + band.replace(".", "_")]
            assert np.isfinite(zero_point) == is_there
    assert main(["info", str(sevens)]) == 0
    assert "g 1, r 2" in capsys.readouterr().out
    (note,) = notes_on_missing(msdata.open(sevens).table, sevens, 1, 7.5)
    assert note == "samples with a missing band, of 4: deep.g 1, deep.r 2, wide.H 1"


def test_statistics_leave_filled_bands_out(sevens, tmp_path):
    out = tmp_path / "statistics.json"
    assert main(["stats", str(sevens), "--out", str(out), "--quiet", "--jobs", "1"]) == 0
    band = json.loads(out.read_text())["arrays"]["deep"]["r"]
    assert (band["num_missing"], band["num_nan"], band["num_pixels"]) == (2, 0, 2 * 256)
    samples = skyimages.packed_samples(sevens)
    seen = [samples[name]["deep"][1] for name in ("whole", "no_wide")]
    assert band["mean"] == pytest.approx(np.mean(seen), rel=0.01)


def test_a_network_sees_zero_where_a_band_is_nan(filled):
    split = msdata.open(filled).split("train")
    config = AugmentConfig(scaling="linear10", output_size=8)
    with msdata.Loader(split, 4) as loader:
        batch = next(iter(loader))
        with open_augmenter(split.schema, config, seed=0, batch_size=4, threads=1) as augmenter:
            (image,) = augmenter.run(batch, epoch=0).values()
        places = {name: i for i, name in enumerate(batch["sample_id"])}
    assert image[places["no_deep"]].any(axis=(1, 2)).tolist() == [False, False, True]
    assert image[places["whole"]].any(axis=(1, 2)).all()


def test_a_shard_with_filled_bands_is_repaired_bit_for_bit(filled):
    (shard,) = filled.glob("train/*.tar")
    whole = shard.read_bytes()
    shard.unlink()
    assert all(r.is_repaired for r in repair(verify_dataset(filled)))
    assert shard.read_bytes() == whole


def test_a_packed_data_set_keeps_what_is_missing(filled, sevens):
    for data in (filled, sevens):
        source = detect_source(data)
        preparation = Preparation(max_nan_fraction=1.0)
        for row in source.scan().to_pylist():
            sample = source.read(row["path"], row["row"])
            found = prepare(sample, source.schema, preparation)
            assert ",".join(found.missing_bands) == MISSING[row["sample_id"]]


def test_a_pack_resumes_with_the_same_way_of_missing_bands_only(raw, sevens, capsys):
    assert packed(raw, sevens, "--missing", "fill=7.5", "--resume") == 0
    capsys.readouterr()
    assert packed(raw, sevens, "--resume") == 2
    assert "was started with --missing fill=7.5, not reject" in capsys.readouterr().err


def test_pickled_objects_lack_arrays_too(tmp_path):
    for number in range(4):
        sample = packing.mantis_object(4 * number + 1)
        if number % 2:
            del sample[("galex", "unwise")[number // 2]]
        packing.write_object(tmp_path / f"{number:07d}.pkl", sample)
    source = PickleTree(tmp_path)
    places = [(f"{n:07d}.pkl", -1) for n in range(4)]
    schema, _ = infer_schema(source, places, merges=True)
    assert schema == MANTIS_SHRIMP
    found = [prepare(source.read(*at), schema, Preparation(fill=np.nan)) for at in places]
    missing = [[], ["galex.NUV", "galex.FUV"], [], ["unwise.W1", "unwise.W2"]]
    assert [list(f.missing_bands) for f in found] == missing
    assert found[1].num_nan[1] == (1024, 1024)
    with pytest.raises(SampleError, match="it has no array 'galex'"):
        prepare(source.read(*places[1]), schema, Preparation())


def test_reasons_that_differ_in_names_of_files_alone_are_one_kind(tmp_path):
    rows = [f"a-{n},a-{n},-1,a-{n}.g.fits: it holds {n}; see there" for n in range(3)]
    path = tmp_path / "rejected.csv"
    path.write_text("\n".join(["sample_id,path,row,reason", *rows]) + "\n")
    told = most_rejected(tmp_path, 3, 1)
    assert told.startswith("3 of 4 objects were rejected: a-0.g.fits: it holds 0; see there (3 ali")
    path.write_text(path.read_text() + "x,x,-1,it has no label\n")
    told = most_rejected(tmp_path, 4, 1)
    assert "{id}.g.fits: it holds N (3), it has no label (1); see" in told


def test_what_cannot_be_filled_is_refused():
    tiny = packing.tiny_object(1)
    schema = schema_of(tiny)
    nan, zero = (Preparation(fill=v) for v in (np.nan, 0.0))
    image = {"image": tiny["image"]}
    with pytest.raises(SampleError, match="'spectrum', whose dtype <i2 does not hold nan; fill"):
        prepare(image, schema, nan)
    assert prepare(image, schema, zero).missing_bands == ("spectrum",)
    assert prepare(image, schema, zero).scalars == {"exposure_s": None}
    with pytest.raises(SampleError, match="it has no band of any survey"):
        prepare({}, schema, zero)
    for text in ("x", "fill=", "fill=nan", "fill=x"):
        with pytest.raises(UsageError, match="--missing must be reject, fill or fill=NUMBER, got"):
            PackSettings(source=Path(), out=Path(), missing=text)
    with pytest.raises(UsageError, match=r"needs FitsOptions\(fills_missing=True\)"):
        PackSettings(source=Path(), out=Path(), missing="fill", fits=FitsOptions())


def test_a_missing_band_never_hides_another_fault(raw, tmp_path):
    """A file that is there and unusable is refused, whatever becomes of those that are not."""
    surveys = tuple(read_survey(str(raw / f"{name}.toml")) for name in SURVEYS)
    patterns = {survey.name: survey.files for survey in surveys}
    tree = FitsTree(tmp_path, FitsOptions(patterns=patterns, surveys=surveys, fills_missing=True))
    here = {"ra": skyimages.RA, "dec": skyimages.DEC}
    (tmp_path / "a.wide.H.fits").write_bytes((raw / "files" / "whole.wide.H.fits").read_bytes())
    assert np.isnan(tree.read("a", -1, here)["deep"]).all()
    (tmp_path / "a.deep.g.fits").write_bytes(b"<html>not found</html>")
    with pytest.raises(SampleError, match=r"a\.deep\.g\.fits: it is not a FITS file"):
        tree.read("a", -1, here)
    (tmp_path / "a.deep.g.fits").write_bytes((raw / "files" / "whole.deep.g.fits").read_bytes())
    with pytest.raises(SampleError, match=r"ends 60 pixels before the stamp"):
        tree.read("a", -1, {**here, "dec": skyimages.DEC + 0.02})
