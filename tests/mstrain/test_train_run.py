"""One rank's training: what it leaves, what it refuses, what stays equal however it is computed."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import torch
import training

import msdata
from msdata.errors import DataError, StorageError, UsageError
from mstrain import cli
from mstrain.data.batches import Prefetcher, evaluation_batches
from mstrain.training.checkpoint import (
    find_last,
    load_model,
    locked_run,
    read_checkpoint,
    save_checkpoint,
)
from mstrain.training.metrics_log import read_journal

# In the test's own process, whose exit code and words are looked at.
PLAIN = {"epochs": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(data: Path, out: Path, **settings: Any) -> int:
    return cli.main(training.words_of(data, out, **{**PLAIN, **settings}))


def refuse(capsys: pytest.CaptureFixture[str], code: int, *says: str) -> None:
    """The last line of stderr is one sentence of `mstrain train`."""
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("mstrain train: "), lines
    assert not any(line.startswith("mstrain train: ") for line in lines[:-1]), lines
    for words in says:
        assert words in lines[-1]
    assert code in (1, 2)


@pytest.fixture(scope="module")
def trained(galaxies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert train(galaxies, out, tensorboard="yes") == 0
    return out


def test_a_run_leaves_config_checkpoints_journal_and_curves(galaxies: Path, trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["config"]["recipe"] == "demo"
    assert config["config"]["model"]["width"] == 8
    assert config["fingerprint"] == msdata.open(galaxies).manifest.fingerprint
    folder = trained / "checkpoints"
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["best.pt", "last", "step-00000010.pt"]
    assert json.loads((folder / "last").read_text())["file"] == "step-00000010.pt"
    assert list((trained / "tensorboard").iterdir())
    lines = read_journal(trained)
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 11))
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [0, 1]
    best = min(epochs, key=lambda line: line["validation_loss"])
    assert best["is_best"]
    assert read_checkpoint(folder / "best.pt")["progress"]["best_loss"] == best["validation_loss"]
    for line in lines:
        assert line["samples_per_s"] > 0
        assert 0 <= line["data_wait_fraction"] <= 1


def test_a_trained_network_takes_the_evaluations_batches(galaxies: Path, trained: Path) -> None:
    model, config = load_model(trained)
    data = msdata.open(galaxies)
    batches = list(evaluation_batches(data, "val", config))
    ids = [str(i) for batch in batches for i in batch.sample_id]
    assert sorted(ids) == sorted(data.split("val").table(["sample_id"]).column(0).to_pylist())
    for batch in batches:
        logits = model(batch.images, batch.ebv)
        assert logits.shape == (len(batch), 16)
        assert not logits.requires_grad
    again = list(evaluation_batches(data, "val", config))
    for left, right in zip(batches, again, strict=True):
        assert torch.equal(left.images["image"], right.images["image"])


def test_the_best_weights_have_the_validation_loss_of_the_journal(
    galaxies: Path, trained: Path
) -> None:
    model, config = load_model(trained)
    wanted = read_checkpoint(trained / "checkpoints" / "best.pt")["progress"]["best_loss"]
    total = count = 0.0
    for batch in evaluation_batches(msdata.open(galaxies), "val", config):
        number = (batch.redshift / 0.1).long()
        logits = model(batch.images, batch.ebv)
        total += float(torch.nn.functional.cross_entropy(logits, number, reduction="sum"))
        count += len(batch)
    assert total / count == pytest.approx(wanted, rel=1e-5)


def test_gradient_accumulation_gives_the_losses_of_whole_batches(
    galaxies: Path, tmp_path: Path
) -> None:
    options = {"norm": "group", "weighting": "inverse_count", "learning_rate": "1e-3"}
    assert train(galaxies, tmp_path / "whole", **options) == 0
    assert train(galaxies, tmp_path / "parts", **options, accumulate=3) == 0
    whole, parts = training.losses(tmp_path / "whole"), training.losses(tmp_path / "parts")
    assert len(whole) == 10
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_is_near_float32(galaxies: Path, tmp_path: Path, precision: str) -> None:
    options = {"epochs": 1, "learning_rate": "1e-4"}
    assert train(galaxies, tmp_path / "float32", **options) == 0
    assert train(galaxies, tmp_path / precision, **options, precision=precision) == 0
    found = training.losses(tmp_path / precision)
    wanted = training.losses(tmp_path / "float32")
    np.testing.assert_allclose(found, wanted, rtol=0.02)
    assert (found != wanted).any()


def test_a_run_with_a_batch_per_gpu_keeps_what_it_came_to_and_resumes(
    galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"epochs": 1, "batch_per_gpu": 3, "learning_rate": "1e-3"}
    assert train(galaxies, tmp_path / "run", **options) == 0
    said = capsys.readouterr().err
    assert "17 steps, 1 rank(s) on cpu, 3 samples per step at rate 0.0005" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["batch_size"], config["batch_per_gpu"]) == (3, None)
    assert config["optim"]["learning_rate"] == pytest.approx(5e-4)
    assert train(galaxies, tmp_path / "run", **options) == 0
    assert "is finished, all 1 epochs of it" in capsys.readouterr().err


def test_late_fusion_trains(galaxies: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "fusion": "late", "crops": '{"panstarrs": 40}'}
    assert train(galaxies, tmp_path / "run", **options) == 0
    model, _ = load_model(tmp_path / "run", "last")
    assert set(model.encoders) == {"panstarrs", "galex", "unwise"}


def test_hits_of_the_cache_are_those_forecast(galaxies: Path, tmp_path: Path) -> None:
    split = msdata.open(galaxies).split("train")
    half = len(split) // 2 * split.sample_nbytes / 2**30
    drawn = {"weighting": "inverse_count", "weights_in": "sampler", "weight_bins": 5}
    for gib, name in ((1.0, "all"), (half, "half"), (half, "drawn")):
        options = {"epochs": 3, "data__cache_gib": gib, "data__cache_job": f"test-{name}"}
        options |= drawn if name == "drawn" else {}
        assert train(galaxies, tmp_path / name, **options) == 0
        epochs = [line for line in read_journal(tmp_path / name) if line["kind"] == "epoch"]
        assert epochs[-1]["hits"] == epochs[-1]["forecast_hits"]
    assert epochs[-1]["hit_rate"] < 1


def test_a_network_without_ebv_and_a_data_set_without_validation_train(
    galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(galaxies, tmp_path / "run", epochs=1, ebv_column="none", ema_decay=0) == 0
    load_model(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        ({"batch_size": 7, "accumulate": 2}, 2, "batch_size=7 does not divide into 1 rank(s)"),
        ({"ebv_column": "dust"}, 2, "has no column 'dust'"),
        ({"z_max": 0.001}, 1, "no sample of split 'train' has a redshift in [0, 0.001]"),
        ({"device": "cuda"}, 2, "GPU"),
        ({"policy": "locality"}, 2, "data.policy=locality needs a cache"),
        ({"learning_rate": "1e30", "clip_norm": "0"}, 1, "the training has diverged"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_sentence(
    galaxies: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    code: int,
    says: str,
) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert train(galaxies, tmp_path / "run", **settings) == code
    refuse(capsys, code, says)


def test_a_run_of_other_settings_or_data_is_not_gone_on_with(
    galaxies: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = packing.content(trained / "checkpoints")
    assert train(galaxies, trained, width=4) == 2
    refuse(capsys, 2, "holds a run with model.width=8, now it is 4", "another --out")
    assert packing.content(trained / "checkpoints") == before
    other = tmp_path / "run"
    shutil.copytree(trained, other)
    config = (other / "config.json").read_text()
    fingerprint = msdata.open(galaxies).manifest.fingerprint
    (other / "config.json").write_text(config.replace(fingerprint, "0" * 16))
    assert train(galaxies, other, tensorboard="yes") == 2
    refuse(capsys, 2, f"was trained on data set {'0' * 16}", f"this one is {fingerprint}")


def test_a_second_training_is_kept_out_of_a_run(
    galaxies: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mstrain.training.checkpoint._LOCK_PATIENCE_S", 0.1)
    with locked_run(tmp_path / "run"):
        assert train(galaxies, tmp_path / "run") == 2
    refuse(capsys, 2, "another training writes to")


STATE = {"weights": torch.arange(6.0), "progress": {"step": 1}}


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    with locked_run(tmp_path):
        for step in (5, 9, 12, 100):
            path = save_checkpoint(tmp_path, STATE, step=step, keep=2)
            assert find_last(tmp_path) == path
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["last", "step-00000012.pt", "step-00000100.pt"]


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked_run(tmp_path):
        first = save_checkpoint(tmp_path, STATE, step=1, keep=1)

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            save_checkpoint(tmp_path, STATE, step=2, keep=1)
    monkeypatch.undo()
    assert find_last(tmp_path) == first
    assert torch.equal(read_checkpoint(first)["weights"], STATE["weights"])
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


class Evil:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/evil"),))


@pytest.mark.parametrize("kind", ["truncated", "pickled", "empty", "text"])
def test_a_damaged_or_foreign_checkpoint_is_refused_and_nothing_in_it_is_run(
    tmp_path: Path, kind: str
) -> None:
    with locked_run(tmp_path):
        path = save_checkpoint(tmp_path, STATE, step=1, keep=1)
    content = {
        "truncated": path.read_bytes()[:-100],
        "pickled": pickle.dumps(Evil()),
        "empty": b"",
        "text": b"hello\n",
    }[kind]
    path.write_bytes(content)
    with pytest.raises(DataError, match="is corrupt or not a checkpoint") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "remove it" in str(caught.value)


def test_a_run_without_checkpoints_says_what_is_wanted(tmp_path: Path) -> None:
    for which in ("best", "last"):
        with pytest.raises(UsageError, match=f"has no {which} checkpoint"):
            load_model(tmp_path, which)
    with pytest.raises(UsageError, match="neither 'best' nor 'last'"):
        load_model(tmp_path, "newest")


def test_a_checkpoint_that_last_names_and_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with locked_run(tmp_path):
        save_checkpoint(tmp_path, STATE, step=1, keep=2)
        save_checkpoint(tmp_path, STATE, step=2, keep=2).unlink()
    with pytest.raises(DataError, match="which is missing"):
        find_last(tmp_path)


def test_what_fails_ahead_fails_where_it_is_asked_for() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield 1
            raise DataError("shard 3 is gone")
        finally:
            closed.append(True)

    with Prefetcher(items()) as ahead:
        assert next(ahead) == 1
        for _ in range(2):
            with pytest.raises(DataError, match="shard 3 is gone"):
                next(ahead)
    assert closed == [True]


def test_items_ahead_that_nobody_takes_do_not_hold_up_the_end() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    with Prefetcher(items()) as ahead:
        assert next(ahead) == 0
    assert closed == [True]
