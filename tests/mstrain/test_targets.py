"""Networks of any label: known densities and posteriors, classes and numbers from end to end."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training

import msdata
import msdata.cli
import mstrain
import mstrain.cli
from msdata.errors import UsageError
from mstrain.config import LossConfig, TrainConfig
from mstrain.evaluation.metrics import densities as piecewise
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.classes import class_estimates, class_scores, summarize_classes
from mstrain.evaluation.metrics.densities import make_densities
from mstrain.evaluation.metrics.scores import scores
from mstrain.evaluation.metrics.uncertainty import calibration_accuracy
from mstrain.evaluation.predictions import read_predictions
from mstrain.models.heads import bin_edges, density
from mstrain.models.labels import resolve
from mstrain.models.loss import BinLoss
from mstrain.models.prior import measure_prior
from mstrain.models.redshift_net import BinHead
from mstrain.models.target import Target
from mstrain.network_config import ModelConfig

CLASSES = ("disk", "merger", "round")
QUICK = BootstrapConfig(num_replicates=50)
NUM_TOYS = 1500


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answers(model: ModelConfig, feature: np.ndarray, label: np.ndarray) -> np.ndarray:
    """What the network's head says of features after it has learned their labels."""
    x, y = torch.from_numpy(feature.astype(np.float32))[:, None], torch.from_numpy(label)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        head = BinHead(1, model)
    loss, optimizer = BinLoss(LossConfig(), model), torch.optim.Adam(head.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        optimizer.zero_grad()
        loss_sum, weight_sum = loss(head(x, None), y)
        (loss_sum / weight_sum).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return density(head(x, None), model).numpy()


def test_a_number_gets_the_density_that_it_was_drawn_from() -> None:
    rng = np.random.default_rng(0)
    feature, width = rng.uniform(-1, 1, NUM_TOYS), 0.3
    label = 2 * feature - 1 + width * rng.normal(size=NUM_TOYS)
    model = ModelConfig(
        target="mass",
        target_kind="scalar",
        target_min=-4.4,
        target_max=2.4,
        num_bins=34,
        ebv_column=None,
        hidden=32,
    )
    found = make_densities(answers(model, feature, label), bin_edges(model).numpy())
    # A bin of 0.2 adds its own width.
    expected = (width**2 + 0.2**2 / 12) ** 0.5
    assert np.median(piecewise.standard_deviation(found)) == pytest.approx(expected, rel=0.1)
    assert np.abs(piecewise.mean(found) - (2 * feature - 1)).mean() < 0.05
    assert calibration_accuracy(scores(found, label)["pit"]) > 0.97


def test_classes_get_their_posterior_and_permuted_labels_get_the_prior() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice(3, NUM_TOYS, p=(0.5, 0.3, 0.2)).astype(np.float64)
    feature = label + 0.6 * rng.normal(size=NUM_TOYS)
    model = ModelConfig(
        target="kind",
        target_kind="classes",
        classes=CLASSES,
        num_bins=3,
        ebv_column=None,
        hidden=16,
    )
    likelihood = np.exp(-0.5 * ((feature[:, None] - np.arange(3)) / 0.6) ** 2)
    posterior = likelihood * (0.5, 0.3, 0.2)
    posterior /= posterior.sum(axis=1, keepdims=True)
    found = answers(model, feature, label)
    assert np.abs(found - posterior).mean() < 0.03
    best, ours = summary_of(posterior, label), summary_of(found, label)
    assert ours.overall["accuracy"].value == pytest.approx(
        best.overall["accuracy"].value, abs=0.015
    )
    assert ours.overall["ece"].value < 0.03
    # Exact probabilities are calibrated within what so many samples can tell.
    assert best.overall["ece"].low == 0
    blind = summary_of(answers(model, feature, rng.permutation(label)), label)
    assert blind.overall["accuracy"].value == pytest.approx(blind.majority, abs=0.06)
    counts = measure_prior(np.append(label, np.nan), LossConfig(), model).counts
    assert counts.tolist() == np.bincount(label.astype(int)).tolist()


def summary_of(probability: np.ndarray, truth: np.ndarray) -> Any:
    columns = {"truth": truth, **class_estimates(probability), **class_scores(probability, truth)}
    return summarize_classes(columns, CLASSES, QUICK)


def test_metrics_of_classes_are_those_counted_by_hand() -> None:
    probability = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    found = summary_of(probability, np.array([0.0, 1.0, 1.0, np.nan]))
    assert (found.num_samples, found.num_unlabelled, found.majority) == (3, 1, 2 / 3)
    assert found.confusion == ((1, 0, 0), (1, 1, 0), (0, 0, 0))
    values = {name: e.value for name, e in found.overall.items()}
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert values["log_loss"] == pytest.approx(-np.log([0.7, 0.5, 0.3]).mean())
    assert values["brier"] == pytest.approx((0.14 + 0.38 + 0.86) / 3)
    # One sample in each bin: |1 - 0.7|, |1 - 0.5|, |0 - 0.6|.
    assert values["ece"] == pytest.approx((0.3 + 0.5 + 0.6) / 3)
    disk, merger, round_ = found.classes
    assert (disk.recall.value, disk.precision.value) == (1, 0.5)
    assert merger.f1 == pytest.approx(2 / 3)
    assert (round_.recall, round_.precision, round_.f1) == (None, None, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images whose level tells all labels; one sample is of a class of its own, in "test"."""
    folder = tmp_path_factory.mktemp("targets") / "DATA"
    rng = np.random.default_rng(1)
    with msdata.Writer(folder, jobs=1) as writer:
        for number in range(48):
            level, split = number % 3, ("train", "train", "val", "test")[number // 3 % 4]
            name = CLASSES[level] if number % 11 else None
            writer.write(
                f"g{number:03d}",
                {"image": (level + 0.1 * rng.normal(size=(1, 8, 8))).astype(np.float32)},
                split=split,
                morphology="odd" if number == 47 else name,
                ans=level,
                mass=None if number == 1 else -2.0 + level,
                ebv=0.01,
            )
    return folder


KEPT = ("output_size", "scaling", "num_bins", "label_width")
SMALL = {n: v for n, v in training.SETTINGS.items() if n not in KEPT} | {"epochs": "1"}


def words_of(data: Path, run: Path, **settings: str) -> list[str]:
    given = {**SMALL, **{n.replace("__", "."): v for n, v in settings.items()}}
    return ["train", "auto", str(data), "--out", str(run), *(f"{n}={v}" for n, v in given.items())]


@pytest.fixture(scope="module")
def classes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned classes."""
    run = tmp_path_factory.mktemp("classes") / "RUN"
    assert mstrain.cli.main(words_of(data, run, model__target="morphology")) == 0
    return run


@pytest.fixture(scope="module")
def masses(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a number."""
    run = tmp_path_factory.mktemp("masses") / "RUN"
    assert mstrain.cli.main(words_of(data, run, model__target="mass")) == 0
    return run


def test_classes_are_trained_and_their_report_says_what_was_left_out(
    data: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((classes / "config.json").read_text())["config"]
    assert config["model"]["classes"] == list(CLASSES)
    assert (config["model"]["num_bins"], config["loss"]["weight_bins"]) == (3, 3)
    assert config["loss"]["label_width"] == 0
    words = [
        "evaluate",
        str(classes),
        str(data),
        "--replicates",
        "20",
        "--bin-by",
        "ans,morphology",
    ]
    assert mstrain.cli.main(words) == 0
    said = capsys.readouterr().out
    assert "Confusion: samples by class (rows)" in said
    assert "By ans, with 95% intervals" in said
    assert "samples without a class that the network knows count for nothing" in said
    found = json.loads((classes / "evaluation-test.json").read_text())["metrics"]
    truth = msdata.open(data).split("test").table(["morphology"]).column(0).to_pylist()
    known = [name for name in truth if name in CLASSES]
    assert found["num_samples"] == len(known) == np.sum(found["confusion"])
    assert [sum(row) for row in found["confusion"]] == [known.count(name) for name in CLASSES]
    assert found["num_unlabelled"] == len(truth) - len(known) > 0
    page = (classes / "report.html").read_text()
    assert "1 samples of split &#x27;test&#x27; are of classes that the training did not" in page
    assert "(odd: 1): they count for nothing" in page
    assert "Accuracy by column" in page and "By morphology, with" in page
    by_ans, by_class = found["binned"]
    recall = {c["name"]: (c["num_samples"], c["recall"]) for c in found["classes"]}
    for group in by_class["bins"]:
        assert (group["num_samples"], group["accuracy"]) == recall[group["label"]]
    assert by_class["num_without"] == by_ans["num_without"] == 0
    table = read_predictions(classes / "predictions-test.parquet").columns
    is_right = table["morphology"] == table["morphology_predicted"]
    for group in by_ans["bins"]:
        chosen = np.isin(table["morphology"], CLASSES) & (table["ans"] == float(group["label"]))
        assert group["num_samples"] == chosen.sum() > 0
        assert group["accuracy"]["value"] == pytest.approx(is_right[chosen].mean())
        assert group["log_loss"] == pytest.approx(table["log_loss"][chosen].mean())
        assert group["confidence"] == pytest.approx(table["morphology_probability"][chosen].mean())
    assert sum(group["num_samples"] for group in by_ans["bins"]) == len(known)
    assert "Reliability" in page and "redshift" not in page.replace("target=redshift", "")


def test_the_table_of_classes_has_names_probabilities_and_scores(
    data: Path, classes: Path, tmp_path: Path
) -> None:
    table = mstrain.predict(classes, data, tmp_path / "p.parquet", device="cpu", is_quiet=True)
    assert list(table.columns) == [
        *("sample_id", "split", "morphology", "morphology_predicted", "morphology_probability"),
        *("log_loss", "brier"),
    ]
    probability = table.densities_of(range(len(table)))
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
    best = [table.origin["classes"][number] for number in probability.argmax(axis=1)]
    assert table.columns["morphology_predicted"].tolist() == best
    known = [n for n, name in enumerate(table.columns["morphology"]) if name in CLASSES]
    own = [probability[n, CLASSES.index(table.columns["morphology"][n])] for n in known]
    np.testing.assert_allclose(table.columns["log_loss"][known], -np.log(own), rtol=1e-5)
    assert np.isnan(np.delete(table.columns["log_loss"], known)).all()
    assert read_predictions(tmp_path / "p.parquet").density == "probabilities"


def test_densities_of_a_number_are_recalibrated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with msdata.Writer(tmp_path / "DATA") as writer:
        for number in range(120):
            split, size = ("train", "test")[number >= 40], rng.normal()
            image = rng.normal(size, 1, size=(1, 16, 16)).astype(np.float32)
            labels = {"size": size, "depth": rng.uniform()}
            writer.write(f"{number:03d}", {"image": image}, split=split, **labels)
    data, options = msdata.open(tmp_path / "DATA"), {"device": "cpu", "is_quiet": True}
    config = replace(mstrain.auto(data, target="size"), epochs=1)
    run = mstrain.train(config, data, tmp_path / "RUN", is_quiet=True).run
    # The same split, on which a map makes PITs uniform up to its corners.
    made = mstrain.calibrate(run, data, split="test", by=("size_std", "depth"), **options)
    assert made.features == ("size_std", "depth")
    assert made.pit_ks["global"] < 0.5 * made.pit_ks["none"]
    found = mstrain.evaluate(
        run, data, calibration="local", has_report=False, bootstrap=QUICK, **options
    )
    assert found.summary.pit_ks == pytest.approx(made.pit_ks["local"], abs=0.01)
    for name in ("none", "global"):
        pit_ks = found.other_calibrations[name].pit_ks
        assert pit_ks == pytest.approx(made.pit_ks[name], abs=0.01)
    table = read_predictions(found.predictions)
    density = table.densities_of(range(len(table)))
    np.testing.assert_allclose((density * np.diff(table.edges)).sum(axis=1), 1, rtol=1e-4)


def test_a_number_is_trained_on_its_own_range_and_called_by_its_name(
    data: Path, masses: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((masses / "config.json").read_text())["config"]
    assert (config["model"]["target_min"], config["model"]["target_max"]) == (-2, 0)
    assert config["loss"]["label_width"] == pytest.approx(2 / 80)
    words = ["evaluate", str(masses), str(data), "--replicates", "20", "--bin-by", "mass_std,ans"]
    assert mstrain.cli.main(words) == 0
    assert "In bins of mass\n" in capsys.readouterr().out
    table = read_predictions(masses / "predictions-test.parquet")
    assert {"mass", "mass_mean", "mass_std", "mass_q84", "crps", "ans"} <= set(table.columns)
    assert not {"redshift", "z_mean"} & set(table.columns)
    found = json.loads((masses / "evaluation-test.json").read_text())
    assert list(found["metrics"]["points"]) == ["mass_mean", "mass_median", "mass_mode"]
    d = table.columns["mass_mean"] - table.columns["mass"]
    mean = found["metrics"]["points"]["mass_mean"]
    assert list(mean) == ["bias", "nmad", "rmse"]
    assert mean["bias"]["value"] == pytest.approx(d.mean())
    assert mean["rmse"]["value"] == pytest.approx(np.sqrt((d**2).mean()))
    assert found["uncertainty"]["outliers"]["threshold"] is None
    page = (masses / "report.html").read_text()
    assert "d = mass_mean - mass" not in page and "true mass" in page
    assert "spectroscopic" not in page and "(1 + z)" not in page


def test_what_a_network_perceives_of_a_number_and_not_of_classes(
    data: Path, masses: Path, classes: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"device": "cpu", "is_quiet": True, "num_permutations": 2}
    found = mstrain.perceive(masses, data, tmp_path, bootstrap=QUICK, **options)
    (run,) = found.result["perception"]["runs"]
    assert list(run["scores"]) == ["crps", "log_loss", "nmad"]
    with pytest.raises(UsageError, match="it tells classes of morphology, and scores are"):
        mstrain.perceive(classes, data, tmp_path, has_report=False, **options)


def test_ranks_learn_and_tell_the_same_classes(
    data: Path, classes: Path, tmp_path: Path, ranks: training.Ranks
) -> None:
    options = {"model__target": "morphology", "weighting": "inverse_count"}
    ours = [tmp_path / "one", tmp_path / "two"]
    assert mstrain.cli.main(words_of(data, ours[0], **options)) == 0
    ranks.run(words_of(data, ours[1], **options), 2)
    np.testing.assert_allclose(training.losses(ours[1]), training.losses(ours[0]), rtol=1e-3)
    options_of = ["--no-report", "--replicates", "20", "--quiet", "--split", "val", "--out"]
    words = ["evaluate", str(ours[0]), str(data), *options_of]
    assert mstrain.cli.main([*words, str(tmp_path / "1")]) == 0
    ranks.run([*words, str(tmp_path / "4")], 4)
    tables = [read_predictions(tmp_path / str(n) / "predictions-val.parquet") for n in (1, 4)]
    for name in ("sample_id", "morphology_predicted"):
        assert tables[0].columns[name].tolist() == tables[1].columns[name].tolist()
    np.testing.assert_allclose(tables[0].columns["log_loss"], tables[1].columns["log_loss"], 1e-5)


REFUSED = {
    "model.target must be a label of": {"target": "spiral"},
    "it has redshift, morphology, ans, mass": {"target": "sample_id"},
    "classes must be texts or integers, got fractions": {"target": "part", "kind": "classes"},
    "classes must be 2 to 1000, got 1": {"target": "same", "kind": "classes"},
    "model.classes must have samples in split 'train', got spiral without": {
        "target": "morphology",
        "classes": ("disk", "spiral"),
    },
    "marks of unknown values, or bins too wide; give model.target_min": {"target": "marked"},
    "all values are 1": {"target": "same"},
    "must be a column of numbers or text": {"target": "day"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_label_that_cannot_be_learned_is_refused(message: str, labels: msdata.Dataset) -> None:
    given = dict(REFUSED[message])
    kind = given.pop("kind", None)
    model = ModelConfig(ebv_column=None, target_kind=kind, **given)
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve(TrainConfig(model=model), labels)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> msdata.Dataset:
    """A data set of many kinds of label."""
    import pyarrow as pa
    import raw_dataset

    from msdata.schema import Schema, Survey

    schema = Schema(name="inferred", arrays=(Survey(name="image", shape=(1, 4, 4)),))
    count = 40
    besides = {
        "morphology": pa.array([CLASSES[n % 3] for n in range(count)]),
        "ans": pa.array([n % 10 for n in range(count)], pa.uint8()),
        "mass": pa.array([9 + n / 20 for n in range(count)], pa.float32()),
        "part": pa.array([n / 4 for n in range(count)]),
        "same": pa.array([1.0] * count),
        "marked": pa.array([-999.0 if n % 8 == 0 else 9 + n / 20 for n in range(count)]),
        "flag": pa.array([n % 2 == 0 for n in range(count)]),
        "holes": pa.array([None if n % 5 == 0 else float(n % 3) for n in range(count)]),
        "many": pa.array(list(range(count * 3))[::3], pa.int64()),
        "day": pa.array([1] * count, pa.date32()),
    }
    path = tmp_path_factory.mktemp("labels") / "data"
    raw_dataset.write_raw(path, schema, [count], has_checksums=True, columns_besides=besides)
    return msdata.open(path)


def test_the_kind_of_a_label_follows_its_type(labels: msdata.Dataset) -> None:
    split = labels.split("train")

    def target_of(column: str, **model: Any) -> Target:
        config = TrainConfig(model=ModelConfig(target=column, ebv_column=None, **model))
        return Target.of(resolve(config, labels).model)

    assert target_of("ans").classes == tuple(map(str, range(10)))
    assert target_of("flag").classes == ("false", "true")
    assert target_of("many").classes[:3] == ("0", "3", "6")
    mass = target_of("mass")
    assert (mass.low, mass.high) == (9.0, 10.95)
    assert target_of("mass", target_min=-1.0).low == -1
    assert target_of("marked", target_min=8.0, target_max=12.0).known == "marked in [8, 12]"
    holes = target_of("holes", target_kind="classes")
    values = holes.values(split)
    assert (np.isnan(values).sum(), np.nanmax(values)) == (8, 2)
    batch = {"holes": split.numbers("holes"), "sample_id": np.arange(40)}
    np.testing.assert_array_equal(holes.of_batch(batch), values)
    some = target_of("morphology", classes=["round", "disk"])
    assert some.unseen(split) == {"merger": 13}
    z = target_of("part", target_kind="redshift")
    assert (z.public("redshift"), z.public("z_mean"), z.high) == ("part", "z_mean", 1.6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"target_min": 0.0}, "are for scalars, got redshift; the bins of a redshift"),
        ({"target": "mass", "z_max": 12.0}, "model.z_max is for redshifts, got model.target=mass"),
        ({"target": "mass", "target_min": 2.0, "target_max": 1.0}, "must be < model.target_max"),
        ({"classes": ("a", "b")}, "model.classes needs model.target_kind=classes, got redshift"),
        ({"target": "ans", "classes": ("a", "a")}, "must be different texts"),
        ({"target": "ebv_csfd"}, "must not hold the answer"),
        ({"target": "ans", "target_kind": "class"}, "must be one of None, redshift, scalar"),
    ],
)
def test_settings_of_another_kind_of_target_are_refused(model: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ModelConfig(**model)


def test_a_run_and_data_that_do_not_fit_are_refused(
    data: Path, classes: Path, masses: Path, labels: msdata.Dataset, tmp_path: Path
) -> None:
    quiet: dict[str, Any] = {"device": "cpu", "is_quiet": True, "has_report": False}
    with pytest.raises(UsageError, match=r"cannot calibrate .* tells classes of morphology"):
        mstrain.calibrate(classes, data, device="cpu")
    with pytest.raises(UsageError, match="--calibration must be none for classes of morphology"):
        mstrain.predict(classes, data, tmp_path / "p.parquet", calibration="global", device="cpu")
    (tmp_path / "prior.csv").write_text("z_low,z_high,count\n0,1,1\n")
    with pytest.raises(UsageError, match="--prior must be natural or as-trained for the classes"):
        mstrain.evaluate(classes, data, prior=str(tmp_path / "prior.csv"), **quiet)
    with pytest.raises(
        UsageError, match=r"--magnitude-edges must be left out: .* tells classes of"
    ):
        mstrain.evaluate(classes, data, magnitude_edges=(15.0, 20.0), **quiet)
    with pytest.raises(UsageError, match=r"--bin-by must name columns of .*, got 'z_std'"):
        mstrain.evaluate(classes, data, bin_by=("z_std",), **quiet)
    with pytest.raises(UsageError, match=r"--redshift-edges must be left out: .* no redshift"):
        mstrain.evaluate(masses, data, redshift_edges=(0.0, 1.0), **quiet)
    with pytest.raises(UsageError, match=r"label_width must be 0 for classes, got 0\.03"):
        mstrain.train(
            TrainConfig(
                model=ModelConfig(target="ans", ebv_column=None), loss=LossConfig(label_width=0.03)
            ),
            data,
            tmp_path / "run",
        )
    words = words_of(data, classes, model__target="ans")
    assert mstrain.cli.main(words) == 2


@pytest.mark.parametrize(
    ("column", "number", "is_refused"),
    [("dust", 3, True), ("size", 6, True), ("dust", 9, False), (None, 0, False)],
    ids=["E(B-V)", "label of val", "test split", "one column more"],
)
def test_a_run_is_not_resumed_on_an_added_column_that_was_replaced(
    column: str | None,
    number: int,
    is_refused: bool,
    added: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, run = (Path(shutil.copytree(added / n, tmp_path / n)) for n in ("DATA", "RUN"))
    before = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    (data / "columns.json").unlink()
    values = added_values() if column else {**added_values(), "note": [*range(48)]}
    if column:
        values[column][number] += 0.01
    add_values(data, values)
    words = words_of(data, run, model__target="size", model__ebv_column="dust")
    assert mstrain.cli.main(words) == (2 if is_refused else 0)
    said = capsys.readouterr().err
    wanted = f"was trained on other values of the added column '{column}'"
    assert (wanted in said) == is_refused, said
    assert is_refused or "is finished" in said
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before


def added_values() -> dict[str, list[Any]]:
    """The columns that `added` adds; `size` is the label."""
    dust, size = [0.01 + n / 1000 for n in range(48)], [1.0 + n % 3 for n in range(48)]
    return {"id": [f"g{n:03d}" for n in range(48)], "dust": dust, "size": size}


def add_values(data: Path, values: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(values), data.parent / "table.parquet")
    msdata.add_columns(data, data.parent / "table.parquet")


@pytest.fixture(scope="module")
def added(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set with added columns, and a run that has learned them."""
    folder = tmp_path_factory.mktemp("added")
    shutil.copytree(data, folder / "DATA")
    add_values(folder / "DATA", added_values())
    asked = {"model__target": "size", "model__ebv_column": "dust"}
    assert mstrain.cli.main(words_of(folder / "DATA", folder / "RUN", **asked)) == 0
    return folder


def test_data_without_the_label_are_told_so_and_predicted_all_the_same(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with msdata.Writer(tmp_path / "OTHER", jobs=1) as writer:
        for n in range(12):
            image = np.full((1, 8, 8), n % 3, np.float32)
            writer.write(f"g{n}", {"image": image}, split="test", mass=1.0)
    other = str(tmp_path / "OTHER")
    assert mstrain.cli.main(["evaluate", str(classes), other, "--any-pixels"]) == 1
    assert f"{other} has no column 'morphology', which {classes} learned" in capsys.readouterr().err
    words = ["predict", str(classes), other, str(tmp_path / "p.parquet"), "--any-pixels"]
    assert mstrain.cli.main(words) == 0
    found = read_predictions(tmp_path / "p.parquet").columns
    assert set(found["morphology_predicted"]) <= set(CLASSES) and "morphology" not in found


def test_galaxy10_is_trained_from_its_file_by_three_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "Galaxy10_DECals.h5", "w") as file:
        file["images"] = rng.integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
        file["ans"] = (np.arange(60) % 10).astype(np.uint8)
        file["redshift"] = np.where(np.arange(60) % 7, 0.1, np.nan)
    pack = ["pack", str(tmp_path / "Galaxy10_DECals.h5"), str(tmp_path / "DATA"), "--jobs", "1"]
    assert msdata.cli.main([*pack, "--arrays", "image=images", "--labels", "ans,redshift"]) == 0
    words = words_of(tmp_path / "DATA", tmp_path / "RUN", model__target="ans")
    assert mstrain.cli.main(words) == 0
    assert "learning 10 classes of ans: 0, 1, 2, 3" in capsys.readouterr().err
    words = ["evaluate", str(tmp_path / "RUN"), str(tmp_path / "DATA"), "--no-report"]
    assert mstrain.cli.main(words) == 0
    table = read_predictions(tmp_path / "RUN" / "predictions-test.parquet")
    assert table.columns["ans_predicted"].dtype == table.columns["ans"].dtype == np.uint8


def test_tars_of_webdataset_are_trained_where_they_lie(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    rng = np.random.default_rng(0)
    for split, first, count in (("train", 0, 24), ("val", 24, 12), ("test", 36, 12)):
        (tmp_path / "src" / split).mkdir(parents=True)
        with webdataset.TarWriter(str(tmp_path / "src" / split / "a.tar")) as writer:
            for n in range(first, first + count):
                image = rng.normal(n % 2, 0.1, (1, 8, 8)).astype(np.float32)
                writer.write({"__key__": f"g{n:03d}", "image.npy": image, "cls": n % 2})
    assert msdata.cli.main(["index", str(tmp_path / "src"), str(tmp_path / "DATA")]) == 0
    # The only label there is.
    assert mstrain.cli.main(words_of(tmp_path / "DATA", tmp_path / "RUN")) == 0
    found = mstrain.evaluate(
        tmp_path / "RUN", tmp_path / "DATA", bootstrap=QUICK, has_report=False, is_quiet=True
    )
    assert found.summary.num_samples == 12
    assert [c.name for c in found.summary.classes] == ["0", "1"]


def test_ten_lines_of_python_lead_from_arrays_to_an_evaluated_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "docs" / "examples" / "train_on_arrays.py"
    text = script.read_text(encoding="utf-8")
    for given, smaller in {"range(200)": "range(40)", "epochs=2": "epochs=1"}.items():
        assert given in text
        text = text.replace(given, smaller)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "mine")])
    exec(compile(text, str(script), "exec"), {"__name__": "__main__"})
    accuracy = re.search(r"accuracy ([0-9.]+)", capsys.readouterr().out)
    assert accuracy is not None and 0 <= float(accuracy[1]) <= 1
    assert (tmp_path / "mine" / "RUN" / "report.html").exists()
