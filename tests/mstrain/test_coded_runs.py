"""Training on a coded data set: to the bit that of its decoded pixels; resumed, predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import training

import msdata
from mstrain.cli import main
from mstrain.training import trainer


def interrupt_second_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    end_epoch = trainer.Trainer._end_epoch

    def end_or_interrupt(self, values, progress) -> None:
        if progress.validated:
            raise KeyboardInterrupt
        end_epoch(self, values, progress)

    monkeypatch.setattr(trainer.Trainer, "_end_epoch", end_or_interrupt)


def test_a_run_on_codes_is_the_run_on_their_pixels_resumed_evaluated_and_predicted(
    galaxies: Path,
    packed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    coded = packed(galaxies, "--quantize", "4", "--compress", "lz4", "--format", "hdf5")
    pixels = packed(coded)
    assert msdata.open(coded).split("train").is_coded
    assert not msdata.open(pixels).split("train").is_coded
    words = training.words_of(coded, tmp_path / "coded", epochs=2)
    with monkeypatch.context() as patch:
        interrupt_second_epoch(patch)
        assert main(words) == 130
    capsys.readouterr()
    assert main(words) == 0
    assert "resuming after step" in capsys.readouterr().err
    assert main(training.words_of(pixels, tmp_path / "pixels", epochs=2)) == 0
    found, wanted = (training.losses(tmp_path / name) for name in ("coded", "pixels"))
    assert len(wanted) == 10
    np.testing.assert_array_equal(found, wanted)
    tables = []
    for name, data in (("coded", coded), ("pixels", pixels)):
        run, out = str(tmp_path / name), tmp_path / f"{name}-out"
        shown = ("--split", "val", "--no-report", "--replicates", "20")
        assert main(["evaluate", run, str(data), "--out", str(out), *shown]) == 0
        assert main(["predict", run, str(data), str(out / "all.parquet")]) == 0
        tables.append([pq.read_table(path) for path in sorted(out.glob("*.parquet"))])
    assert [table.num_rows for table in tables[0]] == [60, 11]
    for left, right in zip(*tables, strict=True):
        assert left.equals(right)
