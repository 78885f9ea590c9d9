"""Networks and catalogs on the same objects: known answers, expressions, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import msdata
import mstrain
from msdata.errors import UsageError
from mstrain.cli import main
from mstrain.comparison.expression import parse_expression
from mstrain.comparison.paired import Row, score_rows
from mstrain.evaluation.list_table import Spool, SpooledRows
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import crps, make_densities
from mstrain.evaluation.metrics.gaussian import gaussian_scores
from mstrain.evaluation.metrics.scores import point_estimates, scores
from mstrain.evaluation.predictions import write_predictions

NUM = 400
EDGES = np.linspace(0, 2, 101)
QUICK = BootstrapConfig(num_replicates=60)


def write_table(path: Path, truth: np.ndarray, sigma: float, seed: int, **origin: object) -> Path:
    """A table of predictions N(truth + noise, sigma (1 + z)), and columns of catalogs."""
    random = np.random.default_rng(seed)
    width = sigma * (1 + truth)
    mean = truth + width * random.normal(size=len(truth))
    cdf = norm.cdf((EDGES - mean[:, None]) / width[:, None])
    cdf[:, 0], cdf[:, -1] = 0, 1
    density = (np.diff(cdf, axis=1) / np.diff(EDGES)).astype(np.float32)
    made = make_densities(density, EDGES)
    columns = {
        "sample_id": np.array([f"{n:05d}" for n in range(len(truth))], object),
        "redshift": truth,
        **point_estimates(made),
        **scores(made, truth),
        "mag_r": np.where(np.arange(len(truth)) % 4, 18.0, 16.0) + truth,
        "survey": np.array(["DESI", "SDSS"], object)[np.arange(len(truth)) % 2],
        "strm": np.where(np.arange(len(truth)) % 10, mean, -999.0),
        "strm_err": np.where(np.arange(len(truth)) % 20 == 1, np.nan, width),
    }
    path.parent.mkdir(exist_ok=True)
    with Spool(path, 0, density.shape[1]) as spool:
        spool.open()
        spool.add(density)
        spooled = SpooledRows([spool.finish(np.arange(len(truth)))], len(truth), len(EDGES) - 1)
        write_predictions(path, columns, spooled, EDGES, {"prior": "natural", **origin})
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> tuple[Path, Path]:
    """Two tables of the same 400 objects, of 0.02 and of 0.06."""
    folder = tmp_path_factory.mktemp("tables")
    truth = np.random.default_rng(0).uniform(0.2, 1.2, NUM)
    return (
        write_table(folder / "good" / "predictions-test.parquet", truth, 0.02, 1, run="runs/good"),
        write_table(folder / "bad" / "predictions-test.parquet", truth, 0.06, 2, run="runs/bad"),
    )


def point_row(name: str, truth: np.ndarray, sigma: float, seed: int) -> Row:
    noise = np.random.default_rng(seed).normal(size=len(truth))
    return Row(name=name, what="", estimate=truth + sigma * (1 + truth) * noise)


# Known answers


def test_a_run_against_itself_differs_by_exactly_nothing(tables, tmp_path) -> None:
    good, bad = tables
    found = mstrain.compare(
        [good.parent, good, bad], tmp_path, bootstrap=QUICK, has_report=False
    ).samples["all"]
    assert list(found.metrics) == ["good", "good (2)", "bad"]
    for name, difference in found.differences["good (2)"].items():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0), name
    worse = found.differences["bad"]
    assert worse.keys() == found.metrics["good"].keys()
    assert min(worse["nmad"].low, worse["crps"].low, worse["cde_loss"].low) > 0


def test_nmad_of_a_column_of_known_noise_lies_in_its_interval() -> None:
    truth = np.random.default_rng(1).uniform(0, 1.5, 4000)
    found = score_rows([point_row("a", truth, 0.02, 2)], truth, QUICK)
    nmad = found.metrics["a"]["nmad"]
    assert nmad.low < 0.02 < nmad.high
    assert "crps" not in found.metrics["a"]


def test_the_better_of_two_columns_is_told_in_95_of_100_seeds() -> None:
    # NMAD 0.02 against 0.021: the sign is right, and the interval holds the difference.
    how = BootstrapConfig(num_replicates=60)
    truth = np.full(5000, 0.5)
    num_right = num_held = 0
    for seed in range(100):
        rows = [point_row("a", truth, 0.02, 2 * seed), point_row("b", truth, 0.021, 2 * seed + 1)]
        difference = score_rows(rows, truth, how).differences["b"]["nmad"]
        num_right += difference.value > 0
        num_held += difference.low < 0.001 < difference.high
    assert num_right >= 95
    # The ends of 60 replicates' 95 % interval hold 91 %, less or more 3.
    assert num_held >= 85


def test_scores_of_gaussians_are_those_of_fine_bins() -> None:
    random = np.random.default_rng(3)
    mean, sigma = random.uniform(0.8, 1.2, 50), random.uniform(0.02, 0.08, 50)
    truth = mean + 2 * sigma * random.normal(size=50)
    edges = np.linspace(0, 2, 4001)
    cdf = norm.cdf((edges - mean[:, None]) / sigma[:, None])
    cdf[:, 0], cdf[:, -1] = 0, 1
    binned = make_densities(np.diff(cdf, axis=1) / np.diff(edges), edges)
    found = gaussian_scores(mean, sigma, truth)
    np.testing.assert_allclose(found["crps"], crps(binned, truth), atol=1e-4)
    expected = scores(binned, truth)
    np.testing.assert_allclose(found["pit"], expected["pit"], atol=1e-4)
    np.testing.assert_allclose(found["cde_loss"], expected["cde_loss"], atol=0.3)


# Rows and samples


def test_all_rows_have_the_same_objects_and_what_is_left_out_is_counted(
    tables, tmp_path, capsys
) -> None:
    good, bad = tables
    words = ["compare", str(good), str(bad.parent), "--out", str(tmp_path), "--replicates", "40"]
    words += ["--column", "strm:strm_err", "--column", "mag_r", "--sample", "all"]
    words += ["--sample", "mgs=mag_r<17.8 and survey=='DESI'"]
    # Magnitudes instead of redshifts: every object is left out.
    assert main([*words, "--no-report"]) == 2
    assert "sample 'all' has 0 objects that every row knows" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    words[words.index("mag_r")] = "strm"
    assert main([*words, "--no-report"]) == 0
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.count("not the same objects") >= 6
    # A tenth has -999, a twentieth no error.
    assert "60 of 400 objects have no usable value of strm: left out" in said
    assert "40 of 400 objects have no usable value of strm (2): left out" in said
    found = json.loads((tmp_path / "compare.json").read_text())["comparison"]
    assert found["all"]["num_samples"] == NUM - NUM // 10 - NUM // 20
    assert 0 < found["mgs"]["num_samples"] <= NUM // 4
    for sample in found.values():
        assert list(sample["rows"]) == ["good", "bad", "strm", "strm (2)"]
        assert "crps" in sample["differences"]["strm"]
        assert "crps" not in sample["differences"]["strm (2)"]
        a, b = sample["metrics"]["strm"], sample["metrics"]["good"]
        assert a["crps"]["value"] == pytest.approx(b["crps"]["value"], rel=0.05)
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<section") == 3
    assert "not the same objects" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_columns_come_from_the_index_of_the_data_set_that_was_predicted(tmp_path) -> None:
    truth = np.random.default_rng(5).uniform(0.2, 1.0, 40)
    with msdata.Writer(tmp_path / "DATA", split_fractions=(0.0, 0.0, 1.0)) as writer:
        for n in range(40):
            image = np.zeros((1, 4, 4), np.float32)
            writer.write(f"{n:05d}", {"image": image}, redshift=truth[n], beck=truth[n] + 0.01)
    data = msdata.open(tmp_path / "DATA")
    origin = {"data": str(data.path), "fingerprint": data.manifest.fingerprint}
    table = write_table(tmp_path / "run" / "p.parquet", truth, 0.02, 6, **origin)
    options = {"columns": ("beck",), "bootstrap": QUICK, "has_report": False}
    found = mstrain.compare([table], **options)
    np.testing.assert_allclose(found.samples["all"].residuals["beck"], 0.01 / (1 + truth))
    with pytest.raises(UsageError, match="has a column nothing; the data set has sample_id"):
        mstrain.compare([table], **{**options, "columns": ("nothing",)})
    table = write_table(table, truth, 0.02, 6, **{**origin, "data": "gone"})
    with pytest.raises(UsageError, match="is not there any more; give the data set with --data"):
        mstrain.compare([table], **options)
    again = mstrain.compare([table], data=data.path, **options)
    assert again.samples["all"].metrics == found.samples["all"].metrics


def test_what_cannot_be_compared_is_refused(tables, tmp_path, capsys) -> None:
    good, _ = tables
    truth = np.random.default_rng(0).uniform(0.2, 1.2, NUM)
    truth[3:5] += 0.1
    other = write_table(tmp_path / "other" / "p.parquet", truth, 0.02, 1)
    target = write_table(tmp_path / "target" / "p.parquet", truth, 0.02, 1, target="mass")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "compare.json").write_text("{}")
    for words, message in (
        ([str(good), str(other)], "different redshifts for 2 of 400 objects"),
        ([str(target)], "must hold densities of redshifts beside the true ones, got target 'mass'"),
        ([str(tmp_path / "nothing.parquet")], "does not exist; run 'mstrain evaluate' first"),
        ([str(good), "--sample", "z<1"], "--sample must be NAME=EXPRESSION or all"),
        ([str(good), "--sample", "a=mag_r<17", "--sample", "a=mag_r<18"], "'a' twice"),
        ([str(good), "--sample", "a=mag_r<5"], "sample 'a' has 0 objects that every row knows"),
        ([str(good), "--sample", "a=mag_r"], "a sample must be a condition"),
        ([str(good), "--sample", "a=survey<1"], "text is compared with text"),
        ([str(good), "--column", "survey"], "--column survey must hold numbers, got text"),
        ([str(good), "--column", "strm:"], "--column must be NAME or NAME:ERROR"),
        ([str(good), "--out", str(mine)], "this command did not make it"),
    ):
        out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
        assert main(["compare", *words, *out, "--no-report", "--replicates", "20"]) == 2, words
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (mine / "compare.json").read_text() == "{}"


# Expressions


COLUMNS = {
    "r": np.array([17.0, 18.0, np.nan, -999.0]),
    "e": np.array([0.1, 0.5, 0.1, 0.1]),
    "s": np.array(["a", "b", "a", None], object),
}


@pytest.mark.parametrize(
    ("text", "passes", "num_unknown"),
    [
        ("r - e < 17.2", [True, False, False, False], 2),
        ("not r < 17.5", [False, True, False, False], 2),
        ("isfinite(r)", [True, True, False, True], 0),
        ("isfinite(r) and e > 0.2", [False, True, False, False], 0),
        ("16 < r <= 17 or s == 'b'", [True, True, False, False], 2),
        ("s != 'a'", [False, True, False, False], 1),
        ("-r < -17.5 and (e*2 >= 1)", [False, True, False, False], 2),
        ("1 < 2", [True] * 4, 0),
        ("r/0 > 1", [True, True, False, False], 2),
    ],
)
def test_expressions_select_what_they_say(text, passes, num_unknown) -> None:
    found, unknown = parse_expression(text).evaluate(COLUMNS)
    assert found.tolist() == passes
    assert unknown == num_unknown


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os').system('touch x')", "r.__class__", "r[0]", "lambda: 1", "r ** 9"),
        *(
            "isfinite(__import__('os'))",
            "isfinite(r, e)",
            "isfinite(r, x=1)",
            "(r := 1)",
            "r if e else 1",
        ),
        *(
            "[r for r in e]",
            "{r}",
            "f'{r}'",
            "True",
            "None",
            "1j",
            "b'a'",
            "r in e",
            "r is e",
            "~r",
        ),
        *("", "r <", "a=1", "r; e", "r\ne", "'\x00", "r < 1 " + "and r < 1 " * 60, "(" * 200),
        *(
            "eval('1')",
            "r < eval",
            "r @ e",
            "r // e",
            "r % 2",
            "await r",
            "*r",
            "...",
            "~r",
            "r if e else 1",
        ),
    ],
)
def test_nothing_else_passes_and_nothing_is_executed(text, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if text == "r < eval":
        # A name is a column, whatever it is called.
        assert parse_expression(text).names == ("r", "eval")
        return
    with pytest.raises(UsageError, match="expression"):
        parse_expression(text)
    assert not list(tmp_path.iterdir())
