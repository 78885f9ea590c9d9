"""The study of policies: played ranks make the steps of real ones, and harm is seen where it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training
from scipy import stats

import msdata
from benchmarks.__main__ import main
from benchmarks.questions import policies
from benchmarks.questions.policies_data import (
    BY_REDSHIFT,
    RANDOM,
    SIZE,
    TOPOLOGY,
    Stamps,
    config_of,
    make_arms,
    make_stamps,
    measure_quality,
    pack_both,
)
from benchmarks.questions.policies_effects import holm, paired_effect, sentences_of, show
from benchmarks.questions.policies_training import PlayedRanks
from benchmarks.report import page, read_results
from msdata.errors import UsageError
from msdata.plan.ownership import equal_nodes, own_shards
from msdata.topology import Topology
from mstrain.config import TrainConfig
from mstrain.training.checkpoint import read_config

NUM_OBJECTS = 600
ARMS = {arm.name: arm for arm in make_arms((64,))}


def make_test_stamps(num: int = NUM_OBJECTS) -> Stamps:
    """Flat stamps whose brightness tells their redshift, with noise."""
    random = np.random.default_rng(0)
    redshift = random.uniform(0.02, 1.5, num)
    images = random.normal(0, 1, (num, 9, SIZE, SIZE)).astype(np.float32)
    images += (10 * redshift)[:, None, None, None].astype(np.float32)
    return Stamps(images=images, redshift=redshift, ebv=random.uniform(0, 0.1, num))


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stamps packed in random order and by redshift."""
    folder = tmp_path_factory.mktemp("policies")
    pack_both(make_test_stamps(), folder, seed=3, num_shards=8)
    return folder


# Batch norm of each rank on two ranks of a node; the same on two nodes that deal by owner.
@pytest.mark.parametrize(("policy", "num_nodes"), [("shuffle", 1), ("locality", 2)])
def test_played_ranks_make_the_steps_of_real_ranks(
    policy: str,
    num_nodes: int,
    galaxies: Path,
    ranks: training.Ranks,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"sync_batch_norm": "no", "policy": policy}
    if policy == "locality":
        options["cache_gib"] = "0.05"
    run = tmp_path / "run"
    ranks.run(training.words_of(galaxies, run, **options), 2, num_nodes)
    config = TrainConfig.from_dict(read_config(run)["config"])
    topology = Topology(num_nodes=num_nodes, ranks_per_node=2 // num_nodes, rank=0)
    with PlayedRanks(
        split=msdata.open(galaxies).split("train"),
        config=config,
        topology=topology,
        scratch=tmp_path / "scratch",
    ) as played:
        found = np.array(list(played.train()))
        buffers = {n: b.numpy().copy() for n, b in played.train_step.model.named_buffers()}
    wanted = training.losses(run)
    assert len(wanted) == 15
    np.testing.assert_allclose(found, wanted, rtol=2e-4)
    assert wanted.std() > 0.01
    _check_buffers(run, buffers)


def _check_buffers(run: Path, found: dict[str, np.ndarray]) -> None:
    """Running statistics are those of the first rank, which a checkpoint holds."""
    from mstrain.training.checkpoint import find_last, read_checkpoint

    path = find_last(run)
    assert path is not None
    wanted = read_checkpoint(path)["model"]
    names = [n for n in found if n.endswith(("running_mean", "running_var"))]
    assert names
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name].numpy(), rtol=2e-2, atol=1e-3)


def test_locality_gives_the_ranks_the_global_batches_of_shuffle_dealt_otherwise(
    packs: Path, tmp_path: Path
) -> None:
    batches = {}
    for name in ("shuffle", "locality"):
        config = config_of(ARMS[name], seed=5, epochs=2)
        with PlayedRanks(
            split=msdata.open(packs / RANDOM).split("train"),
            config=config,
            topology=TOPOLOGY,
            scratch=tmp_path / name,
        ) as played:
            batches[name] = [[p.sample_id.tolist() for p in b] for b in played.global_batches()]
    assert len(batches["shuffle"]) > 10
    for shuffled, local in zip(batches["shuffle"], batches["locality"], strict=True):
        assert [len(part) for part in shuffled] == [len(part) for part in local]
        assert sorted(chain.from_iterable(shuffled)) == sorted(chain.from_iterable(local))
    moved = [
        s != set(p)
        for a, b in zip(batches["shuffle"][:-1], batches["locality"][:-1], strict=True)
        for s, p in zip(map(set, a), b, strict=True)
    ]
    assert np.mean(moved) > 0.8


def test_both_packs_hold_the_same_samples_and_one_is_in_order_of_redshift(packs: Path) -> None:
    found = {n: msdata.open(packs / n) for n in (RANDOM, BY_REDSHIFT)}
    for split in ("train", "test"):
        one, other = (found[n].split(split) for n in (RANDOM, BY_REDSHIFT))
        assert sorted(one.numbers("object")) == sorted(other.numbers("object"))
        assert (np.diff(other.numbers("redshift")) >= 0).all()
        assert (np.diff(one.numbers("redshift")) < 0).mean() > 0.4
        stamps = make_test_stamps()
        for data in (one, other):
            for row in (0, len(data) - 1):
                number = int(data.numbers("object")[row])
                np.testing.assert_array_equal(data[row]["image"], stamps.images[number])
                assert data.numbers("redshift")[row] == stamps.redshift[number]
    assert len(found[BY_REDSHIFT].split("train").shard_sizes) >= 6


def test_the_quality_beside_an_arm_tells_shards_in_order_from_random_ones(packs: Path) -> None:
    found = {}
    for name, arm in ARMS.items():
        split = msdata.open(packs / arm.shards).split("train")
        nodes = equal_nodes(TOPOLOGY.num_nodes, memory_bytes=1 << 30)
        owned = own_shards(split.shard_sizes * split.schema.sample_nbytes, nodes)
        owners = (owned.owner_of_shard, owned.tier_of_shard)
        found[name] = measure_quality(
            arm, split, owners if arm.policy == "locality" else None, seed=1, epochs=3
        )
    assert found["locality"] == found["shuffle"] | {
        "seen_by_rank": found["locality"]["seen_by_rank"]
    }
    assert found["locality"]["seen_by_rank"] < 0.8 < found["shuffle"]["seen_by_rank"]
    assert 0.8 < found["shuffle"]["redshift_distance"] < 1.25
    assert found["block-64-redshift"]["redshift_distance"] > 2
    assert found["block-64-random"]["redshift_distance"] < 1.3
    assert found["block-64-random"]["same_shard_pairs"] > 2
    assert found["locality-rank"]["same_shard_pairs"] > 2
    assert found["locality-rank-redshift"]["redshift_distance"] > 1.1


def test_effects_are_those_of_a_paired_t_test() -> None:
    random = np.random.default_rng(7)
    reference = random.normal(1, 0.2, 9)
    arm = reference + random.normal(0.1, 0.1, 9)
    effect, wanted = paired_effect(arm, reference), stats.ttest_rel(arm, reference)
    interval = wanted.confidence_interval(0.95)
    np.testing.assert_allclose(effect["p"], wanted.pvalue)
    np.testing.assert_allclose([effect["low"], effect["high"]], [interval.low, interval.high])
    np.testing.assert_allclose(effect["cohen_d"], wanted.statistic / 3)
    same = paired_effect(reference, reference)
    assert (same["difference"], same["p"], same["cohen_d"]) == (0, 1, None)


def test_the_smallest_effect_is_seen_in_four_of_five_studies() -> None:
    random, num = np.random.default_rng(8), 6
    noise = random.normal(0, 1, (4000, num))
    typical = np.array([-1.0, 1.0] * (num // 2)) * np.sqrt((num - 1) / num)
    assert typical.std(ddof=1) == pytest.approx(1)
    smallest = paired_effect(typical + 5, np.full(num, 5.0))["smallest_seen"]
    p = stats.ttest_1samp(noise + smallest, 0, axis=1).pvalue
    assert 0.72 < np.mean(p < 0.05) < 0.85


def test_p_is_corrected_for_the_number_of_comparisons() -> None:
    base = paired_effect([1.0, 2.0, 3.5], [1.0, 1.5, 2.0])
    given = {"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5}
    found = holm({n: {**base, "p": p} for n, p in given.items()})
    assert {n: round(e["p_holm"], 6) for n, e in found.items()} == {
        **{"a": 0.09, "b": 0.04},
        **{"c": 0.09, "d": 0.5},
    }
    assert list(found) == list(given)


def make_result(harm_of_control: float) -> dict[str, Any]:
    random = np.random.default_rng(9)
    arms = make_arms((64,))
    quality = dict.fromkeys(
        *[("displacement", "repeated_pairs", "same_shard_pairs", "redshift_distance")], 1.0
    )
    cells = []
    for seed in range(6):
        for arm in arms:
            harm = harm_of_control if arm.name == "block-64-redshift" else 0.0
            value = 0.03 * (1 + harm) + 0.001 * random.normal()
            metrics = dict.fromkeys(policies.METRICS, value)
            cells.append(
                {"seed": seed, "arm": arm.name, **metrics}
                | {"quality": {**quality, "seen_by_rank": 1.0}}
            )
    return {
        "design": {"num_seeds": 6, "epochs": 4},
        "num_train": 100,
        "num_test": 50,
        "arms": policies.summarize(arms, cells),
    }


def test_the_report_says_harm_where_it_is_and_whether_the_study_could_see_any() -> None:
    seen = sentences_of(make_result(0.5))
    assert any(s.startswith("The control works") for s in seen)
    harmed = [s for s in seen if ": HARM;" in s]
    assert len(harmed) == 1
    assert harmed[0].startswith("block of 64, shards by redshift against shuffle")
    blind = sentences_of(make_result(0.0))
    assert any(s.startswith("THE CONTROL FAILED") for s in blind)
    assert not any(": HARM;" in s for s in blind)


def test_a_study_ends_with_a_report_and_resumes_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    design = policies.Design(
        num_objects=240, num_seeds=2, epochs=1, num_shards=4, buffers=(64,), data=None
    )
    arms = [ARMS[n] for n in ("shuffle", "shuffle-rank", "locality-rank", "block-64-redshift")]
    monkeypatch.setattr(policies, "make_arms", lambda buffers: arms)
    monkeypatch.setattr(policies, "design_of", lambda settings: design)
    monkeypatch.setattr(policies, "make_stamps", lambda *given: make_test_stamps(240))
    out = tmp_path / "out"
    assert main(["policies", "--out", str(out)]) == 0
    result = json.loads((out / "policies.json").read_text())
    cells = json.loads((out / "raw" / "policies.json").read_text())["cells"]
    assert len(cells) == 8
    assert "cells" not in result
    assert {c["num_steps"] for c in cells} == {-(-result["num_train"] // 64)}
    assert [a["name"] for a in result["arms"] if not a["effects"]] == ["shuffle", "shuffle-rank"]
    assert "Networks trained under each policy" in page(read_results(out))

    folder = out / "work" / f"policies-{design.label}"
    assert sorted(p.suffix for p in folder.iterdir() if p.is_dir()) == []
    kept, lost = folder / "seed-0-shuffle.json", folder / "seed-1-locality-rank.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    marked = {**json.loads(kept.read_text()), "nmad": 7.0}
    kept.write_text(json.dumps(marked))
    assert main(["policies", "--out", str(out)]) == 0
    again = json.loads((out / "raw" / "policies.json").read_text())["cells"]
    assert next(c for c in again if c["arm"] == "shuffle")["nmad"] == 7.0
    # Trained again, to the same bits: seed, data and one thread settle everything.
    assert json.loads(lost.read_text()) == before


def test_data_without_the_surveys_are_refused(
    tiny_source: Path, packed: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match="makes its stamps of panstarrs, galex, unwise"):
        make_stamps(packed(tiny_source), 10, 1)


def test_too_few_objects_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies", "--mock", "20", "--out", str(tmp_path)]) == 2
    assert "learns nothing from so few" in capsys.readouterr().err


def test_stamps_of_a_data_set_are_its_first_labelled_objects(galaxies: Path) -> None:
    stamps = make_stamps(galaxies, 55, 1)
    assert stamps.images.shape == (55, 9, SIZE, SIZE)
    train = np.sort(msdata.open(galaxies).split("train").numbers("redshift"))
    np.testing.assert_array_equal(np.sort(stamps.redshift[: len(train)]), train)
    assert np.isfinite(stamps.images).all()


def test_what_is_shown_has_a_row_per_arm() -> None:
    result = make_result(0.5)
    shown = show(result)
    assert [len(t.rows) for t in shown.tables] == [len(result["arms"])] * 2
    assert all(value > 0 for value in shown.charts[0].series[0].least)
