"""Redshifts that contradict each other: which pairs, how often, and what becomes of their rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from msdata.catalog.build.disagreements import find_disagreements
from msdata.cli import main
from msdata.core.intervals import wilson_interval
from msdata.errors import UsageError
from mstrain.network_config import ModelConfig

_ARCSEC = 1 / 3600
_RECIPE = 'name = "{0}"\n[columns]\nid = ["n"]\nra = ["ra"]\ndec = ["dec"]\nredshift = [["z"]]\n'
# n, ra, dec, z of survey Good, then of survey Other.
_GOOD = [
    (1, 10.0, 0.0, 0.30),
    (2, 20.0, 0.0, 0.40),
    (3, 360 - 0.5 * _ARCSEC, 5.0, 0.50),
    (4, 30.0, 0.0, 0.20),
    (4, 30.0, 1.0 * _ARCSEC, 0.70),  # A second spectrum of object 4, whose id is repeated.
    (5, 40.0, 89.9999, 0.25),
]
_OTHER = [
    (1, 10.0, 2.9 * _ARCSEC, 0.35),
    (2, 20.0, 3.1 * _ARCSEC, 0.90),
    (3, 0.5 * _ARCSEC, 5.0, 0.60),
    (9, 50.0, 0.0, 0.10),
    (6, 220.0, 89.9999, 0.2501),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disagreements")
    text = 'order = ["good", "other"]\n'
    for key, rows in (("good", _GOOD), ("other", _OTHER)):
        columns = dict(zip(("n", "ra", "dec", "z"), zip(*rows, strict=True), strict=True))
        pyarrow.csv.write_csv(pa.table(columns), folder / f"{key}.csv")
        (folder / f"{key}.toml").write_text(_RECIPE.format(key.title()))
        text += f'[surveys.{key}]\nfiles = ["{key}.csv"]\nrecipe = "{key}.toml"\n'
    (folder / "spec.toml").write_text(text)
    words = ["catalog", "build", str(folder / "spec.toml"), str(folder / "out")]
    assert main([*words, "--quiet", "--no-figure"]) == 0
    return folder / "out"


def test_pairs_within_three_arcsec_are_found_across_ra_zero_and_of_one_survey(built: Path) -> None:
    pairs = pq.read_table(built / "disagreements.parquet").to_pylist()
    found = {(p["survey_a"], p["object_id_a"], p["survey_b"], p["object_id_b"]): p for p in pairs}
    # Rows 3.1 arcsec apart are not paired; at the pole, 0.72 arcsec apart, they are, and agree.
    assert found.keys() == {
        ("Good", "1", "Other", "1"),
        ("Good", "3", "Other", "3"),
        ("Good", "4", "Good", "4"),
    }
    first = found["Good", "1", "Other", "1"]
    assert first["separation_arcsec"] == pytest.approx(2.9, abs=1e-4)
    assert first["scaled_difference"] == pytest.approx(0.05 / 1.325)
    across = found["Good", "3", "Other", "3"]
    assert across["separation_arcsec"] == pytest.approx(math.cos(math.radians(5)), abs=1e-4)
    # Of a pair one object is in the catalog; of a repeated id the first row.
    catalog = pq.read_table(built / "catalog.parquet").to_pylist()
    ids = {(o["survey"], o["object_id"]): o["sample_id"] for o in catalog}
    assert (first["sample_id_a"], first["sample_id_b"]) == (ids["Good", "1"], None)
    assert found["Good", "4", "Good", "4"]["sample_id_a"] == ids["Good", "4"]
    disputed = {(o["survey"], o["object_id"]) for o in catalog if o["is_disputed"]}
    assert disputed == {("Good", "1"), ("Good", "3"), ("Good", "4")}
    assert len(catalog) == 7


def test_rates_by_pair_of_surveys_stand_in_report_and_table(built: Path) -> None:
    rates = json.loads((built / "catalog.json").read_text())["disagreements"]
    counts = {tuple(r["surveys"]): (r["num_disagreeing"], r["num_pairs"]) for r in rates}
    assert counts == {("Good", "Good"): (1, 1), ("Good", "Other"): (2, 3), ("all", "all"): (3, 4)}
    text = (built / "counts.md").read_text()
    assert "| Good, Other | 3 | 2 | 66.67% | 20.77% to 93.85% |" in text
    assert "cannot be told" in text


def test_wilsons_interval_is_that_of_its_closed_form() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857, table I: 81/263, 15/148, 0/20, 1/29.
    for (hits, count), wanted in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson_interval(hits / count, count) == pytest.approx(wanted, abs=6e-5)


def test_the_rate_of_planted_mislabels_is_within_its_interval() -> None:
    random = np.random.default_rng(0)
    ra, dec = random.uniform(0, 360, 5000), random.uniform(-20, 20, 5000)
    z = random.uniform(0.1, 1.0, 5000)
    wrong = np.where(random.random(5000) < 0.03, random.permutation(z), z)
    rows = pa.table(
        {
            "ra": np.concatenate([ra, ra]),
            "dec": np.concatenate([dec, dec + 1 * _ARCSEC]),
            "redshift": np.concatenate([z, wrong]),
        }
    )
    found = find_disagreements(
        rows, np.repeat([0, 1], 5000), ["A", "B"], within_arcsec=3.0, above=0.005
    )
    (rate,) = found.rates
    expected = int((np.abs(z - wrong) / (1 + (z + wrong) / 2) > 0.005).sum())
    assert (rate.num_pairs, rate.num_disagreeing) == (5000, expected)
    assert rate.low < 0.03 < rate.high
    assert found.is_disputed.sum() == 2 * expected


def test_a_setting_out_of_range_is_refused_and_the_mark_is_no_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gama.csv").write_text("CATAID,RA,DEC,Z,NQ,SURVEY\n1,1,1,0.1,4,GAMA\n")
    spec = tmp_path / "spec.toml"
    spec.write_text('disagreement_arcsec = 0\n[surveys.gama]\nfiles = ["gama.csv"]\n')
    assert main(["catalog", "build", str(spec), str(tmp_path / "out"), "--quiet"]) == 2
    assert "disagreement_arcsec must be above 0" in capsys.readouterr().err
    with pytest.raises(UsageError, match="must not hold the answer, got is_disputed"):
        ModelConfig(ebv_column="is_disputed")
