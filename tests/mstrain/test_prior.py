"""The prior put back: exact posteriors, trained networks, both commands, checkpoints of old."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training

import msdata
import mstrain.cli
from msdata.errors import DataError, UsageError
from mstrain.config import ComputeConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from mstrain.data.batches import TensorBatch
from mstrain.distributed import Ranks
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import make_densities
from mstrain.evaluation.metrics.scores import point_estimates, scores
from mstrain.evaluation.metrics.summary import summarize
from mstrain.evaluation.predictions import Predictions, read_predictions
from mstrain.evaluation.run_info import find_prior, open_run
from mstrain.models.heads import bin_edges, bin_of, density
from mstrain.models.loss import BinLoss, draw_weights, redshift_weights
from mstrain.models.prior import AS_TRAINED, NATURAL, TrainedPrior, measure_prior, target_prior
from mstrain.training.checkpoint import read_checkpoint, read_config
from mstrain.training.train_step import TrainStep

BINS = ModelConfig(num_bins=16, z_max=1.6, ebv_column=None)
QUICK = ("--quiet", "--device", "cpu", "--no-report")


def weighted(**options: Any) -> LossConfig:
    return LossConfig(**{"weighting": "inverse_count", "weight_bins": 16, **options})


def a_sample(num_samples: int = 4000) -> np.ndarray:
    """A steep n(z) with a gap, and redshifts that are none."""
    z = np.random.default_rng(0).gamma(2, 0.2, num_samples)
    z = z[(z < 1.0) | (z > 1.2)]
    return np.append(z, [np.nan, -0.1, 7.0, 1.6])


def densities_of(mass: np.ndarray, config: ModelConfig, factor: torch.Tensor | None) -> np.ndarray:
    """Densities of a network whose as-trained probabilities are `mass`."""
    logits = torch.from_numpy(mass).log()
    found: np.ndarray = density(logits, config, factor).numpy()
    return found


# ---------------------------------------------------------------- exact posteriors


@pytest.mark.parametrize("num_bins", [16, 24, 64])
@pytest.mark.parametrize("weights_in", ["loss", "sampler"])
def test_exact_posteriors_come_back_to_rounding(weights_in: str, num_bins: int) -> None:
    """x takes 5 values; the optimum of the weighted loss is known: w-weighted shares of each x."""
    model = ModelConfig(num_bins=num_bins, z_max=1.6, ebv_column=None)
    loss = weighted(weights_in=weights_in, weight_bins=8)
    z = a_sample()
    number = bin_of(torch.from_numpy(z), model)
    known = number >= 0
    if weights_in == "sampler":
        weight = torch.from_numpy(draw_weights(z, loss, model.z_max))
    else:
        made = BinLoss(loss, model, redshift_weights(z, loss, model.z_max))
        weight = made._weight(torch.from_numpy(z), number).double()
    # Each value of x is seen with a probability that depends on the redshift's bin.
    p_x_of_bin = np.random.default_rng(1).dirichlet(np.ones(5), num_bins)
    natural = p_x_of_bin.T * torch.bincount(number[known], minlength=num_bins).numpy()
    natural /= natural.sum(1, keepdims=True)
    sums = torch.bincount(number[known], weight[known], minlength=num_bins).numpy()
    trained = p_x_of_bin.T * sums
    trained /= trained.sum(1, keepdims=True)
    factor = measure_prior(z, loss, model).natural_factor()
    width = model.z_max / num_bins
    found = densities_of(trained, model, factor) * width
    np.testing.assert_allclose(found, natural, atol=1e-12)
    assert np.abs(densities_of(trained, model, None) * width - natural).max() > 0.05


def test_spread_labels_keep_the_mean_density_of_the_sample() -> None:
    loss = weighted(label_width=0.05, label_smoothing=0.1, weight_bins=7)
    z = a_sample()
    known = torch.from_numpy(z[(z >= 0) & (z <= 1.6)])
    made = BinLoss(loss, BINS, redshift_weights(z, loss, BINS.z_max))
    labels = 0.9 * made.labels(known).double() + 0.1 / 16
    weight = made._weight(known, bin_of(known, BINS)).double()
    # A network that sees nothing learns the weighted mean of the labels.
    trained = (weight @ labels / weight.sum()).numpy()[None]
    factor = measure_prior(z, loss, BINS).natural_factor()
    found = densities_of(trained, BINS, factor) * 0.1
    np.testing.assert_allclose(found[0], labels.mean(0), atol=1e-4)
    assert np.abs(trained[0] - labels.mean(0).numpy()).max() > 0.05


def test_weights_of_one_change_no_bit() -> None:
    z = (np.arange(160) + 0.5) / 100
    prior = measure_prior(z, weighted(), BINS)
    factor = prior.natural_factor()
    assert factor is not None
    assert torch.equal(factor, torch.zeros(16, dtype=torch.float64))
    logits = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(density(logits, BINS, factor), density(logits, BINS))
    for asked in (NATURAL, AS_TRAINED):
        plain = measure_prior(a_sample(), LossConfig(), BINS)
        assert target_prior(asked, plain, BINS).log_factor is None


def test_bins_without_weight_keep_a_density_of_zero() -> None:
    factor = measure_prior(a_sample(), weighted(), BINS).natural_factor()
    found = density(torch.randn(9, 16), BINS, factor)
    is_empty = torch.isneginf(factor)
    assert is_empty.nonzero()[:, 0].tolist()[:2] == [10, 11]
    assert torch.equal((found == 0).all(0), is_empty)
    torch.testing.assert_close(found.sum(1) * 0.1, torch.ones(9, dtype=torch.float64))


# ---------------------------------------------------------------- another prior


def write_prior(path: Path, rows: list[tuple[float, float, float]]) -> Path:
    lines = ["z_low,z_high,count", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("loss", [LossConfig(), weighted()])
def test_another_sample_s_prior_gives_its_posteriors(tmp_path: Path, loss: LossConfig) -> None:
    z = a_sample()
    trained = measure_prior(z, loss, BINS)
    counts = trained.counts.double().numpy()
    wanted = counts * np.linspace(3, 0.1, 16)
    edges = bin_edges(BINS).numpy()
    # In reverse, with what is empty left out.
    rows = [row for row in zip(edges[:-1], edges[1:], wanted, strict=True) if row[2]]
    path = write_prior(tmp_path / "nz.csv", rows)
    p_x_of_bin = np.random.default_rng(1).dirichlet(np.ones(5), 16)
    as_trained = (
        counts if trained.log_weights is None else counts * trained.log_weights.exp().numpy()
    )
    mass = p_x_of_bin.T * as_trained
    expected = p_x_of_bin.T * wanted
    expected /= expected.sum(1, keepdims=True)
    prior = target_prior(str(path), trained, BINS)
    assert prior.name == str(path)
    found = densities_of(mass / mass.sum(1, keepdims=True), BINS, prior.log_factor) * 0.1
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_training_s_own_counts_in_coarse_bins_change_nothing(tmp_path: Path) -> None:
    z = a_sample()
    trained = measure_prior(z, weighted(), BINS)
    ends = np.array([0, 0.15, 0.5, 1.0, 1.6])
    # Redshifts are spread evenly in each of the network's bins.
    spread = np.interp(ends, bin_edges(BINS), np.append(0, trained.counts.cumsum(0)))
    path = write_prior(
        tmp_path / "nz.csv", list(zip(ends[:-1], ends[1:], 7 * np.diff(spread), strict=True))
    )
    logits = torch.randn(30, 16)
    one = density(logits, BINS, target_prior(str(path), trained, BINS).log_factor)
    two = density(logits, BINS, trained.natural_factor())
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


BAD_PRIORS = {
    "columns": ("z,n\n0,1\n", "it needs columns z_low, z_high, count"),
    "number": ("z_low,z_high,count\n0,1,many\n", "with a number in every row (ValueError"),
    "short": ("z_low,z_high,count\n0,1\n", "with a number in every row (TypeError"),
    "empty": ("z_low,z_high,count\n", "it has no rows"),
    "overlap": ("z_low,z_high,count\n0,1,1\n0.5,2,1\n", "must ascend without overlap"),
    "negative": ("z_low,z_high,count\n0,1,1\n1,2,-1\n", "with counts >= 0"),
    "nan": ("z_low,z_high,count\n0,1,nan\n", "with counts >= 0"),
    "zero": ("z_low,z_high,count\n0,1,0\n", "one above 0"),
    "gap": ("z_low,z_high,count\n0,1,3\n1.0,1.2,1\n", "puts 25.00% of its objects at redshifts"),
    "far": ("z_low,z_high,count\n0,1,3\n5,6,1\n", "first in [5, 6]: no factor"),
    "binary": ("\0\0", "cannot read the prior"),
}


@pytest.mark.parametrize("name", BAD_PRIORS)
def test_a_file_that_is_no_prior_is_refused(tmp_path: Path, name: str) -> None:
    text, says = BAD_PRIORS[name]
    path = tmp_path / "nz.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        target_prior(str(path), measure_prior(a_sample(), LossConfig(), BINS), BINS)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_prior_that_is_neither_word_nor_file_is_refused() -> None:
    with pytest.raises(UsageError, match="must be natural, as-trained or a CSV file, got uniform"):
        target_prior("uniform", measure_prior(a_sample(), LossConfig(), BINS), BINS)


# ---------------------------------------------------------------- trained networks


NUM_STEPS = 400


def mock_sample(num_samples: int, seed: int) -> TensorBatch:
    """Objects of a steep n(z) whose redshift is seen, with noise, in the number that is not pixels.

    The images are blank, so that a network of some hundred parameters is enough.
    """
    random = np.random.default_rng(seed)
    z = random.beta(2, 5, num_samples) * 1.6
    seen = z + 0.12 * random.standard_normal(num_samples)
    return TensorBatch(
        images={"image": torch.zeros(num_samples, 1, 1, 1)},
        ebv=torch.tensor(seen - 0.5, dtype=torch.float32),
        redshift=torch.from_numpy(z),
        sample_id=np.arange(num_samples).astype(str),
    )


def train_on_mock(loss: LossConfig) -> dict[str, dict[str, np.ndarray]]:
    """Trains on the mock; scores of a test sample under both priors."""
    config = TrainConfig(
        batch_size=200,
        model=ModelConfig(depth=10, width=1, hidden=32, norm="batch", num_bins=40),
        loss=loss,
        optim=OptimConfig(learning_rate=1e-2, ema_decay=0.99),
        compute=ComputeConfig(channels_last=False),
    )
    sample = mock_sample(10000, 1)
    z = sample.redshift.numpy()
    factor = measure_prior(z, loss, config.model).natural_factor()
    train_step = TrainStep(
        config,
        {"image": (1, 1, 1)},
        Ranks(topology=msdata.Topology(), device=torch.device("cpu")),
        weights=None if loss.weights_in == "sampler" else redshift_weights(z, loss, 1.6),
        num_steps=NUM_STEPS,
        log_factor=factor,
    )
    chances = draw_weights(z, loss, 1.6) if loss.weights_in == "sampler" else np.ones(len(z))
    drawn = np.random.default_rng(2).choice(
        len(z), (NUM_STEPS, config.batch_size), p=chances / chances.sum()
    )
    for step, rows in enumerate(drawn):
        train_step.add(rows_of(sample, rows))
        train_step.step(step)
    tested = mock_sample(3000, 3)
    found = {}
    with torch.no_grad():
        logits = train_step.evaluated.eval()(tested.images, tested.ebv)
    for name, added in ((NATURAL, factor), (AS_TRAINED, None)):
        made = make_densities(density(logits, config.model, added).numpy(), bin_edges(config.model))
        truth = tested.redshift.numpy()
        found[name] = {**point_estimates(made), **scores(made, truth), "redshift": truth}
    total = train_step.validation_sums(tested)
    # Validated by the loss of the densities that are handed out.
    wanted = -found[NATURAL]["log_likelihood"] - np.log(1.6 / 40)
    assert float(total[0] / total[1]) == pytest.approx(float(wanted.mean()), abs=2e-3)
    return found


def rows_of(sample: TensorBatch, rows: np.ndarray) -> TensorBatch:
    assert sample.ebv is not None
    return TensorBatch(
        images={name: images[rows] for name, images in sample.images.items()},
        ebv=sample.ebv[rows],
        redshift=sample.redshift[rows],
        sample_id=sample.sample_id[rows],
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain(one_thread: None) -> dict[str, dict[str, np.ndarray]]:
    """The network trained without weights."""
    return train_on_mock(LossConfig())


@pytest.mark.parametrize("weights_in", ["loss", "sampler"])
def test_weighted_and_plain_training_agree_after_the_prior_is_put_back_and_not_before(
    weights_in: str, plain: dict[str, dict[str, np.ndarray]], one_thread: None
) -> None:
    found = train_on_mock(weighted(weights_in=weights_in, weight_bins=8))
    how = BootstrapConfig(num_replicates=200)
    truth = summarize(plain[NATURAL], how, binned_by={})
    back, before = (summarize(found[p], how, binned_by={}) for p in (NATURAL, AS_TRAINED))
    for metric in (lambda s: s.points["z_mean"]["bias"], lambda s: s.density["cde_loss"]):
        wanted = metric(truth)
        assert metric(back).low <= wanted.high
        assert metric(back).high >= wanted.low
        assert metric(before).low > wanted.high
    # 95 % of the distances of as many uniform numbers.
    limit = 1.358 / len(found[NATURAL]["pit"]) ** 0.5
    assert abs(back.pit_ks - truth.pit_ks) < limit
    assert before.pit_ks - truth.pit_ks > limit


# ---------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def trained(
    galaxies: Path, ranks: training.Ranks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of one epoch with weights, in bins that do not divide the network's."""
    run = tmp_path_factory.mktemp("weighted") / "run"
    words = training.words_of(galaxies, run, epochs="1", weighting="inverse_count", weight_bins="5")
    ranks.run(words)
    return run


def predict(run: Path, data: Path, out: Path, *options: str) -> Predictions:
    words = ["predict", str(run), str(data), str(out), "--split", "train", *QUICK[:3], *options]
    assert mstrain.cli.main(words) == 0
    return read_predictions(out)


def test_predictions_have_the_natural_prior_unless_told(
    trained: Path, galaxies: Path, tmp_path: Path
) -> None:
    natural = predict(trained, galaxies, tmp_path / "natural.parquet")
    raw = predict(trained, galaxies, tmp_path / "raw.parquet", "--prior", "as-trained")
    assert [p.origin["prior"] for p in (natural, raw)] == ["natural", "as-trained"]
    assert natural.origin["weighting"] == "inverse_count"
    assert read_config(trained)["prior"] == {
        "network": "natural times inverse_count weights in the loss",
        "validation_loss": "natural",
        "evaluate_and_predict": "natural, unless --prior says otherwise",
    }
    state = read_checkpoint(trained / "checkpoints" / "best.pt")["prior"]
    redshift = msdata.open(galaxies).split("train").redshift
    assert redshift is not None
    edges = raw.edges
    np.testing.assert_array_equal(state["counts"], np.histogram(redshift, edges)[0])
    one = np.concatenate(list(natural.density_parts())).astype(np.float64)
    two = np.concatenate(list(raw.density_parts())) / np.exp(state["log_weights"].numpy())
    two /= two.sum(1, keepdims=True) * np.diff(edges)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert np.abs(natural.columns["z_mean"] - raw.columns["z_mean"]).min() > 0
    # In bins that hold a training sample each.
    counts = state["counts"].numpy().reshape(4, 4).sum(1).tolist()
    rows = list(zip(edges[:-4:4], edges[4::4], counts, strict=True))
    path = write_prior(tmp_path / "nz.csv", rows)
    same = predict(trained, galaxies, tmp_path / "same.parquet", "--prior", str(path))
    assert same.origin["prior"] == str(path)
    np.testing.assert_allclose(same.columns["z_mean"], natural.columns["z_mean"], rtol=1e-6)


def test_an_evaluation_shows_both_priors_side_by_side(
    trained: Path, galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    options = ("--split", "train", "--replicates", "50", *QUICK[:3])
    for prior in (NATURAL, AS_TRAINED):
        out = tmp_path / "new" / prior
        words = ["evaluate", str(trained), str(galaxies), "--out", str(out), "--prior", prior]
        words += ["--no-report"] if prior == AS_TRAINED else []
        assert mstrain.cli.main([*words, *options]) == 0
        assert "Priors side by side" in capsys.readouterr().out
        found[prior] = json.loads((out / "evaluation-train.json").read_text())
    page = (tmp_path / "new" / NATURAL / "report.html").read_text()
    assert page.count("Priors side by side") == 1
    assert "natural; trained with inverse_count weights" in page
    for one, two in ((NATURAL, AS_TRAINED), (AS_TRAINED, NATURAL)):
        assert list(found[one]["other_priors"]) == [two]
        beside = found[one]["other_priors"][two]
        for part in ("points", "density", "pit_ks"):
            assert beside[part] == found[two]["metrics"][part]
    assert found[NATURAL]["metrics"]["points"] != found[AS_TRAINED]["metrics"]["points"]
    table = read_predictions(tmp_path / "new" / NATURAL / "predictions-train.parquet")
    assert not [name for name in table.columns if name.startswith("\0")]


def without_prior(trained: Path, run: Path) -> Path:
    """The run as an earlier mstrain left it."""
    shutil.copytree(trained, run)
    for path in (run / "checkpoints").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        del content["prior"]
        torch.save({**content, "format_version": 1}, path)
    return run


def test_a_run_without_its_prior_has_it_measured_again_or_is_refused(
    trained: Path, galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = without_prior(trained, tmp_path / "run")
    wanted = predict(trained, galaxies, tmp_path / "wanted.parquet")
    found = predict(run, galaxies, tmp_path / "found.parquet")
    np.testing.assert_array_equal(found.columns["z_mean"], wanted.columns["z_mean"])
    config = read_config(run)
    (run / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    capsys.readouterr()
    out = tmp_path / "lost.parquet"
    words = ["predict", str(run), str(galaxies), str(out), *QUICK[:3]]
    assert mstrain.cli.main(words) == 2
    said = capsys.readouterr().err
    assert f"cannot change the prior of {run}: it was trained by an mstrain that kept none" in said
    assert "take the densities as they are with --prior as-trained" in said
    assert not out.exists()
    assert mstrain.cli.main([*words, "--prior", "as-trained"]) == 0


def test_a_resumed_run_that_kept_no_prior_chooses_its_best_again(
    trained: Path, galaxies: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    run = without_prior(trained, tmp_path / "run")
    for path in (run / "checkpoints").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        # A loss that no network of 16 bins has by the natural prior.
        content["progress"]["best_loss"] = 1e-3
        content["progress"] |= {"validated": 0}
        torch.save(content, path)
    words = training.words_of(galaxies, run, epochs="1", weighting="inverse_count", weight_bins="5")
    ranks.run(words)
    best = read_checkpoint(run / "checkpoints" / "best.pt")
    assert best["progress"]["best_loss"] > 0.1
    assert open_run(run, "best").prior is not None


def test_a_damaged_prior_is_refused(trained: Path, tmp_path: Path) -> None:
    state = read_checkpoint(trained / "checkpoints" / "best.pt")["prior"]
    model = open_run(trained, "best").config.model
    TrainedPrior.from_state(state, model)
    for name, value in (("counts", None), ("log_weights", torch.zeros(3, dtype=torch.float64))):
        with pytest.raises(DataError, match="must have one number for each of 16 bins"):
            TrainedPrior.from_state({**state, name: value}, model)


def test_a_network_trained_without_weights_is_under_the_natural_prior_as_it_is(
    galaxies: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks.run(training.words_of(galaxies, run, epochs="1"))
    one = predict(run, galaxies, tmp_path / "one.parquet")
    two = predict(run, galaxies, tmp_path / "two.parquet", "--prior", "as-trained")
    for a, b in zip(one.density_parts(), two.density_parts(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert find_prior(open_run(run, "best"), NATURAL).log_factor is None
    assert read_config(run)["prior"]["network"] == "natural"
