"""Which bands a network listens to: known answers, and the same on any number of ranks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import training

import msdata
import mstrain
from msdata.errors import UsageError
from mstrain.cli import main
from mstrain.config import ModelConfig, TrainConfig
from mstrain.data.batches import TensorBatch
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import make_densities
from mstrain.models.prior import TargetPrior
from mstrain.models.redshift_net import RedshiftNet
from mstrain.perception.exchange import (
    EBV,
    Modality,
    PerceptionConfig,
    coalition_name,
    coalitions_of,
    exchange,
    find_partners,
    make_mask,
    num_groups,
)
from mstrain.perception.measure import BASE, LOSSES, js_distance, measure_batch, salience_of
from mstrain.perception.scores import Resampled, shapley_values

# Exchange


@pytest.mark.parametrize("count", [9, 64, 257])
@pytest.mark.parametrize("is_near", [False, True])
def test_nobody_is_its_own_partner_and_no_partner_comes_twice(count: int, is_near: bool) -> None:
    values = np.random.default_rng(0).normal(size=count) if is_near else None
    partner_KN = find_partners(count, 4, values)
    for partner_N in partner_KN:
        assert sorted(partner_N) == list(range(count))
        assert (partner_N != np.arange(count)).all()
    assert all(len(set(column)) == 4 for column in partner_KN.T)


def test_neighbors_are_near_and_unknown_values_meet_each_other() -> None:
    values = np.arange(100.0)[np.random.default_rng(1).permutation(100)]
    partner_KN = find_partners(100, 4, values)
    assert np.abs(values[partner_KN] - values).max() <= 4
    values[:10] = np.nan
    assert np.isnan(values[find_partners(100, 4, values)][:, :10]).all()


def test_groups_of_fewer_than_one_half_join_the_last() -> None:
    assert [num_groups(n, 12) for n in (1, 12, 17, 18, 51, 54)] == [1, 1, 1, 2, 4, 5]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="--permutations must be less than the 4 samples"):
        find_partners(4, 4)


def test_a_mask_exchanges_its_pixels_and_no_others() -> None:
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    partner = torch.tensor([1, 0])
    center = make_mask("center", 8, 8, image.device)
    rest = make_mask("surroundings", 8, 8, image.device)
    assert center is not None and rest is not None
    assert int(center.sum()) == 12
    assert torch.equal(center, ~rest)
    changed = exchange(image, (1,), partner, center)
    assert torch.equal(changed[:, [0, 2]], image[:, [0, 2]])
    assert torch.equal(changed[:, 1][:, center], image[partner, 1][:, center])
    assert torch.equal(changed[:, 1][:, rest], image[:, 1][:, rest])


# The linear toy: y = a x1 + b x2 with variances 1 and correlation rho


def test_the_loss_of_a_linear_toy_rises_by_twice_its_variance() -> None:
    a, rho, count = 1.3, 0.6, 40_000
    rng = np.random.default_rng(2)
    x1 = rng.normal(size=count)
    x2 = rho * x1 + np.sqrt(1 - rho**2) * rng.normal(size=count)
    y = a * x1 + 0.7 * x2
    partner_KN = find_partners(count, 4)
    changed_KN = a * x1[partner_KN] + 0.7 * x2
    rise = ((changed_KN - y) ** 2).mean()
    assert rise == pytest.approx(2 * a**2, rel=0.03)
    # Variance over partners, and among neighbors in x2, which leave a^2 (1 - rho^2).
    zero = np.zeros(count)
    assert salience_of(changed_KN, zero).mean() == pytest.approx(a**2, rel=0.03)
    near_KN = a * x1[find_partners(count, 4, x2)] + 0.7 * x2
    assert salience_of(near_KN, zero).mean() == pytest.approx(a**2 * (1 - rho**2), rel=0.03)


def test_salience_is_over_one_plus_z_squared_and_needs_two_partners() -> None:
    mean_KN = np.array([[0.1, 0.5], [0.3, 0.5]])
    assert salience_of(mean_KN, np.array([1.0, 0.0])) == pytest.approx([0.02 / 4, 0.0])
    assert np.isnan(salience_of(mean_KN[:1], np.zeros(2))).all()


def test_the_jensen_shannon_distance_is_zero_of_equals_and_one_of_strangers() -> None:
    edges = np.array([0.0, 1.0, 2.0])
    one = make_densities(np.array([[1.0, 0.0], [0.5, 0.5]]), edges)
    other = make_densities(np.array([[0.0, 1.0], [0.5, 0.5]]), edges)
    assert js_distance(one, other).tolist() == [1.0, 0.0]


# A network


def _network(fusion: str = "early") -> tuple[RedshiftNet, TensorBatch, SimpleNamespace]:
    config = TrainConfig(model=ModelConfig(depth=10, width=4, hidden=8, num_bins=16))
    shapes = {"image": (3, 16, 16)} if fusion == "early" else {"a": (2, 16, 16), "b": (1, 16, 16)}
    torch.manual_seed(0)
    model = RedshiftNet(shapes, config.model).eval().requires_grad_(False)
    batch = TensorBatch(
        images={name: torch.randn(12, *shape) for name, shape in shapes.items()},
        ebv=torch.rand(12) / 5,
        redshift=torch.rand(12, dtype=torch.float64),
        sample_id=np.array([f"{n}" for n in range(12)]),
    )
    return model, batch, SimpleNamespace(config=config)


def _measured(model, batch, run, variants, partner_KN, mask="none"):
    prior = TargetPrior(name="as-trained", log_factor=None)
    return measure_batch(model, batch, variants, partner_KN, (run, prior, mask))


BANDS = [Modality(name=f"x.{n}", kind="band", channels={"image": (n,)}) for n in range(3)]


def test_a_band_with_zero_weights_in_the_stem_scores_exactly_zero() -> None:
    model, batch, run = _network()
    model.encoders["image"].stem[0].weight[:, 1] = 0
    found = _measured(model, batch, run, BANDS, find_partners(12, 4))
    for loss in LOSSES:
        assert (found[f"{loss}|x.1"] == found[f"{loss}|{BASE}"]).all()
    assert (found["salience|x.1"] == 0).all()
    assert (found["jsd|x.1"] == 0).all()
    assert (found["salience|x.0"] > 0).all()
    found = {name: values for name, values in found.items() if "|" in name}
    found |= {f"{loss}|marginal": found[f"{loss}|{BASE}"] + 1 for loss in LOSSES}
    resampled = Resampled(found, ["x.1"], BootstrapConfig(num_replicates=20))
    assert (resampled.by_task("crps", "x.1") == 0).all()


def test_an_exchange_with_oneself_changes_no_bit() -> None:
    model, batch, run = _network()
    variants = [*BANDS, Modality(name=EBV, kind="ebv", channels={}, has_ebv=True)]
    found = _measured(model, batch, run, variants, np.arange(12)[None].repeat(2, axis=0))
    for variant in variants:
        for loss in LOSSES:
            assert (found[f"{loss}|{variant.name}"] == found[f"{loss}|{BASE}"]).all()
        assert (found[f"jsd|{variant.name}"] == 0).all()


def test_all_exchanged_is_the_partners_density() -> None:
    model, batch, run = _network("late")
    players = [
        Modality(name="a", kind="survey", channels={"a": (0, 1)}),
        Modality(name="b", kind="survey", channels={"b": (0,)}),
        Modality(name=EBV, kind="ebv", channels={}, has_ebv=True),
    ]
    partner_KN = find_partners(12, 1)
    found = _measured(model, batch, run, coalitions_of(players), partner_KN)
    truth = batch.redshift.numpy()
    partners = found["z_mean"][partner_KN[0]]
    np.testing.assert_allclose(
        found[f"residual|a+b+{EBV}"], (partners - truth) / (1 + truth), atol=1e-6
    )


def test_a_mask_of_nothing_but_center_and_surroundings_leaves_out_the_rest() -> None:
    model, batch, run = _network()
    everything = Modality(name="x", kind="survey", channels={"image": (0, 1, 2)})
    partner_KN = find_partners(12, 2)
    whole = _measured(model, batch, run, [everything], partner_KN)["jsd|x"]
    parts = [
        _measured(model, batch, run, [everything], partner_KN, mask)["jsd|x"]
        for mask in ("center", "surroundings")
    ]
    assert (parts[0] > 0).all() and (parts[1] > 0).all()
    assert not np.allclose(parts[0], whole) and not np.allclose(parts[1], whole)
    batch.images["image"][:, :, 4:12, 4:12] = 0
    assert (_measured(model, batch, run, [everything], partner_KN, "center")["jsd|x"] == 0).all()


def test_shapley_values_are_those_of_an_additive_game_with_an_interaction_and_add_up() -> None:
    gain = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 0.0}
    names = list(gain)

    def loss_of(members: tuple[str, ...]) -> np.ndarray:
        return np.array([sum(gain[m] for m in members) + ("a" in members and "b" in members) * 6.0])

    value = {
        coalition_name(tuple(n for n in names if bits >> names.index(n) & 1)): loss_of(
            tuple(n for n in names if bits >> names.index(n) & 1)
        )
        for bits in range(16)
    }
    found = {name: float(v[0]) for name, v in shapley_values(names, value).items()}
    assert found == pytest.approx({"a": 4.0, "b": 5.0, "c": 4.0, "d": 0.0})
    assert sum(found.values()) == pytest.approx(float(value["a+b+c+d"][0]))


# Runs


@pytest.fixture(scope="module")
def run(galaxies: Path, ranks: training.Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "early"
    ranks.run(training.words_of(galaxies, out, epochs=2))
    return out


@pytest.fixture(scope="module")
def late(galaxies: Path, ranks: training.Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "late"
    ranks.run(training.words_of(galaxies, out, epochs=1, fusion="late"))
    return out


QUICK = ["--batch-size", "16", "--permutations", "2", "--replicates", "40", "--quiet"]


def _words(run: Path, data: Path, out: Path) -> list[str]:
    return ["perceive", str(run), str(data), "--split", "train", "--out", str(out), *QUICK]


def test_scores_and_table_are_equal_on_one_two_and_four_ranks(
    run: Path, galaxies: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    tables = {}
    for count in (1, 2, 4):
        out = tmp_path / str(count)
        ranks.run([*_words(run, galaxies, out), "--no-report"], count)
        tables[count] = pq.read_table(out / "perceive-train.parquet").to_pydict()
        assert len(tables[count]["sample_id"]) == len(msdata.open(galaxies).split("train"))
    for count in (2, 4):
        assert tables[count].keys() == tables[1].keys()
        for name, values in tables[1].items():
            if name == "sample_id":
                assert tables[count][name] == values
            else:
                np.testing.assert_allclose(tables[count][name], values, rtol=1e-4, atol=1e-6)


def test_the_report_gets_one_section_with_maps_and_the_numbers_add_up(
    run: Path, late: Path, galaxies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of the time, and not what is looked at.
    monkeypatch.setattr("mstrain.evaluation.report.page.draw_gallery", lambda *_: [])
    out = tmp_path / "out"
    mstrain.evaluate(run, galaxies, out, split="train", is_quiet=True)
    before = (out / "report.html").read_text()
    words = ["--split", "train", "--out", str(out), *QUICK, "--redshift-edges", "0,0.5,1,1.5"]
    # The second section takes the place of the first.
    for runs in ([run], [run, late]):
        assert main(["perceive", *map(str, runs), str(galaxies), *words]) == 0
    page = (out / "report.html").read_text()
    assert page.count('<h2 id="perceive">') == 1
    assert page.count('href="#perceive"') == 1
    assert re.sub(r"<!-- perceive -->.*?<!-- end of perceive -->", "", page, flags=re.S) == before
    assert page.count("Bands against redshift") >= 2
    found = json.loads((out / "perceive-train.json").read_text())
    assert [r["fusion"] for r in found["perception"]["runs"]] == ["early", "late"]
    for entry in found["perception"]["runs"]:
        assert len(entry["scores"]["crps"]["modalities"]) == 9 + 3 + 1
        shapley = entry["shapley"]
        total = sum(v["value"] for v in shapley["players"].values())
        assert total == pytest.approx(shapley["sum"]["value"], abs=1e-12)
        assert sum(b["num_samples"] for b in entry["bins"]) == entry["num_samples"] >= 40
    (difference,) = found["differences"]
    scores = [r["scores"]["crps"]["modalities"] for r in found["perception"]["runs"]]
    for name, change in difference["by_task"].items():
        pair = [score[name]["by_task"] for score in scores]
        if change is not None:
            assert change["value"] == pytest.approx(pair[1]["value"] - pair[0]["value"])


def test_features_exist_in_late_fusion_and_are_not_available_in_early(
    run: Path, late: Path, galaxies: Path, tmp_path: Path
) -> None:
    options = {
        "split": "train",
        "group_size": 16,
        "num_permutations": 1,
        "is_quiet": True,
        "has_report": False,
    }
    options["bootstrap"] = BootstrapConfig(num_replicates=20)
    found = mstrain.perceive([run, late], galaxies, tmp_path, level="features", **options)
    early_run, late_run = found.result["perception"]["runs"]
    assert early_run["note"].startswith("n/a")
    assert early_run["scores"]["crps"]["modalities"] == {}
    names = late_run["scores"]["crps"]["modalities"]
    assert set(names) == {"panstarrs", "galex", "unwise", EBV}
    at_input = mstrain.perceive(late, galaxies, tmp_path / "input", **options)
    other = at_input.result["perception"]["runs"][0]["scores"]["crps"]["modalities"]
    for name, score in names.items():
        assert score["loss"] == other[name]["loss"]


def test_all_checkpoints_are_measured_in_order_of_steps(
    run: Path, galaxies: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    last = sorted((copy / "checkpoints").glob("step-*.pt"))[-1]
    shutil.copy(last, last.with_name("step-00000001.pt"))
    num_kept = len(list(last.parent.glob("step-*.pt")))
    found = mstrain.perceive(
        copy,
        galaxies,
        tmp_path,
        split="val",
        checkpoint="all",
        within="redshift",
        mask="center",
        num_permutations=2,
        bootstrap=BootstrapConfig(num_replicates=20),
        is_quiet=True,
    )
    (entry,) = found.result["perception"]["runs"]
    steps = [at["step"] for at in entry["checkpoints"]]
    assert len(steps) == num_kept >= 2
    assert entry["origin"]["step"] == steps[-1]
    # E(B-V) has no center.
    assert EBV not in entry["scores"]["crps"]["modalities"]
    assert found.report is not None
    page = found.report.read_text()
    assert "What the network perceives" in page
    assert "Perceptual scores by checkpoint" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--permutations", "0"], "--permutations must be at least 1, got 0"),
        (
            ["--permutations", "8"],
            "--batch-size must be more than twice --permutations (8), got 16",
        ),
        (["--level", "features", "--mask", "center"], "--mask needs --level input"),
        (["--within", "magnitude"], "cannot exchange within magnitude: the index has no column"),
        (["--redshift-edges", "1,0"], "--redshift-edges must ascend"),
        (["--split", "test"], "has no split 'test'"),
    ],
)
def test_what_cannot_be_perceived_is_refused(
    words: list[str], says: str, run: Path, galaxies: Path, tmp_path: Path, capsys
) -> None:
    assert main([*_words(run, galaxies, tmp_path / "out"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_kept(run: Path, galaxies: Path, tmp_path: Path, capsys) -> None:
    for name in ("perceive-train.json", "perceive-train.parquet", "report.html"):
        (tmp_path / name).write_text("mine")
        assert main(_words(run, galaxies, tmp_path)) == 2
        assert f"{name} exists" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_the_module_that_torchrun_starts_is_no_import() -> None:
    import importlib

    with pytest.raises(ImportError, match=r"mstrain\.perceive is a function"):
        importlib.import_module("mstrain.perceive")
    assert PerceptionConfig().group_size == 256
