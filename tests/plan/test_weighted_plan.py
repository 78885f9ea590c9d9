"""Runs that draw by weights are forecast by `msdata plan` and beside `msdata cache status`."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caching
import loading
import numpy as np
import pytest

import msdata
import msdata.cache.reporter
import msdata.cli
from msdata.plan import quality
from msdata.plan.weighted import inverse_count_weights, inverse_counts, weighted_order
from msdata.plan.weights import DEFAULT_NUM_BINS, DEFAULT_Z_MAX
from mstrain.config import LossConfig, ModelConfig
from mstrain.models.loss import draw_weights

TIERS = ("local", "ssd", "peer", "storage")


@pytest.fixture
def split(tiny_source: Path, packed: Callable[..., Path]) -> Any:
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


def said(*words: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert msdata.cli.main([str(word) for word in words]) == 0
    return text.getvalue()


def planned(split: Any, *options: Any) -> Any:
    return json.loads(said("plan", split.dataset.path, "--json", "--remainder", "short", *options))


@pytest.mark.parametrize("name", ["inverse_count", "redshift", "weights.npy"])
def test_the_plan_of_weights_is_what_the_loader_counts(split, tmp_path: Path, name: str) -> None:
    weights = {
        "inverse_count": inverse_count_weights(split.redshift, num_bins=5, upper=1.0),
        "redshift": split.redshift,
        "weights.npy": np.arange(len(split)) ** 2.0,
    }[name]
    np.save(tmp_path / "weights.npy", weights)
    config = caching.config(tmp_path, memory_gib=caching.gib_of(split, 0.6), warmup="blocking")
    with msdata.Loader(
        split, 8, cache=config, policy="locality", weights=weights, seed=3, threads=1
    ) as loader:
        counted = []
        for _ in range(3):
            loading.run_epoch(loader)
            counted.append([loader.stats()["tiers"][t]["samples"] for t in TIERS])
    given = tmp_path / name if name.endswith("npy") else name
    options = ["--weight-bins", 5, "--z-max", 1] if name == "inverse_count" else []
    report = planned(
        split,
        *("--weights", given, "--memory-gib", config.memory_gib, "--batch-per-rank", 8),
        *("--seed", 3, "--epochs", 3, *options),
    )
    assert [e["samples_by_node"][0] for e in report["epochs"][1:]] == counted[1:]
    assert counted[1][3] > 0
    assert report["job"]["weights"]["never_drawn"] == np.count_nonzero(weights == 0)
    text = said("plan", split.dataset.path, "--weights", given, "--batch-per-rank", 8, *options)
    assert f"drawn with replacement by {given}" in text
    # Paths are as long as they are.
    paths = (str(given), str(split.dataset.path))
    assert all(len(line) <= 120 for line in text.splitlines() if not any(p in line for p in paths))


def test_weights_of_a_training_are_those_of_the_plan() -> None:
    redshift = np.array([0.1, 0.1, 0.9, np.nan, -0.2, 1.6, 1.7])
    loss = LossConfig(weighting="inverse_count", weights_in="sampler")
    model = ModelConfig()
    assert (loss.weight_bins, model.z_max) == (DEFAULT_NUM_BINS, DEFAULT_Z_MAX)
    found = draw_weights(redshift, loss, model.z_max)
    assert found.tolist() == [0.5, 0.5, 1, 0, 0, 1, 0]


def test_status_shows_the_forecast_that_ranks_drawing_by_weights_have_of_themselves(
    split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msdata.cache.reporter, "ROW_S", 0.02)
    weights = np.arange(1.0, len(split) + 1) ** 2
    config = caching.config(tmp_path, memory_gib=caching.gib_of(split, 0.5), warmup="blocking")

    def status(*data: Any) -> dict[str, Any]:
        (found,) = json.loads(said("cache", "status", *data, "--json", "--shm-dir", config.shm_dir))
        return dict(found)

    with msdata.Loader(split, 8, cache=config, weights=weights, threads=1) as loader:
        for _ in range(2):
            loading.run_epoch(loader)
        tiers = loader.stats()["tiers"]
        hit_share = 1 - tiers["storage"]["samples"] / len(split)
        deadline = time.monotonic() + 60
        while (found := status())["epoch"] != 1 or found["hit_share"] != pytest.approx(hit_share):
            assert time.monotonic() < deadline, found
        # With and without the data: only the ranks know their weights.
        for each in (found, status(split.dataset.path)):
            assert each["forecast_hit_share"] == pytest.approx(hit_share)
        assert 0 < hit_share < 1
        state = loader.state_dict()
        assert state["epoch"] == 2
        loader.set_epoch(5)
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
        loader.load_state_dict(state)
        loading.run_epoch(loader)
        tiers = loader.stats()["tiers"]
        rest = len(split) - 3 * 8
        hit_share = 1 - tiers["storage"]["samples"] / rest
        while (found := status())["epoch"] != 5 or found["forecast_hit_share"] != pytest.approx(
            hit_share
        ):
            assert time.monotonic() < deadline, found


def test_quality_of_weighted_draws_is_that_of_independent_ones() -> None:
    random = np.random.default_rng(2)
    label = random.random(5000)
    weights = random.pareto(3, 5000) * label
    shard = np.repeat(np.arange(50, dtype=np.int32), 100)
    orders = np.concatenate([weighted_order(weights, seed=0, epoch=e) for e in range(8)])
    batches = quality.batches_of(orders, 100)
    assert quality.same_shard_pairs(batches, shard, weights).ratio == pytest.approx(1, abs=0.05)
    drift = quality.label_drift(batches, label, weights)
    assert drift.mean.ratio == pytest.approx(1, abs=0.15)
    assert drift.distribution.ratio == pytest.approx(1, abs=0.1)
    # Against even draws the same batches are far off.
    assert quality.label_drift(batches, label).distribution.ratio > 2
    drawn = len(np.unique(orders[:5000])) / 5000
    assert quality.drawn_share(weights, 5000) == pytest.approx(drawn, abs=0.01)
    assert quality.drawn_share(np.array([0.0, 1.0]), 7) == 0.5


REFUSED = {
    "policy 'block' reads whole shards": ["--weights", "redshift", "--policy", "block"],
    "has no column nothing": ["--weights", "nothing"],
    "cannot read weights of missing.npy": ["--weights", "missing.npy"],
    "--weights crc32c.npy: weights must be 300 numbers": ["--weights", "crc32c.npy"],
    "--weights text.npy: weights must be numbers": ["--weights", "text.npy"],
    "--weight-bins and --z-max belong to": ["--weights", "redshift", "--z-max", "1"],
    "the number of bins must be at least 1, got 0": [
        "--weights",
        "inverse_count",
        "--weight-bins",
        "0",
    ],
    "--weights inverse_count: cannot draw samples: all weights are 0": [
        *("--weights", "inverse_count", "--z-max", "1e-9"),
    ],
}


@pytest.mark.parametrize("says", REFUSED)
def test_weights_that_cannot_be_used_are_refused_with_a_sentence(
    split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("crc32c.npy", np.ones(3))
    np.save("text.npy", np.array(["a"]))
    assert msdata.cli.main(["plan", str(split.dataset.path), *REFUSED[says]]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_assumed_data_take_weights_of_a_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.npy"
    np.save(path, np.arange(300) % 3)
    options = ["plan", "--assume-samples", "300", "--assume-bytes", "9", "--weights"]
    assert msdata.cli.main([*options, "inverse_count"]) == 2
    report = json.loads(said(*options, path, "--json"))
    assert report["job"]["weights"]["never_drawn"] == 100
    assert report["job"]["weights"]["effective_samples"] == pytest.approx(300 * 0.6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_all_filled_bins_weigh_alike_and_bins_are_found_in_double_precision(dtype) -> None:
    values = np.array([0.0, 0.1, 0.2, 0.7, 1.0, 1.0, 1.01, -0.1, np.nan], dtype)
    counts = inverse_counts(values, num_bins=5, upper=1.0)
    np.testing.assert_allclose(counts, [1 / 2, 1, 0, 1, 1 / 2])
    weights = inverse_count_weights(values, num_bins=5, upper=1.0)
    np.testing.assert_allclose(weights, [0.5, 0.5, 1, 1, 0.5, 0.5, 0, 0, 0])
    double = inverse_count_weights(values.astype(float), num_bins=5, upper=1.0)
    np.testing.assert_array_equal(weights, double)


def test_labels_of_single_precision_share_the_bins_of_the_loss() -> None:
    # float32(1.6) is above 1.6 and belongs to no bin; compared in float32 it would to the last.
    values = (np.arange(51) * 0.032).astype(np.float32)
    double = inverse_counts(values.astype(np.float64), num_bins=50, upper=1.6)
    np.testing.assert_array_equal(inverse_counts(values, num_bins=50, upper=1.6), double)
