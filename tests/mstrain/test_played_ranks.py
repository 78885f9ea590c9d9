"""Played ranks make the steps of real ones, and leave a run that is evaluated as any other."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training

import msdata
import mstrain
from msdata.topology import Topology
from mstrain.config import TrainConfig
from mstrain.overrides import apply_overrides
from mstrain.study.played import PlayedRanks, train_played
from mstrain.training.checkpoint import find_last, locked_run, read_checkpoint, read_config


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
    path = find_last(run)
    assert path is not None
    wanted = read_checkpoint(path)["model"]
    names = [n for n in found if n.endswith(("running_mean", "running_var"))]
    assert names
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name].numpy(), rtol=2e-2, atol=1e-3)


def make_config(**settings: str) -> TrainConfig:
    given = {**training.SETTINGS, "epochs": "2", **settings}
    return apply_overrides(mstrain.RECIPES["demo"](), [f"{n}={v}" for n, v in given.items()])


@pytest.mark.parametrize("policy", ["locality", "partition"])
def test_orders_that_deal_by_rank_take_each_sample_once(
    policy: str, galaxies: Path, tmp_path: Path
) -> None:
    batches = {}
    for name in ("shuffle", policy):
        config = make_config(policy=name, cache_gib="0.05" if name == "locality" else "0")
        with PlayedRanks(
            split=msdata.open(galaxies).split("train"),
            config=config,
            topology=Topology(num_nodes=2, ranks_per_node=1, rank=0),
            scratch=tmp_path / name,
        ) as played:
            batches[name] = [[p.sample_id.tolist() for p in b] for b in played.global_batches()]
    assert len(batches["shuffle"]) == 10
    own = [set(chain.from_iterable(parts[rank] for parts in batches[policy])) for rank in (0, 1)]
    assert len(own[0] | own[1]) == len(msdata.open(galaxies).split("train"))
    for shuffled, dealt in zip(batches["shuffle"], batches[policy], strict=True):
        assert [len(part) for part in shuffled] == [len(part) for part in dealt]
        if policy == "locality":
            assert sorted(chain.from_iterable(shuffled)) == sorted(chain.from_iterable(dealt))
    assert bool(own[0] & own[1]) == (policy == "locality")


def test_a_played_training_leaves_a_run_of_its_last_weights(galaxies: Path, tmp_path: Path) -> None:
    config = make_config(policy="partition", fraction="0.5", weighting="inverse_count")
    with locked_run(tmp_path / "run"):
        train_played(config, msdata.open(galaxies), tmp_path / "run", 2)
    saved = find_last(tmp_path / "run")
    assert saved is not None
    num_train = round(len(msdata.open(galaxies).split("train")) / 2)
    assert read_checkpoint(saved)["progress"]["step"] == 2 * -(-num_train // 12)
    found = mstrain.evaluate(
        tmp_path / "run", galaxies, split="val", has_report=False, is_quiet=True
    )
    assert found.summary.num_samples == len(msdata.open(galaxies).split("val"))
