"""Training on several ranks, as real processes: the same run as on one."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import torch
import training
from torch import nn

import mstrain
from mstrain.overrides import apply_overrides
from mstrain.training.checkpoint import checkpoint_path, read_checkpoint

# Samples of each rank; fewer ranks than three are a group of them.
NORM_CASES = ("5,0,2", "4,4", "0,6")


@pytest.fixture(scope="module")
def norm_outputs() -> list[list[Any]]:
    """What each of three ranks has found in each case that it takes part in."""
    program = Path(__file__).parents[1].joinpath("support", "norm_ranks.py")
    words = [sys.executable, str(program), *NORM_CASES]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(training.free_port())}
    place |= {"WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
    processes = [
        packing.start(words, packing.environment(**place, RANK=str(rank))) for rank in range(3)
    ]
    outputs = [p.communicate(timeout=packing.TIMEOUT_S) for p in processes]
    assert [p.returncode for p in processes] == [0] * 3, outputs
    return [json.loads(stdout) for stdout, _ in outputs]


@pytest.mark.parametrize("case", range(len(NORM_CASES)), ids=NORM_CASES)
def test_batch_norm_over_ranks_is_batch_norm_of_the_whole_batch(
    case: int, norm_outputs: list[list[Any]]
) -> None:
    parts = [int(n) for n in NORM_CASES[case].split(",")]
    ranks = [norm_outputs[rank][case] for rank in range(len(parts))]
    norm = nn.BatchNorm2d(5, momentum=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    for step in "01":
        whole = (torch.randn(sum(parts), 5, 4, 3) * 3 + 7).requires_grad_()
        weights = torch.randn(sum(parts), 5, 4, 3)
        norm.zero_grad()
        result = norm(whole)
        (result * weights).sum().backward()
        for name, wanted in (("result", result), ("gradient", whole.grad)):
            found = [sample for rank in ranks for sample in rank[step][name]]
            np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
        wanted = torch.cat([norm.weight.grad, norm.bias.grad]).numpy()
        for rank in ranks:
            np.testing.assert_allclose(rank[step]["parameters"], wanted, rtol=1e-4, atol=1e-4)
    for rank in ranks:
        np.testing.assert_allclose(rank["buffers"][0], norm.running_mean.numpy(), rtol=1e-5)
        np.testing.assert_allclose(rank["buffers"][1], norm.running_var.numpy(), rtol=1e-5)
        assert rank["buffers"][2] == 2


def test_losses_are_equal_on_one_two_and_four_ranks(
    galaxies: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    # 51 samples in batches of 12: the last has 3, so that one rank of four has none.
    options = {"epochs": 5, "weighting": "inverse_count", "label_smoothing": "0.1"}
    found = {}
    for num_ranks in (1, 2, 4):
        out = tmp_path / str(num_ranks)
        ranks.run(training.words_of(galaxies, out, **options), num_ranks)
        found[num_ranks] = training.losses(out)
        assert len(found[num_ranks]) >= 20
    for num_ranks in (2, 4):
        np.testing.assert_allclose(found[num_ranks][:20], found[1][:20], rtol=1e-5)
    # Something was learned meanwhile: equal they would be of a network that stands still, too.
    assert found[1].std() > 0.01


def test_a_run_that_draws_by_weights_is_the_same_on_two_ranks_and_after_a_stop(
    galaxies: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    options = {"weighting": "inverse_count", "weights_in": "sampler", "weight_bins": "5"}
    for num_ranks in (1, 2):
        out = tmp_path / str(num_ranks)
        ranks.run(training.words_of(galaxies, out, **options), num_ranks)
    wanted = training.losses(tmp_path / "1")
    assert wanted.std() > 0.01
    np.testing.assert_allclose(training.losses(tmp_path / "2"), wanted, rtol=1e-4)
    # Another order than that of weights in the loss, and than that of another seed.
    ranks.run(training.words_of(galaxies, tmp_path / "loss", weighting="inverse_count"))
    assert abs(training.losses(tmp_path / "loss")[0] - wanted[0]) > 1e-4

    out = tmp_path / "stopped"
    words = training.words_of(galaxies, out, **{**options, "checkpoint.every_steps": 1})
    (rank,) = started = ranks.start(words)
    assert packing.wait_for(lambda: len(training.losses(out)) >= 3, rank.process)
    rank.process.kill()
    assert ranks.end(started)[0] == [None]
    ranks.run(words, 2)
    np.testing.assert_allclose(training.losses(out), wanted, rtol=1e-4)


def test_frozen_layers_stay_bit_for_bit_and_move_afterwards_on_one_rank_and_on_two(
    galaxies: Path, weighted_run: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    source, _ = mstrain.load_model(weighted_run)
    options = {"freeze_epochs": 1, "epochs": 2, "layer_decay": 0.7, "checkpoint.keep": 2}
    runs = [tmp_path / "one", tmp_path / "two"]
    words = training.words_of(galaxies, runs[1], **options)
    said = ranks.run([*words, "--init", str(weighted_run)], 2)
    assert said.count("started from") == 1
    config = apply_overrides(mstrain.RECIPES["demo"](), words[5:])
    mstrain.train(config, galaxies, runs[0], init=weighted_run, is_quiet=True)
    for out in runs:
        frozen, free = (
            read_checkpoint(checkpoint_path(out, f"step-{step:08d}"))["model"] for step in (5, 10)
        )
        for name, start in source.state_dict().items():
            assert torch.equal(frozen[name], start) != name.startswith("head."), name
            assert not torch.equal(free[name], frozen[name]), name
    losses = [training.losses(out) for out in runs]
    assert len(losses[0]) == 10
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_under_nccl_ends_at_once_with_its_message_and_so_do_its_peers(
    galaxies: Path, tmp_path: Path, failing: int
) -> None:
    program = Path(__file__).parents[1] / "support" / "nccl_like_rank.py"
    words = [sys.executable, str(program), str(failing)]
    words += training.words_of(galaxies, tmp_path / "run")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(training.free_port())}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        packing.start(words, packing.environment(**place, RANK=str(rank))) for rank in range(2)
    ]
    ended_s, outputs = {}, {}
    for rank in (failing, 1 - failing):
        outputs[rank] = processes[rank].communicate(timeout=packing.TIMEOUT_S)
        ended_s[rank] = time.time()
    failed_s = float(outputs[failing][0])
    assert all(end_s - failed_s < 5 for end_s in ended_s.values())
    assert [p.returncode for p in processes] == [1, 1]
    assert f"mstrain: rank {failing}: shard 3 is corrupt\n" in outputs[failing][1]
    assert f"mstrain: rank {1 - failing}: rank {1 - failing} lost" in outputs[1 - failing][1]
