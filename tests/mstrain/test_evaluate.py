"""`mstrain evaluate` and `mstrain predict` on a trained network: one process, ranks, bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import training

import msdata.cli
import mstrain.cli
from msdata.core.files import TEMPORARY_SUFFIX
from mstrain.evaluation.bin_by import _by_edges
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import make_densities
from mstrain.evaluation.metrics.scores import PLACES, SCORES, point_estimates, scores
from mstrain.evaluation.metrics.summary import summarize
from mstrain.evaluation.predictions import Predictions, read_predictions

SPLIT = ("--split", "0.5,0.1,0.4", "--jobs", "1")
QUICK = ("--quiet", "--device", "cpu", "--replicates", "50")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_source(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="session")
def data(source: Path, packed: Callable[..., Path]) -> Path:
    return packed(source, *SPLIT)


@pytest.fixture(scope="session")
def trained(data: Path, ranks: training.Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    run = tmp_path_factory.mktemp("trained") / "run"
    ranks.run(training.words_of(data, run, epochs="1"))
    return run


@pytest.fixture(scope="session")
def evaluated(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation by one process."""
    out = tmp_path_factory.mktemp("out")
    options = ("--split", "test", "--out", str(out), "--no-report", *QUICK)
    assert mstrain.cli.main(["evaluate", str(trained), str(data), *options]) == 0
    return out


@pytest.fixture(scope="module")
def recalibrated(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with calibrations fitted on its test split."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("calibrated") / "run"))
    words = ["calibrate", str(run), str(data), "--split", "test", "--by", "cutouts,z_mean,ebv_csfd"]
    assert mstrain.cli.main([*words, "--quiet", "--device", "cpu"]) == 0
    return run


def predictions_of(folder: Path) -> Predictions:
    return read_predictions(folder / "predictions-test.parquet")


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation-test.json").read_text())
    return found


def test_the_report_and_the_files_stand_in_the_run(
    recalibrated: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(recalibrated, tmp_path / "run")
    assert mstrain.cli.main(["evaluate", str(run), str(data), *QUICK]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"report:      {run / 'report.html'}" in said.out
    assert "eta (t = 0.05)" in said.out
    page = (run / "report.html").read_text()
    nmad = metrics_of(run)["metrics"]["points"]["z_mean"]["nmad"]["value"]
    assert f"{nmad:.4f}" in page
    assert f"{nmad:.4f}" in said.out
    assert "Learning curves" in page
    assert "NMAD and the shares of outliers of the mean may get worse" in page
    assert not list(run.rglob(f"*{TEMPORARY_SUFFIX}"))


def test_the_table_holds_every_sample_in_the_order_of_the_index(
    evaluated: Path, data: Path
) -> None:
    import msdata

    split = msdata.open(data).split("test")
    found = predictions_of(evaluated)
    assert list(found.columns["sample_id"]) == split.table(["sample_id"]).column(0).to_pylist()
    np.testing.assert_array_equal(found.columns["redshift"], split.redshift)
    assert found.origin["fingerprint"] == split.dataset.manifest.fingerprint
    assert found.origin["splits"] == ["test"]
    density = np.concatenate(list(found.density_parts()))
    assert density.std(axis=0).max() > 0
    densities = make_densities(density, found.edges)
    expected = {**point_estimates(densities), **scores(densities, split.redshift)}
    for name, values in expected.items():
        np.testing.assert_allclose(found.columns[name], values, atol=1e-13, err_msg=name)


def test_the_densities_are_those_of_the_network(evaluated: Path, trained: Path, data: Path) -> None:
    import torch

    import msdata
    from msdata.augment import open_augmenter
    from mstrain.training.checkpoint import load_model

    model, config = load_model(trained)
    found = predictions_of(evaluated)
    split = msdata.open(data).split("test")
    density = np.concatenate(list(found.density_parts()))
    for row in (0, len(split) - 1):
        sample = {k: np.array([v]) for k, v in split[row].items()}
        with open_augmenter(split.schema, config.augment, seed=0, batch_size=1) as augmenter:
            images = {k: np.array(v) for k, v in augmenter.run(sample, 0, train=False).items()}
        with torch.inference_mode():
            ebv = torch.tensor(sample["ebv_csfd"], dtype=torch.float32)
            logits = model({k: torch.from_numpy(v) for k, v in images.items()}, ebv)
        expected = torch.softmax(logits, 1).numpy()[0] / np.diff(found.edges)
        np.testing.assert_allclose(density[row], expected, rtol=1e-4)


def test_metrics_are_a_function_of_the_table(evaluated: Path) -> None:
    columns = predictions_of(evaluated).columns
    edges = round_edges(columns["redshift"], 4)
    again = summarize(
        columns, BootstrapConfig(num_replicates=50), binned_by={"redshift": ("redshift", edges)}
    ).as_dict()
    found = metrics_of(evaluated)["metrics"]
    assert found["binnings"].pop()["skipped"].startswith("the index has no column of an r magn")
    assert json.loads(json.dumps(again)) == found


def test_two_ranks_give_the_table_of_one_process(
    evaluated: Path, trained: Path, data: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    num_samples = len(predictions_of(evaluated))
    # A step short of one sample for each rank: the second rank has none at the end.
    size = (num_samples - 1) // 2
    words = ["evaluate", str(trained), str(data), "--json", "--out", str(tmp_path)]
    words += ["--no-report", *QUICK, "--batch-size", str(size)]
    started = ranks.start(words, 2)
    codes, said = ranks.end(started)
    assert (codes, said) == ([0, 0], "")
    assert json.loads(started[0].printed) == metrics_of(tmp_path)
    assert started[1].printed == ""
    one, two = predictions_of(evaluated), predictions_of(tmp_path)
    assert list(one.columns["sample_id"]) == list(two.columns["sample_id"])
    for name in (*SCORES, "hpd_level", "z_mean", "z_median", "redshift"):
        np.testing.assert_allclose(
            np.asarray(two.columns[name]), one.columns[name], atol=1e-4, err_msg=name
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "evaluation-test.json",
        "predictions-test.parquet",
    ]


def test_widths_and_errors_are_shown_by_any_columns(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(trained), str(data), "--out", str(tmp_path), *QUICK]
    asked = "redshift,ebv_csfd,missing_bands,z_std"
    assert mstrain.cli.main([*words, "--bin-by", asked, "--redshift-edges", "0,0.5,2"]) == 0
    said = capsys.readouterr().out
    assert "Widths and errors by ebv_csfd" in said
    found = metrics_of(tmp_path)["uncertainty"]
    assert [v["name"] for v in found["variables"]] == asked.split(",")
    by = {v["name"]: v for v in found["variables"]}
    assert [g["label"] for g in by["redshift"]["groups"]] == ["0 to 0.5", "0.5 to 2"]
    assert [g["label"] for g in by["missing_bands"]["groups"]] == ["(none)", "galex.FUV"]
    table = predictions_of(tmp_path)
    num_objects = len(table)
    assert all(sum(g["num_samples"] for g in v["groups"]) == num_objects for v in by.values())
    assert sum(found["outliers"]["kinds"].values()) == num_objects
    assert set(np.unique(table.columns["ebv_csfd"]).round(6)) <= {
        round(0.01 + n / 50, 6) for n in range(7)
    }
    assert (table.columns["hpd_level"] <= 1).all()
    page = (tmp_path / "report.html").read_text()
    assert "Where the network is unsure" in page
    assert page.count("https://aladin.cds.unistra.fr/AladinLite/?target=") == min(20, num_objects)
    for names, message in (
        ("ebv,redshift", "--bin-by must name columns of"),
        ("redshift,redshift", "--bin-by must name each column once, got 'redshift' twice"),
        ("magnitude", "cannot bin by magnitude: the index has no column of an r magnitude"),
    ):
        assert mstrain.cli.main([*words, "--bin-by", names]) == 2
        assert message in capsys.readouterr().err


def test_objects_are_told_apart_by_pixels_without_coverage(
    trained: Path, source: Path, tmp_path: Path
) -> None:
    # Every fourth object has 80 pixels of NaN in one band of Pan-STARRS, which inpainting fills.
    data, out = tmp_path / "data", tmp_path / "out"
    words = ["pack", str(source), str(data), "--catalog", str(source / "catalog.csv")]
    assert msdata.cli.main([*words, "--inpaint", "none", "--split", "0,0,1", "--jobs", "1"]) == 0
    words = ["evaluate", str(trained), str(data), "--out", str(out), "--no-report", *QUICK]
    assert mstrain.cli.main([*words, "--bin-by", "nan_panstarrs,filled_panstarrs"]) == 0
    groups = [v["groups"] for v in metrics_of(out)["uncertainty"]["variables"]]
    counts = [{g["label"]: g["num_samples"] for g in found} for found in groups]
    assert counts == [{"0": 45, "80": 15}, {"0": 60}]


def test_a_lowest_value_of_many_objects_has_a_bin_of_its_own() -> None:
    def counts_of(values: np.ndarray) -> dict[str, int]:
        found = _by_edges("nan", "nan", values, None, np.ones(len(values), bool))
        counts = np.bincount(found.group, minlength=len(found.labels))
        return dict(zip(found.labels, counts.tolist(), strict=True))

    parts = np.arange(1.0, 101)
    # One in ten has parts without coverage; quantiles of all would put all into one bin.
    assert counts_of(np.append(np.zeros(900), parts)) == {
        "0": 900,
        "1 to 50.5": 50,
        "50.5 to 100": 50,
    }
    assert counts_of(np.append(np.zeros(15), parts[:14])) == {"0": 15, "1 to 14": 14}
    # A lowest value of few objects is nothing special.
    assert counts_of(np.append(np.zeros(5), parts[:95])) == {"0 to 45.5": 50, "45.5 to 95": 50}


def test_data_without_redshifts_are_predicted(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (source / "catalog.csv").read_text().splitlines()
    rows = [",".join(line.split(",")[:1] + line.split(",")[2:]) for line in text[:13]]
    (tmp_path / "catalog.csv").write_text("\n".join(rows) + "\n")
    new = tmp_path / "new"
    options = ("--catalog", str(tmp_path / "catalog.csv"), "--unlabelled", "--jobs", "1")
    meant = ("--max-rejected", "60")
    made = packing.pack(source, new, *options, *meant, "--split", "0.5,0,0.5")
    assert made.returncode == 0, made.stderr
    out = tmp_path / "new.parquet"
    words = ["predict", str(trained), str(new), str(out), "--columns", "ra", *QUICK[:3], "--json"]
    assert mstrain.cli.main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"num_samples": 12, "predictions": str(out)}
    found = read_predictions(out)
    assert set(found.columns["split"]) == {"train", "test"}
    assert sorted(found.columns["sample_id"]) == [f"{i:07d}" for i in range(12)]
    assert "redshift" not in found.columns
    assert not {*SCORES, *PLACES} & set(found.columns)
    ra = dict(zip(found.columns["sample_id"], found.columns["ra"], strict=True))
    assert ra["0000003"] == 3.5
    assert mstrain.cli.main(["evaluate", str(trained), str(new), *QUICK]) == 1
    assert "has a redshift, so there is nothing to compare with" in capsys.readouterr().err


IDS = [9_007_199_254_740_993, None, 2**63 - 1]
EBV_MARKS = ["-999", "", "-1", "nan", "99"]
# As data sets of earlier versions have them.
ALL_EBV = ("--ebv-range", "-1000", "1000")


def pack_with(source: Path, folder: Path, column: str, values: list[str], *options: str) -> Path:
    """The source's first 24 objects, a column of the catalog added or replaced."""
    lines = [line.split(",") for line in (source / "catalog.csv").read_text().splitlines()[:25]]
    head = lines[0] if column in lines[0] else [*lines[0], column]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    for number, row in enumerate(rows):
        if number < len(values) or column not in row:
            row[column] = values[number % len(values)]
    folder.mkdir()
    text = "\n".join([",".join(head), *(",".join(row[n] for n in head) for row in rows)])
    (folder / "catalog.csv").write_text(text + "\n")
    words = ("--catalog", str(folder / "catalog.csv"), *SPLIT, "--max-rejected", "60")
    made = packing.pack(source, folder / "data", *words, *options)
    assert made.returncode == 0, made.stderr
    return folder / "data"


def test_integers_of_the_index_stay_integers_in_the_table(
    trained: Path, source: Path, tmp_path: Path
) -> None:
    values = ["" if v is None else str(v) for v in IDS]
    data = pack_with(source, tmp_path / "ids", "specobj", values)
    out = tmp_path / "new" / "folder" / "p.parquet"
    words = ["predict", str(trained), str(data), str(out), "--columns", "specobj", *QUICK[:3]]
    assert mstrain.cli.main(words) == 0
    found = read_predictions(out).columns
    wanted = {f"{n:07d}": IDS[n % 3] for n in range(24)}
    assert dict(zip(found["sample_id"], found["specobj"].tolist(), strict=True)) == wanted


def test_a_column_that_the_table_has_of_its_own_is_refused(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pack_with(source, tmp_path / "pit", "pit", ["7"])
    out = tmp_path / "p.parquet"
    words = ["predict", str(trained), str(data), str(out), "--columns", "pit", *QUICK[:3]]
    assert mstrain.cli.main(words) == 2
    assert "cannot take over the column 'pit' of the index" in capsys.readouterr().err
    assert not out.exists()


def test_marks_of_unknown_reddening_do_not_reach_the_network(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pack_with(source, tmp_path / "odd", "ebv_csfd", EBV_MARKS, *ALL_EBV)
    commands = {
        "predict": [str(trained), str(data), str(tmp_path / "p.parquet")],
        "evaluate": [str(trained), str(data), "--split", "train", "--out", str(tmp_path / "e")],
    }
    capsys.readouterr()
    for name, words in commands.items():
        assert mstrain.cli.main([name, *words, "--quiet"]) == 1
        said = capsys.readouterr().err
        assert "must be an E(B-V) for every sample" in said
        assert "outside [-0.05, 10] mag, such as " in said
    assert mstrain.cli.main(training.words_of(data, tmp_path / "run")) == 1
    said = capsys.readouterr().err
    assert "must be an E(B-V) for every sample" in said
    assert not list(tmp_path.glob("*/checkpoints/*.pt"))
    assert not (tmp_path / "p.parquet").exists()
    assert not (tmp_path / "e").exists()


def test_every_fault_of_reddening_is_counted(source: Path, tmp_path: Path) -> None:
    import msdata
    from msdata.errors import DataError
    from mstrain.config import ModelConfig
    from mstrain.data.columns import check_reddening

    values = [*EBV_MARKS, "-0.01", "9.9"]
    data = pack_with(source, tmp_path / "odd", "ebv_csfd", values, *ALL_EBV)
    splits = [s for s in map(msdata.open(data).split, msdata.open(data).splits) if len(s)]
    num_missing = num_odd = 0
    for split in splits:
        ebv = split.numbers("ebv_csfd")
        missing = int(np.isnan(ebv).sum())
        odd = int(np.isin(ebv, [-999, -1, 99]).sum())
        num_missing, num_odd = num_missing + missing, num_odd + odd
        says = [f"{missing} are missing"] * (missing > 0) + [f"{odd} are outside"] * (odd > 0)
        if says:
            with pytest.raises(DataError, match=" and ".join(says[:1])) as caught:
                check_reddening(split, ModelConfig())
            assert all(words in str(caught.value) for words in says)
        else:
            check_reddening(split, ModelConfig())
        check_reddening(split, ModelConfig(ebv_column=None))
    assert (num_missing, num_odd) == (2, 3)


BAD = {
    "no run": (["nowhere", "{data}"], "nowhere is not a run: config.json not found"),
    "run is data": (["{data}", "{data}"], "is not a run: config.json not found"),
    "no data": (["{run}", "nowhere"], "nowhere does not exist; check the path"),
    "no split": (["{run}", "{data}", "--split", "tset"], "has no split 'tset'; it has train"),
    "no out": (
        ["{run}", "{data}", "--out", "{run}/config.json/out"],
        "config.json/out: a part of the path is a file; give another --out",
    ),
    "prior": (["{run}", "{data}", "--prior", "x"], "must be natural, as-trained or a CSV file"),
    "edges": (
        ["{run}", "{data}", "--redshift-edges", "1,x"],
        "--redshift-edges must be numbers such as 0,0.5,1, got 1,x",
    ),
    "order": (
        ["{run}", "{data}", "--redshift-edges", "1,0"],
        "two or more ascending numbers, such as 0,0.5,1, got 1.0,0.0",
    ),
    "column": (["{run}", "{data}", "--magnitude-column", "mag"], "has no column 'mag'; it has"),
    "text": (["{run}", "{data}", "--magnitude-column", "split"], "holds no magnitudes (string)"),
    "few": (
        ["{run}", "{data}", "--replicates", "3"],
        "3 bootstrap replicates are too few; give at least 20",
    ),
    "batch": (["{run}", "{data}", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_before_anything_is_computed(
    name: str, trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, says = BAD[name]
    words = [w.format(run=trained, data=data) for w in words]
    assert mstrain.cli.main(["evaluate", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.count("\n") == 1


def test_a_run_without_checkpoint_is_refused(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    assert mstrain.cli.main(["evaluate", str(run), str(data)]) == 2
    assert f"{run} has no best checkpoint" in capsys.readouterr().err


def test_data_of_another_schema_are_refused(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    made = packing.pack(source, other, "--pixel-scale", "unwise=1.5", *SPLIT)
    assert made.returncode == 0, made.stderr
    assert mstrain.cli.main(["evaluate", str(trained), str(other)]) == 2
    said = capsys.readouterr().err
    assert "pixel_scale_arcsec of 'unwise' was 2.75 in training, in the data it is 1.5" in said
    table = tmp_path / "p.csv"
    assert mstrain.cli.main(["predict", str(trained), str(other), str(table)]) == 2
    assert "the table's name must end in .parquet or .hdf5, got " in capsys.readouterr().err


def test_an_interrupted_evaluation_leaves_what_was_there(
    evaluated: Path,
    trained: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = evaluated / "predictions-test.parquet"
    shutil.copy(before, tmp_path)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mstrain.evaluation.inference.columns_of_share", interrupted)
    words = ["evaluate", str(trained), str(data), "--out", str(tmp_path), *QUICK]
    assert mstrain.cli.main(words) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [before.name]
    assert (tmp_path / before.name).read_bytes() == before.read_bytes()


def test_results_and_runs_replace_no_file_that_is_not_theirs(trained, data, tmp_path, capsys):
    mine = b"the user's own\n"
    evaluate = ["evaluate", str(trained), str(data), "--out", str(tmp_path), "--no-report", *QUICK]
    table = tmp_path / "predictions-test.parquet"
    predict = ["predict", str(trained), str(data), str(table), "--device", "cpu", "--quiet"]
    run = tmp_path / "run"
    run.mkdir()
    for path, words in (
        (table, evaluate),
        (tmp_path / "evaluation-test.json", evaluate),
        (tmp_path / "report.html", [word for word in evaluate if word != "--no-report"]),
        (table, predict),
        (run / "config.json", training.words_of(data, run)),
        (run / "metrics.jsonl", training.words_of(data, run)),
    ):
        path.write_bytes(mine)
        assert mstrain.cli.main(words) == 2
        assert f"{path} exists, and this command did not make it" in capsys.readouterr().err
        assert path.read_bytes() == mine
        path.unlink()
    assert mstrain.cli.main(predict) == 0
    assert mstrain.cli.main(predict) == 0
    # A longer table has its mark behind the densities.
    assert mstrain.cli.main(evaluate) == 0
    assert mstrain.cli.main(evaluate) == 0


def test_the_baseline_adds_a_section_and_says_what_is_missing(
    evaluated: Path,
    trained: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import msdata

    out = shutil.copytree(evaluated, tmp_path / "out")
    words = ["baseline", str(trained), str(data), "--out", str(out), "--quiet", "--json"]
    assert mstrain.cli.main([*words, "--neighbors", "5", "--replicates", "20"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "baseline-test.json").read_text())
    found, opened = printed["baseline"], msdata.open(data)
    for name in ("train", "test"):
        assert found[f"num_{name}"] == np.isfinite(opened.split(name).redshift).sum()
    nmad = metrics_of(out)["metrics"]["points"]["z_mean"]["nmad"]["value"]
    assert found["metrics"]["network"]["nmad"]["value"] == pytest.approx(nmad)
    assert 'id="baseline"' in (out / "report.html").read_text()
    for options, message in (
        (["--split", "train"], "--split must not be train"),
        (["--split", "other"], "must have samples in split 'other'; it has train, val, test"),
        (["--neighbors", "0"], "--neighbors must be at least 1, got 0"),
        (["--objects", "10"], "--objects must be more than --neighbors (10), got 10"),
        (["--out", str(tmp_path / "no")], "run 'mstrain evaluate RUN DATA --split test' first"),
    ):
        assert mstrain.cli.main([*words, *options]) == 2
        assert message in capsys.readouterr().err
    assert mstrain.cli.main([*words, "--neighbors", "60"]) == 1
    assert "must have more than 60 objects of known redshift, got" in capsys.readouterr().err


# Recalibration


def test_calibrations_stand_side_by_side_and_none_is_applied_unasked(
    recalibrated: Path, evaluated: Path, data: Path, tmp_path: Path, capsys
) -> None:
    out, words = tmp_path / "out", ["evaluate", str(recalibrated), str(data)]
    assert mstrain.cli.main([*words, "--out", str(out), "--no-report", *QUICK]) == 0
    assert "Recalibration side by side" in capsys.readouterr().out
    plain, found = predictions_of(evaluated), metrics_of(out)
    np.testing.assert_array_equal(predictions_of(out).columns["crps"], plain.columns["crps"])
    assert found["origin"]["calibration"] == "none"
    assert sorted(found["other_calibrations"]) == ["global", "local"]
    assert len(found["calibration_notes"]) == 2
    assert "on that split its numbers flatter it" in found["calibration_notes"][0]
    for name in ("global", "local"):
        chosen = tmp_path / name
        options = ["--out", str(chosen), "--no-report", "--calibration", name, *QUICK]
        assert mstrain.cli.main([*words, *options]) == 0
        applied = metrics_of(chosen)
        assert applied["origin"]["calibration"] == name
        assert sorted(applied["other_calibrations"]) == sorted({"none", "global", "local"} - {name})
        # What stood beside the others is what stands first now, and the table's own scores.
        assert applied["metrics"]["density"] == found["other_calibrations"][name]["density"]
        assert applied["other_calibrations"]["none"]["density"] == found["metrics"]["density"]
        table = predictions_of(chosen)
        made = make_densities(np.concatenate(list(table.density_parts())), table.edges)
        for column, values in scores(made, table.columns["redshift"]).items():
            np.testing.assert_allclose(table.columns[column], values, atol=1e-13)
        other = tmp_path / f"{name}.parquet"
        words_of = ["predict", str(recalibrated), str(data), str(other), "--calibration", name]
        assert mstrain.cli.main([*words_of, "--split", "test", "--quiet", "--device", "cpu"]) == 0
        np.testing.assert_array_equal(
            read_predictions(other).columns["z_mean"], table.columns["z_mean"]
        )


def test_calibrations_are_equal_on_one_two_and_four_ranks(
    recalibrated: Path, trained: Path, data: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    names = ("calibration-global.json", "calibration-local.json")
    one = [json.loads((recalibrated / name).read_text()) for name in names]
    words = ["--split", "test", "--by", "cutouts,z_mean,ebv_csfd", "--quiet", "--device", "cpu"]
    for count in (2, 4):
        run = shutil.copytree(trained, tmp_path / str(count))
        ranks.run(["calibrate", str(run), str(data), *words], count)
        found = [json.loads((run / name).read_text()) for name in names]
        assert found[0]["fitted_on"] == one[0]["fitted_on"]
        for field in ("pit", "share"):
            np.testing.assert_allclose(found[0]["map"][field], one[0]["map"][field], atol=1e-6)
        assert len(found[1]["map"]["trees"]) == len(one[1]["map"]["trees"])
        for ours, theirs in zip(found[1]["map"]["trees"], one[1]["map"]["trees"], strict=True):
            np.testing.assert_allclose(ours["threshold"], theirs["threshold"], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(ours["value"], theirs["value"], atol=1e-9)
        assert not list(run.glob(".calibration-*"))


def test_a_calibration_of_something_else_is_refused_or_left_out(
    recalibrated: Path, data: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    words = ["evaluate", str(recalibrated), str(data), "--out", str(out), "--no-report", *QUICK]
    assert mstrain.cli.main([*words, "--checkpoint", "last", "--calibration", "global"]) == 2
    said = capsys.readouterr().err
    assert "was fitted on the best checkpoint" in said
    assert "of the last checkpoint" in said
    assert not out.exists()
    assert mstrain.cli.main([*words, "--checkpoint", "last"]) == 0
    assert "The global calibration is left out" in capsys.readouterr().out
    prior = tmp_path / "prior.csv"
    prior.write_text("z_low,z_high,count\n0,0.8,3\n0.8,2,1\n")
    assert mstrain.cli.main([*words, "--prior", str(prior), "--calibration", "local"]) == 2
    assert f"under prior {prior}" in capsys.readouterr().err
    calibrate = ["calibrate", str(recalibrated), str(data), "--quiet"]
    for wrong, message in (
        (["--split", "train"], "--split must not be train"),
        (["--by", "nothing"], "--by must name columns of"),
        (["--by", "missing_bands", "--split", "test"], "missing_bands"),
        (["--by", "cutouts", "--split", "val"], "at least 20 objects"),
    ):
        assert mstrain.cli.main([*calibrate, *wrong]) in (1, 2)
        assert message in capsys.readouterr().err
    assert (recalibrated / "calibration-local.json").exists()
