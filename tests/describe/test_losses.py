"""info, card, sheet and stats of a coded data set: what was lost is what the index says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import msdata
from msdata.cli import main
from msdata.describe.info import describe
from msdata.describe.info_command import info_lines

CODED = ("--quantize", "panstarrs=4,unwise=8", "--compress", "lz4", "--max-nan-fraction", "1")


@pytest.fixture(scope="module")
def data(mantis_source: Path, packed: Callable[..., Path]) -> Path:
    return packed(mantis_source, *CODED)


def test_steps_errors_and_ratios_are_those_of_the_index(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(data), "--json"]) == 0
    coding = {c["name"]: c for c in json.loads(capsys.readouterr().out)["coding"]}
    opened = msdata.open(data)
    splits = [opened.split(name) for name in opened.splits]
    assert (coding["panstarrs"]["quantize"], coding["unwise"]["quantize"]) == (4, 8)
    assert (coding["galex"]["quantize"], coding["galex"]["bands"]) == (None, [])
    for a, name in enumerate(opened.schema.names):
        nbytes = sum(int(s.array_nbytes[:, a].sum()) for s in splits)
        assert coding[name]["nbytes"] == nbytes
        ratio = len(opened) * opened.schema[name].nbytes / nbytes
        assert coding[name]["ratio"] == pytest.approx(ratio)
    steps = np.concatenate([s.steps("unwise") for s in splits])
    for band, column in zip(coding["unwise"]["bands"], steps.T, strict=True):
        assert band["lowest_step"] == column.min()
        assert band["median_step"] == np.median(column)
        assert (band["highest_step"], band["max_error"]) == (column.max(), column.max() / 2)
    assert [b["band"] for b in coding["unwise"]["bands"]] == ["unwise.W1", "unwise.W2"]
    text = "\n".join(info_lines(describe(data), 80))
    assert "No pixel differs from the original by more than half a step" in text
    assert "panstarrs 0.26 %, unwise 0.065 %" in text


def test_the_card_says_what_was_lost(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    assert main(["card", str(copy), "--quiet"]) == 0
    text = (copy / "CARD.md").read_text()
    assert "## Coding\n\nNo pixel differs from the original" in text
    assert "| panstarrs | 4 | lz4 | &lt;i2 |" in text
    assert "| galex | - | lz4 | &lt;f4 |" in text
    assert "| unwise.W2 |" in text
    fields = json.loads((copy / "croissant.json").read_text())["recordSet"][0]["field"]
    (steps,) = (f for f in fields if f["name"] == "samples/step_unwise")
    assert (steps["dataType"], steps["repeated"]) == ("sc:Float", True)


def test_coarser_steps_of_a_source_are_told(
    data: Path, tmp_path: Path, packed: Callable[..., Path]
) -> None:
    again = packed(data, "--quantize", "unwise=8")
    text = " ".join(info_lines(describe(again), 80))
    assert "arrays panstarrs come from a data set that had quantized them" in text


def test_sheet_and_stats_read_decoded_pixels(
    data: Path, mantis_source: Path, packed: Callable[..., Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    assert main(["sheet", str(copy), str(tmp_path / "sheet.png"), "--n", "4"]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    plain = packed(mantis_source, "--max-nan-fraction", "1")
    found = []
    for folder, out in ((copy, "coded.json"), (plain, "plain.json")):
        command = ["stats", str(folder), "--out", str(tmp_path / out), "--quiet", "--jobs", "1"]
        assert main(command) == 0
        found.append(json.loads((tmp_path / out).read_text())["arrays"]["panstarrs"]["g"])
    # A step adds its variance and no bias.
    assert found[0]["mean"] == pytest.approx(found[1]["mean"], abs=0.01)
    assert found[0]["sky_sigma"] == pytest.approx(found[1]["sky_sigma"], rel=0.1)
