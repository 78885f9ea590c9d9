"""`msdata stats`: what it measures, on any number of threads, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loading
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import msdata
from msdata import cli
from msdata.augment import AugmentConfig, open_augmenter, read_statistics
from msdata.augment.statistics import count_values, summarise
from msdata.errors import DataError, UsageError

Packed = Callable[..., Path]


def stats(data: Path, *options: str) -> int:
    return cli.main(["stats", str(data), "--quiet", *options])


@pytest.fixture
def data(packed: Packed, mantis_source: Path, tmp_path: Path) -> Path:
    """A data set of our own, that shares its shards with that of the session."""
    whole = packed(mantis_source, "--inpaint", "none", "--split", "0.9,0,0.1")
    copy = tmp_path / "DATA"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def pixels_of(data: Path, array: str, band: int) -> Any:
    """All pixels of a band of the split "train" that count, in float64."""
    split = msdata.open(data).split("train")
    images = np.stack([split[i][array][band] for i in range(len(split))]).astype(np.float64)
    seen = images[images.any(axis=(1, 2))]
    return seen[np.isfinite(seen)]


def test_the_statistics_are_those_of_the_pixels(data: Path) -> None:
    assert stats(data) == 0
    found = read_statistics(data)
    assert found.num_samples == len(msdata.open(data).split("train"))
    for array, band, place in (("panstarrs", "g", 0), ("galex", "FUV", 1), ("unwise", "W2", 1)):
        pixels, numbers = pixels_of(data, array, place), found.arrays[array][band]
        assert numbers.num_pixels == len(pixels)
        assert numbers.mean == pytest.approx(pixels.mean(), rel=1e-4)
        assert numbers.std == pytest.approx(pixels.std(), rel=1e-3)
        assert numbers.minimum == pytest.approx(pixels.min(), rel=2e-3)
        assert numbers.maximum == pytest.approx(pixels.max(), rel=2e-3)
        for share, value in numbers.quantiles.items():
            assert value == pytest.approx(np.quantile(pixels, float(share)), rel=4e-3, abs=0.02)
        away = np.abs(pixels - np.median(pixels))
        assert numbers.sky_sigma == pytest.approx(1.4826 * np.median(away), rel=5e-3)
        stretched = np.arcsinh(pixels / numbers.sky_sigma)
        assert numbers.asinh_std == pytest.approx(stretched.std(), rel=1e-3)


def test_nan_pixels_and_bands_without_coverage_are_counted_and_left_out(data: Path) -> None:
    assert stats(data) == 0
    found, split = read_statistics(data), msdata.open(data).split("train")
    samples = [split[i] for i in range(len(split))]
    missing = sum(not s["galex"][1].any() for s in samples)
    assert missing > 0
    assert found.arrays["galex"]["FUV"].num_missing == missing
    num_nan = sum(int(np.isnan(s["panstarrs"][2]).sum()) for s in samples)
    assert num_nan > 0
    assert found.arrays["panstarrs"]["i"].num_nan == num_nan


def test_the_file_has_the_same_bytes_for_any_number_of_threads(data: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{jobs}.json" for jobs in (1, 3)]
    for jobs, file in zip((1, 3), files, strict=True):
        options = ("--jobs", str(jobs), "--out", str(file), "--max-samples", "20")
        assert stats(data, *options) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_statistics(files[0]).num_samples == 20


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=200))
def test_any_pixels_have_finite_statistics(values: list[float]) -> None:
    pixels = np.array(values, np.float32)
    found = summarise(count_values(pixels))
    finite = pixels[np.isfinite(pixels)].astype(np.float64)
    assert found.num_nan == len(pixels) - len(finite)
    assert found.num_pixels == len(finite)
    assert found.sky_sigma > 0
    assert found.asinh_std > 0
    numbers = [found.mean, found.std, found.minimum, found.maximum, *found.quantiles.values()]
    assert np.isfinite(numbers).all()
    assert sorted(found.quantiles.values()) == list(found.quantiles.values())
    if len(finite):
        assert found.minimum == pytest.approx(finite.min(), rel=2e-3, abs=1e-37)
        assert found.maximum == pytest.approx(finite.max(), rel=2e-3, abs=1e-37)


def test_statistics_of_another_data_set_are_refused(data: Path, tmp_path: Path) -> None:
    assert stats(data) == 0
    content = json.loads((data / "statistics.json").read_text())
    (data / "statistics.json").write_text(json.dumps({**content, "fingerprint": "0123"}))
    with pytest.raises(DataError, match=r"measured on data set 0123, this is .*'msdata stats'"):
        read_statistics(data)
    elsewhere = tmp_path / "copy.json"
    elsewhere.write_text(json.dumps(content))
    assert read_statistics(elsewhere).fingerprint == content["fingerprint"]
    with pytest.raises(DataError, match="this is abcd"):
        read_statistics(elsewhere, fingerprint="abcd")


def test_absent_or_damaged_statistics_are_refused_with_the_command(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"statistics.json does not exist; run 'msdata stats"):
        read_statistics(data)
    for text in ("{", "[]", '{"format_version": 1}', '{"format_version": 99}'):
        (tmp_path / "statistics.json").write_text(text)
        with pytest.raises(DataError, match=r"statistics.json is .*; run 'msdata stats' again"):
            read_statistics(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stats(data) == 0
    before = (data / "statistics.json").read_bytes()

    def refuse(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert stats(data, "--max-samples", "3") == 1
    assert "the disk is full" in capsys.readouterr().err
    assert (data / "statistics.json").read_bytes() == before
    assert not list(data.glob("*.partial"))


def test_wrong_usage_is_said_in_one_sentence(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("--max-samples", "0"): "--max-samples must be at least 1, got 0",
        ("--jobs", "0"): "--jobs must be at least 1, got 0",
        ("--split", "trian"): "has no split 'trian'",
        ("--out", "s.txt"): "--out must be a .json file, got s.txt",
        ("--out", "/nowhere/s.json"): "the folder of --out does not exist: /nowhere",
    }
    for options, words in cases.items():
        assert stats(data, *options) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert stats(data / "nothing") == 2
    assert not (data / "statistics.json").exists()


def test_json_is_alone_on_stdout_and_the_table_names_every_band(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stats(data, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["arrays"]) == {"panstarrs", "galex", "unwise"}
    assert found["path"].endswith("statistics.json")
    survey = msdata.open(data).schema["unwise"]
    assert survey.zero_points_ab is not None and survey.pixel_scale_arcsec is not None
    # N square pixels of an arc second have sqrt(N) times the noise of one.
    noise = found["arrays"]["unwise"]["W2"]["sky_sigma"] / survey.pixel_scale_arcsec
    expected = survey.zero_points_ab[1] - 2.5 * np.log10(5 * noise)
    assert found["depths_ab"]["unwise.W2"] == pytest.approx(expected, abs=1e-9)
    # A zero-point of its own for each object.
    assert "panstarrs.r" not in found["depths_ab"]
    assert stats(data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        len([line for line in lines if line.startswith(("galex.", "panstarrs.", "unwise."))]) == 9
    )


def test_the_data_set_is_still_whole_and_nothing_is_odd_about_it(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stats(data) == 0
    capsys.readouterr()
    assert cli.main(["verify", str(data), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_images_scaled_by_the_statistics_have_about_unit_spread(data: Path) -> None:
    assert stats(data) == 0
    opened = msdata.open(data)
    config = AugmentConfig(scaling="asinh", fusion="late", rotation="exact")
    with (
        msdata.Loader(opened.split("train"), 40, seed=0) as loader,
        open_augmenter(
            opened.schema, config, seed=0, batch_size=40, statistics=read_statistics(data)
        ) as augmenter,
    ):
        for batch in loader:
            for image in augmenter.run(batch, 0).values():
                spread = image[:, 0].std(axis=(0, 1, 2))
                assert 0.8 < spread < 1.2


def test_arrays_that_are_no_images_are_left_out(packed: Packed, tiny_source: Path) -> None:
    data = packed(tiny_source, *loading.options_of("tar"))
    target = data.parent / "tiny.json"
    assert stats(data, "--out", str(target)) == 0
    assert {name: list(bands) for name, bands in read_statistics(target).arrays.items()} == {
        "image": ["0", "1", "2"]
    }
