"""Checkpoints written beside the training: of one moment, whole, and their faults reported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import packing
import pytest
import torch
import training

from msdata.errors import StorageError
from msdata.topology import Topology
from mstrain import cli
from mstrain.distributed import Ranks
from mstrain.training import checkpoint
from mstrain.training.checkpoint import find_last, locked_run, read_checkpoint
from mstrain.training.checkpoint_writer import CheckpointWriter, host_copy

ALONE = Ranks(topology=Topology(), device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def a_state(step: int, value: float) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((3,), value)},
        "average": None,
        "optimizer": {"state": {0: {"step": torch.tensor(value)}}, "betas": (0.9, 0.99)},
        "progress": {"step": step},
    }


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Lets files be written once it is set."""
    opened, write = threading.Event(), checkpoint._write

    def when_open(path: Path, state: Any) -> None:
        assert opened.wait(packing.TIMEOUT_S)
        write(path, state)

    monkeypatch.setattr(checkpoint, "_write", when_open)
    return opened


def test_a_checkpoint_is_of_the_moment_at_which_it_was_asked_for(
    tmp_path: Path, gate: threading.Event
) -> None:
    state = a_state(1, 1.0)
    with locked_run(tmp_path), CheckpointWriter(tmp_path, ALONE, {"shapes": 2}, keep=2) as writer:
        writer.save(state, is_best=True)
        # The training goes on while nothing is written yet.
        state["model"]["weight"].fill_(7)
        state["optimizer"]["state"][0]["step"].fill_(7)
        assert find_last(tmp_path) is None
        gate.set()
    found = read_checkpoint(find_last(tmp_path))
    assert found["model"]["weight"].tolist() == [1, 1, 1]
    assert found["optimizer"]["state"][0]["step"] == 1
    assert found["optimizer"]["betas"] == (0.9, 0.99)
    best = read_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert best.keys() == {"format_version", "versions", "model", "average", "progress", "shapes"}
    assert best["model"]["weight"].tolist() == [1, 1, 1]


def test_a_copy_shares_nothing_with_the_state() -> None:
    state = a_state(1, 1.0)
    copy = host_copy(state)
    state["model"]["weight"].zero_()
    assert copy["model"]["weight"].tolist() == [1, 1, 1]
    assert copy["progress"] == {"step": 1}


def test_a_write_that_fails_is_raised_by_what_is_asked_next_and_the_former_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked_run(tmp_path), CheckpointWriter(tmp_path, ALONE, {}, keep=1) as writer:
        writer.save(a_state(1, 1.0), is_best=False)
        writer.settle()
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full_disk)
            writer.save(a_state(2, 2.0), is_best=False)
            with pytest.raises(StorageError, match="the disk is full"):
                writer.save(a_state(3, 3.0), is_best=False)
        writer.settle()
    assert read_checkpoint(find_last(tmp_path))["progress"]["step"] == 1


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_steps_are_made_while_a_slow_disk_writes(
    galaxies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, steps = tmp_path / "run", checkpoint._write, []

    def slow(path: Path, state: Any) -> None:
        # The first checkpoint, after step 2, is written once step 3 is made.
        if not steps:
            assert packing.wait_for(lambda: len(training.losses(out)) >= 3)
        steps.append(state["progress"]["step"])
        write(path, state)

    monkeypatch.setattr(checkpoint, "_write", slow)
    words = training.words_of(galaxies, out, epochs=1, **{"checkpoint.every_steps": 2})
    assert cli.main(words) == 0
    assert steps == [2, 4, 5, 5]
    assert read_checkpoint(find_last(out))["progress"]["step"] == 5


def test_a_training_whose_last_checkpoint_cannot_be_written_fails(
    galaxies: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = checkpoint.save_checkpoint

    def fails_at_the_end(*args: Any, step: int, **options: Any) -> Path:
        if step == 5:
            raise StorageError("cannot write it: the disk is full")
        return save(*args, step=step, **options)

    writer = "mstrain.training.checkpoint_writer.save_checkpoint"
    monkeypatch.setattr(writer, fails_at_the_end)
    out = tmp_path / "run"
    words = training.words_of(galaxies, out, epochs=1, **{"checkpoint.every_steps": 3})
    assert cli.main(words) == 1
    assert capsys.readouterr().err.endswith("train: cannot write it: the disk is full\n")
    assert read_checkpoint(find_last(out))["progress"]["step"] == 3
