"""Pixels of another scale, unit, type or level than the training's are refused, others are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import packing
import pytest
import training

import msdata
import mstrain.cli
from msdata.augment.statistics import FILE_NAME, Statistics, count_values, summarise
from msdata.errors import DataError
from mstrain.data.pixels import pixel_differences, statistics_differences
from mstrain.evaluation.predictions import read_predictions
from mstrain.evaluation.run_info import open_run

QUICK = ("--quiet", "--device", "cpu")
OPTIONS = ("--split", "0,0,1", "--max-nan-fraction", "1", "--jobs", "1")
Change = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


# ---------------------------------------------------------------- of statistics


def band(
    seed: int, *, scale: float = 1.0, offset: float = 0.0, count: int = 100, missing: int = 0
) -> Statistics:
    """Statistics of cutouts with noise of 1 and a source whose brightness varies by a hundred."""
    random = np.random.default_rng(seed)
    pixels = random.normal(0, 1, (count - missing, 900))
    pixels[:, :60] += random.lognormal(2, 1, (count - missing, 1))
    found = summarise(count_values((scale * pixels + offset).astype("f4")), num_missing=missing)
    return Statistics(
        fingerprint="0", split="test", num_samples=count, arrays={"image": {"g": found}}
    )


def differences(found: Statistics, **trained: int) -> list[str]:
    return list(statistics_differences(band(0, **trained), found))


@pytest.mark.parametrize("count", [1, 3, 20, 100])
def test_another_draw_of_a_survey_passes(count: int) -> None:
    assert [differences(band(seed, count=count)) for seed in range(1, 21)] == [[]] * 20


@pytest.mark.parametrize("scale", [0.01, 0.1, 1 / 3, 3, 10, 100])
def test_another_scale_is_found_and_said(scale: float) -> None:
    said = differences(band(1, scale=scale))[0]
    assert said.startswith("image.g: noise ")
    assert float(said.split()[2]) == pytest.approx(scale, rel=0.05)
    assert "times the training's (limit 2.3)" in said


def test_another_level_is_found_and_said() -> None:
    (said,) = differences(band(1, offset=5))
    assert said.startswith("image.g: median +4.88 noises from the training's (limit 2.4)")
    assert not differences(band(1, offset=1))


def test_a_band_that_no_sample_has_is_found_where_the_training_had_it() -> None:
    nothing = band(1, count=30, missing=30)
    assert differences(nothing) == [
        "image.g: no sample has a pixel, nearly all of the training had"
    ]
    # A network that was trained without it now and then can do without it.
    assert not differences(nothing, missing=20)
    assert not differences(band(1), missing=100)


def test_few_photons_have_a_wider_limit() -> None:
    def counts(seed: int, scale: float) -> Statistics:
        pixels = scale * np.random.default_rng(seed).poisson(0.2, (100, 900))
        found = summarise(count_values(pixels.astype("f4")))
        return replace(band(0), arrays={"image": {"g": found}})

    trained = counts(0, 1)
    assert not list(statistics_differences(trained, counts(1, 3)))
    (said,) = statistics_differences(trained, counts(1, 10))
    assert "noise 10.1 times the training's (limit 6.9)" in said


def test_arrays_that_the_network_does_not_take_do_not_count() -> None:
    assert not list(statistics_differences(band(0), band(1, scale=100), ["other"]))


# ---------------------------------------------------------------- of runs


@pytest.fixture(scope="module")
def trained(
    galaxies: Path, ranks: training.Ranks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of one epoch, with a scaling that needs no statistics."""
    run = tmp_path_factory.mktemp("pixels") / "run"
    ranks.run(training.words_of(galaxies, run, epochs="1"))
    return run


def other_sample(folder: Path, change: Change = dict, *options: str) -> Path:
    """A data set of 30 objects that the training has not seen, each changed."""
    rows = ["mantis_id,redshift,ebv_csfd"]
    for number in range(500, 530):
        redshift = 0.02 + number % 30 / 20
        sample = {n: a * (1 + redshift) for n, a in packing.mantis_object(number).items()}
        packing.write_object(folder / "photometry" / f"{number:07d}.npy", change(sample))
        rows.append(f"{number},{redshift},0.05")
    (folder / "catalog.csv").write_text("\n".join(rows) + "\n")
    made = packing.pack(folder, folder / "data", *OPTIONS, *options)
    assert made.returncode == 0, made.stderr
    return folder / "data"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of other objects, as they are."""
    return other_sample(tmp_path_factory.mktemp("other"))


def predict(run: Path, data: Path, out: Path, *options: str) -> int:
    return mstrain.cli.main(["predict", str(run), str(data), str(out), *QUICK, *options])


def test_a_run_keeps_statistics_that_nothing_was_scaled_by(trained: Path, galaxies: Path) -> None:
    found = json.loads((trained / FILE_NAME).read_text())
    assert found["fingerprint"] == msdata.open(galaxies).manifest.fingerprint
    assert set(found["arrays"]) == {"panstarrs", "galex", "unwise"}
    assert found["num_samples"] == len(msdata.open(galaxies).split("train"))


def test_another_sample_is_predicted_without_a_word(
    trained: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert predict(trained, other, tmp_path / "p.parquet") == 0
    assert capsys.readouterr().err == ""
    assert read_predictions(tmp_path / "p.parquet").origin["pixel_differences"] == []


def test_pixels_of_another_scale_are_refused_unless_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def scaled(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**sample, "unwise": sample["unwise"] * 10}

    data, out = other_sample(tmp_path / "other", scaled), tmp_path / "new" / "p.parquet"
    capsys.readouterr()
    assert predict(trained, data, out) == 2
    said = capsys.readouterr().err
    assert f"the pixels of {data} must be as those that {trained} was trained on, got: " in said
    assert "unwise.W1: noise " in said
    assert said.count("\n") == 1
    words = ["evaluate", str(trained), str(data), "--out", str(out.parent), *QUICK]
    assert mstrain.cli.main([*words, "--no-report"]) == 2
    assert "unwise.W1: noise " in capsys.readouterr().err
    # Refused before the work, with nothing left behind.
    assert not out.parent.exists()
    assert mstrain.cli.main([*words, "--any-pixels", "--replicates", "50"]) == 0
    told = capsys.readouterr().err
    found = json.loads((out.parent / "evaluation-test.json").read_text())["origin"]
    assert len(found["pixel_differences"]) >= 2
    page = (out.parent / "report.html").read_text()
    for text in found["pixel_differences"]:
        assert f"WARNING: other pixels than in training: {text}" in told
        assert f"Other pixels than in training: {text}" in page.replace("&#x27;", "'")


DECLARED = {
    "unit": ({"unit": "nanomaggy"}, "unit of 'unwise' was 'nanomaggy', now 'count'"),
    "type": ({"dtype": "<f8"}, "dtype of 'unwise' was '<f8', now '<f4'"),
    "zero": (
        {"zero_points_ab": None},
        "zero_points_ab of 'unwise' was None, now (25.199, 25.839)",
    ),
}


@pytest.mark.parametrize("name", DECLARED)
def test_another_declaration_of_pixels_is_a_difference(
    trained: Path, other: Path, name: str
) -> None:
    change, says = DECLARED[name]
    run = open_run(trained, "best")
    data = msdata.open(other)
    assert pixel_differences(run, data, ["test"]) == []
    arrays = [replace(a, **change) if a.name == "unwise" else a for a in data.schema.arrays]
    odd = replace(run, schema=replace(run.schema, arrays=tuple(arrays)))
    assert pixel_differences(odd, data, ["test"]) == [says]


def test_a_run_without_statistics_says_so(
    trained: Path, galaxies: Path, other: Path, tmp_path: Path
) -> None:
    data = msdata.open(other)
    run = replace(open_run(trained, "best"), path=tmp_path)
    (said,) = pixel_differences(run, data, ["test"])
    assert said.endswith("is missing, so that statistics of pixels cannot be compared")
    # The training's own data need none.
    assert pixel_differences(run, msdata.open(galaxies), ["val"]) == []
    (tmp_path / FILE_NAME).write_text("{}")
    with pytest.raises(DataError, match="is damaged: field 'arrays' is missing"):
        pixel_differences(run, data, ["test"])
