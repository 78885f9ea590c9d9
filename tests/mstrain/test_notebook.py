"""The package's functions as a notebook calls them: one process, nothing left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import training

import msdata
import mstrain
from msdata.errors import UsageError
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.overrides import apply_overrides
from mstrain.training.metrics_log import read_journal

# Of the cache, whose file in shared memory has it in its name.
JOB = f"notebook{os.getpid()}"
NAMES = ("train", "evaluate", "predict")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, packed: Callable[..., Path]) -> Path:
    source = training.make_source(tmp_path_factory.mktemp("notebook"))
    return packed(source, "--split", "0.5,0.1,0.4")


@pytest.fixture(scope="module")
def config() -> mstrain.TrainConfig:
    """Two epochs of a tiny network, with one thread of torch."""
    settings = {**training.SETTINGS, "epochs": "2"}
    return apply_overrides(
        mstrain.RECIPES["demo"](), [f"{name}={value}" for name, value in settings.items()]
    )


@pytest.fixture(scope="module")
def result(data: Path, config: mstrain.TrainConfig, tmp_path_factory: pytest.TempPathFactory):
    run = tmp_path_factory.mktemp("runs") / "run"
    return mstrain.train(config, msdata.open(data), run, is_quiet=True)


def state_of_the_process() -> dict[str, object]:
    """What a call must leave as it was."""
    return {
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "process group": torch.distributed.is_initialized(),
        "torch's threads": torch.get_num_threads(),
        "torch's random state": hashlib.sha256(torch.get_rng_state().numpy()).hexdigest(),
        "numpy's random state": hashlib.sha256(np.random.get_state()[1]).hexdigest(),
        "shared memory": [p for p in Path("/dev/shm").iterdir() if JOB in p.name],
    }


@pytest.mark.parametrize("cache_gib", [0.0, 0.05])
def test_a_notebook_trains_evaluates_predicts_and_loads_twice_and_leaves_nothing_behind(
    data: Path,
    config: mstrain.TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cache_gib: float,
) -> None:
    data_config = dataclasses.replace(config.data, cache_gib=cache_gib, cache_job=JOB)
    config = dataclasses.replace(config, data=data_config)
    before = state_of_the_process()
    found = []
    for run in (tmp_path / "first", tmp_path / "second"):
        trained = mstrain.train(config, msdata.open(data), run)
        assert "epoch 2/2" in capsys.readouterr().err
        evaluated = mstrain.evaluate(
            trained.run,
            data,
            split="test",
            has_report=False,
            is_quiet=True,
            bootstrap=BootstrapConfig(num_replicates=20),
        )
        table = mstrain.predict(
            str(run), str(data), tmp_path / f"{run.name}.parquet", columns=["ra"]
        )
        hits = [line["hits"] for line in read_journal(run) if line["kind"] == "epoch"]
        assert all(hits) if cache_gib else not any(hits)
        model, loaded = mstrain.load_model(run)
        assert isinstance(model, mstrain.RedshiftNet)
        assert loaded == config
        found.append((trained.best_validation_loss, evaluated.summary.as_dict(), table))
    assert found[0][:2] == found[1][:2]
    for left, right in zip(found[0][2].density_parts(), found[1][2].density_parts(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert state_of_the_process() == before


def test_the_result_of_a_training_is_that_of_its_journal(
    result, data: Path, config: mstrain.TrainConfig
) -> None:
    epochs = [line for line in read_journal(result.run) if line["kind"] == "epoch"]
    assert len(epochs) == 2
    assert result.best_validation_loss == min(line["validation_loss"] for line in epochs)
    assert result.num_steps == epochs[-1]["step"]
    # A finished run is left as it is.
    files = sorted((p, p.stat().st_mtime_ns) for p in result.run.rglob("*.pt"))
    assert mstrain.train(config, data, str(result.run), is_quiet=True) == result
    assert sorted((p, p.stat().st_mtime_ns) for p in result.run.rglob("*.pt")) == files


def test_quiet_functions_print_nothing(
    data: Path, config: mstrain.TrainConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mstrain.train(config, data, tmp_path / "run", is_quiet=True)
    mstrain.predict(tmp_path / "run", data, tmp_path / "p.parquet", is_quiet=True)
    assert capfd.readouterr() == ("", "")


def test_predictions_cover_all_splits_with_the_columns_asked_for(
    result, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "p.parquet"
    found = mstrain.predict(result.run, data, out, columns=("ra", "dec"), is_quiet=True)
    opened = msdata.open(data)
    assert len(found) == sum(len(opened.split(name)) for name in opened.splits) == 60
    np.testing.assert_array_equal(
        found.columns["ra"],
        np.concatenate(
            [opened.split(name).numbers("ra") for name in dict.fromkeys(found.columns["split"])]
        ),
    )
    again = mstrain.read_predictions(str(out))
    np.testing.assert_array_equal(again.densities_of([3, 7]), found.densities_of([3, 7]))


def test_an_evaluation_says_where_its_files_are(result, data: Path, tmp_path: Path) -> None:
    found = mstrain.evaluate(result.run, msdata.open(data), tmp_path / "out", is_quiet=True)
    assert found.report is not None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (found.report, found.metrics, found.predictions)
    )
    assert found.summary.num_samples == len(msdata.open(data).split("test"))


def test_what_is_wrong_is_an_exception_and_leaves_the_process_as_it_was(
    result, data: Path, config: mstrain.TrainConfig, tmp_path: Path, monkeypatch
) -> None:
    before = state_of_the_process()
    other = dataclasses.replace(config, seed=7)
    with pytest.raises(UsageError, match=r"seed=0, now it is 7"):
        mstrain.train(other, data, result.run, is_quiet=True)
    with pytest.raises(UsageError, match=r"is not a run: config\.json not found"):
        mstrain.evaluate(tmp_path, data)
    with pytest.raises(TypeError, match="splot"):
        mstrain.evaluate(result.run, data, splot="val")
    with pytest.raises(UsageError, match=r"must end in \.parquet, got .*p\.csv"):
        mstrain.predict(result.run, data, tmp_path / "p.csv")
    with pytest.raises(UsageError, match="neither 'best' nor 'last'"):
        mstrain.predict(result.run, data, tmp_path / "p.parquet", checkpoint="newest")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="one process, got rank 1 of 2; start ranks with torchrun"):
        mstrain.train(config, data, tmp_path / "ranks")
    assert not (tmp_path / "ranks").exists()
    assert state_of_the_process() == before


def test_a_training_that_is_interrupted_resumes_with_the_same_call(
    data: Path, config: mstrain.TrainConfig, result, tmp_path: Path, monkeypatch
) -> None:
    from mstrain.training import trainer

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = state_of_the_process()
    end_epoch = trainer.Trainer._end_epoch
    with monkeypatch.context() as patched:
        patched.setattr(
            trainer.Trainer,
            "_end_epoch",
            lambda self, values, progress: (
                interrupt() if progress.validated else end_epoch(self, values, progress)
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            mstrain.train(config, data, tmp_path / "run", is_quiet=True)
    assert state_of_the_process() == before
    again = mstrain.train(config, data, tmp_path / "run", is_quiet=True)
    assert again.best_validation_loss == result.best_validation_loss
    assert again.num_steps == result.num_steps


def test_functions_win_over_the_modules_of_their_names_which_run_as_commands() -> None:
    code = f"""
import contextlib, io, runpy, sys
import mstrain
assert "torch" not in sys.modules
assert set(mstrain.__all__) <= set(dir(mstrain))
assert "torch" not in sys.modules
import mstrain.training.command, mstrain.evaluation.command, mstrain.serving.predict_command
for name in {NAMES!r}:
    function = getattr(mstrain, name)
    assert callable(function), name
    try:
        __import__("mstrain." + name)
    except ImportError as error:
        assert f"mstrain.{{name}} is a function" in str(error)
    else:
        raise AssertionError(name)
    sys.argv, said = [name, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_module("mstrain." + name, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert ended.code == 0
    assert f"usage: mstrain {{name}}" in said.getvalue()
    assert getattr(mstrain, name) is function
from mstrain import *
assert train is mstrain.train and "demo" in RECIPES
"""
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], check=True)
