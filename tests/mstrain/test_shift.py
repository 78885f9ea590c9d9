"""Two-sample tests with known answers, and the command on splits of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import msdata
from msdata.core.output_file import PNG_MARK
from msdata.errors import UsageError
from mstrain.cli import main
from mstrain.comparison.shift import frechet_distance, measure_shift


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.5])
def test_shifted_normal_sets_have_the_closed_form_auroc_within_the_interval(delta: float) -> None:
    random = np.random.default_rng(0)
    axes = np.full(8, delta / np.sqrt(8))
    inside = 0
    for seed in range(40):
        a, b = random.normal(size=(2, 500, 8))
        found = measure_shift(a, b[:400] + axes, seed=seed)
        inside += found.auroc.low <= norm.cdf(delta / np.sqrt(2)) <= found.auroc.high
    assert inside >= 35
    a, b = random.normal(size=(2, 4000, 8))
    found = measure_shift(a, b + axes)
    assert found.auroc.value == pytest.approx(norm.cdf(delta / np.sqrt(2)), abs=0.02)
    assert found.differs == bool(delta)
    if delta:
        assert found.frechet > 5 * found.frechet_null
        rows = found.oddest()
        direction = axes / delta
        assert (a[rows[0]] @ direction < -1).all()
        assert ((b + axes)[rows[1]] @ direction > 1).all()


def test_the_frechet_distance_of_normal_sets_is_the_closed_form() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, 100_000, 2))
    # (3 - 1)^2 and (0.5 - 1)^2 from the spreads, 4 from the means.
    found = frechet_distance(a, b * [3.0, 0.5] + [2.0, 0.0])
    assert found == pytest.approx(4 + 4 + 0.25, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UsageError, match="at least 20 objects, got 100,000 and 3"):
        measure_shift(a, b[:3])


def test_the_command_compares_splits_samples_and_tables(
    weighted_run: Path, galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data, sheet = str(weighted_run), str(galaxies), tmp_path / "new" / "s.png"
    middle = np.nanmedian(msdata.open(galaxies).split("train").numbers("redshift"))
    halves = ["--sample-a", f"redshift < {middle}", "--sample-b", f"redshift >= {middle}"]
    words = ["shift", run, data, data, "--layer", "pixels", "--quiet", "--device", "cpu"]
    assert main([*words, *halves, "--json", "--sheet", str(sheet)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_a"] + found["num_b"] == 60
    assert len({*found["oddest_a"], *found["oddest_b"]}) == 16
    assert PNG_MARK in sheet.read_bytes()
    table = str(tmp_path / "e.parquet")
    embed = ["embed", run, data, table, "--layer", "pixels", "--columns", "redshift"]
    assert main([*embed, "--quiet", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["shift", run, table, table, *halves, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["auroc"] == found["auroc"]
    for wrong, said in (
        ([table, table, "--split-a", "val"], "at least 20 objects, got 11 and 60"),
        ([table, table, "--sample-b", "mass > 1"], "--sample-b needs the column mass"),
        ([table, str(tmp_path / "no"), "--json"], "no does not exist"),
        ([table, table, "--sheet", "s.jpg"], "--sheet must be a .png file"),
        ([table, table, "--checkpoint", "last"], "must be embeddings by the last checkpoint"),
    ):
        assert main(["shift", run, *wrong]) == 2
        assert said in capsys.readouterr().err
