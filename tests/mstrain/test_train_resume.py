"""A training that is stopped or killed at any moment ends as if nothing had happened."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import packing
import pytest
import torch
import training

from mstrain import REQUEUE_EXIT_CODE
from mstrain.training.checkpoint import checkpoint_path, read_checkpoint
from mstrain.training.metrics_log import read_journal

# 5 steps an epoch: enough to be caught in the middle.
LONG = {"epochs": 12, "checkpoint.every_steps": 2}
NUM_STEPS = 60


@pytest.fixture(scope="module")
def undisturbed(
    galaxies: Path, ranks: training.Ranks, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Gives the run of so many ranks that nothing has happened to."""
    runs: dict[int, Path] = {}

    def run_once(num_ranks: int) -> Path:
        if num_ranks not in runs:
            runs[num_ranks] = tmp_path_factory.mktemp("undisturbed") / "run"
            ranks.run(training.words_of(galaxies, runs[num_ranks], **LONG), num_ranks)
        return runs[num_ranks]

    return run_once


def has_steps(run: Path, count: int) -> Callable[[], bool]:
    return lambda: len(training.losses(run)) >= count


def assert_same_tensors(found: dict, wanted: dict, path: str = "") -> None:
    """Bit for bit, all the way down."""
    assert type(found) is type(wanted), path
    if isinstance(found, dict):
        assert found.keys() == wanted.keys(), path
        for name in found:
            assert_same_tensors(found[name], wanted[name], f"{path}.{name}")
    elif isinstance(found, list):
        assert len(found) == len(wanted), path
        for number, pair in enumerate(zip(found, wanted, strict=True)):
            assert_same_tensors(*pair, f"{path}[{number}]")
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, wanted), path
    else:
        assert found == wanted, path


def assert_same_run(found: Path, wanted: Path) -> None:
    """Checkpoints bit for bit, and journals but for their times."""
    for which in ("best", "last"):
        left = read_checkpoint(checkpoint_path(found, which))
        right = read_checkpoint(checkpoint_path(wanted, which))
        assert_same_tensors(left, right)
    timed = ("seconds", "samples_per_s", "data_wait_fraction")
    journals = [
        [{k: v for k, v in line.items() if k not in timed} for line in read_journal(run)]
        for run in (found, wanted)
    ]
    assert journals[0] == journals[1]


def test_a_run_asked_to_stop_and_later_killed_ends_bit_for_bit_as_if_undisturbed(
    galaxies: Path, ranks: training.Ranks, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = training.words_of(galaxies, out, **LONG)
    (rank,) = started = ranks.start(words)
    assert packing.wait_for(has_steps(out, 7), rank.process)
    rank.process.send_signal(signal.SIGUSR1)
    codes, said = ranks.end(started)
    assert codes == [REQUEUE_EXIT_CODE], said
    assert "stopped as asked" in said
    stopped_at = read_checkpoint(checkpoint_path(out, "last"))["progress"]["step"]
    assert 7 <= stopped_at < NUM_STEPS

    (rank,) = started = ranks.start(words)
    assert packing.wait_for(has_steps(out, stopped_at + 5), rank.process)
    rank.process.kill()
    assert ranks.end(started)[0] == [None]

    assert "resuming after step" in ranks.run(words)
    assert_same_run(out, undisturbed(1))
    # Nothing is left to do.
    assert "is finished, all 12 epochs" in ranks.run(words)
    assert_same_run(out, undisturbed(1))


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_on_any_number_of_ranks(
    galaxies: Path, ranks: training.Ranks, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    out, alone = tmp_path / "run", tmp_path / "alone"
    words = training.words_of(galaxies, out, **LONG)
    started = ranks.start(words, 2)
    assert packing.wait_for(has_steps(out, 8), started[0].process)
    started[1].process.send_signal(signal.SIGTERM)
    codes, said = ranks.end(started)
    assert codes == [REQUEUE_EXIT_CODE] * 2, said
    shutil.copytree(out, alone)
    ranks.run(words, 2)
    assert_same_run(out, undisturbed(2))

    ranks.run(training.words_of(galaxies, alone, **LONG))
    wanted = training.losses(undisturbed(1))
    assert len(wanted) == NUM_STEPS
    np.testing.assert_allclose(training.losses(alone), wanted, rtol=1e-3)


def test_a_lost_rank_ends_the_others_with_a_sentence(
    galaxies: Path, ranks: training.Ranks, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    started = ranks.start(training.words_of(galaxies, out, **{**LONG, "epochs": 400}), 2)
    assert packing.wait_for(has_steps(out, 3), started[0].process)
    started[1].process.kill()
    codes, said = ranks.end(started)
    assert codes == [1, None]
    assert "rank 0 lost another rank" in said
    assert "Traceback" not in said
