"""A training without a fold or without the samples of a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import training

import msdata
from mstrain.cli import main
from mstrain.config import DataConfig
from mstrain.data.left_out import fold_of, left_out
from mstrain.data.share import training_split
from mstrain.distributed import one_rank
from mstrain.evaluation.run_info import open_run
from mstrain.overrides import apply_overrides
from mstrain.recipes import RECIPES
from mstrain.training.cache_hits import HitCounter


def train(data: Path, out: Path, *words: str, **settings: str) -> int:
    return main([*training.words_of(data, out, epochs=1, **settings), *words])


@pytest.fixture
def suspects(galaxies: Path, tmp_path: Path) -> Path:
    """Two training ids, one of split val, two of no sample."""
    data = msdata.open(galaxies)
    ids = [data.split("train").sample_id(n) for n in (3, 40)] + [data.split("val").sample_id(0)]
    path = tmp_path / "suspects.csv"
    path.write_text("rank,sample_id\n" + "".join(f"1,{i}\n" for i in [*ids, "nobody", "no-one"]))
    return path


def test_folds_are_a_partition_that_depends_on_the_ids_alone(galaxies: Path) -> None:
    data = msdata.open(galaxies)
    masks = [left_out(data.split("train"), DataConfig(fold=f"{n}/5")).mask for n in range(5)]
    np.testing.assert_array_equal(np.sum(masks, axis=0), 1)
    ids = [f"{n:07d}" for n in range(20_000)]
    fold = fold_of(ids, 5)
    # Must never change: folds of one study are trained by several versions.
    assert fold[:3].tolist() == fold_of(ids[:3], 5).tolist() == [0, 3, 3]
    # Sizes as of independent draws.
    counts = np.bincount(fold, minlength=5)
    assert ((counts - 4000) ** 2 / 4000).sum() < 13.3  # 99 % of chi^2 with 4 degrees.


def test_a_run_leaves_a_list_out_says_so_records_it_and_resumes_with_it_alone(
    galaxies: Path, suspects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(galaxies, out, "--without", str(suspects)) == 0
    said = capsys.readouterr().err
    assert "2 samples left out; of its 5 ids 1 are in other splits" in said
    assert "and 2 are not in the data, such as 'nobody'" in said
    record = json.loads((out / "config.json").read_text())["left_out"]
    assert record["without"]["num_left_out"] == 2
    assert record["without"]["num_unknown"] == 2
    # Elsewhere and in another order it is the same list.
    moved = tmp_path / "moved.csv"
    rows = suspects.read_text().splitlines()
    moved.write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    words = training.words_of(galaxies, out, epochs=1)
    assert main([*words, "--without", str(moved)]) == 0
    assert main(words) == 2
    assert "now it is all samples: it cannot resume" in capsys.readouterr().err
    moved.write_text("sample_id\n" + rows[1].split(",")[1] + "\n")
    assert main([*words, "--without", str(moved)]) == 2
    assert "now it is all but the 1 samples of" in capsys.readouterr().err


def test_steps_prior_and_forecast_are_of_the_samples_that_are_kept(
    galaxies: Path, tmp_path: Path
) -> None:
    settings = [f"{n}={v}" for n, v in {**training.SETTINGS, "data.fold": "1/3"}.items()]
    config = apply_overrides(RECIPES["demo"](), settings)
    data = msdata.open(galaxies)
    split, is_left_out = training_split(data, config), left_out(data.split("train"), config.data)
    num_kept = int((~is_left_out.mask).sum())
    assert 0 < num_kept == len(split) < 49
    out = tmp_path / "run"
    assert train(galaxies, out, data__fold="1/3") == 0
    assert len(training.losses(out)) == -(-num_kept // 12)
    prior = open_run(out, "last").prior
    assert prior is not None
    assert int(prior.counts.sum()) == num_kept
    with one_rank("test", "cpu", 1) as ranks:
        owners = (np.zeros(len(split.shards), np.int32), np.zeros(len(split.shards), np.int8))
        counter = HitCounter(split=split, config=config, ranks=ranks, owners=owners)
        forecast = counter.forecast(1, has_peers=False)
    assert forecast == {"local": num_kept, "ssd": 0, "peer": 0, "storage": 0}


def test_what_is_no_list_of_samples_or_no_fold_is_refused(
    galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(text: str | None, **settings: str) -> str:
        path = tmp_path / "list.csv"
        if text is not None:
            path.write_text(text)
        words = () if settings else ("--without", str(path))
        assert train(galaxies, tmp_path / "run", *words, **settings) in (1, 2)
        return capsys.readouterr().err

    assert "list.csv" in said(None)
    assert "must have a column 'sample_id', got id" in said("id\n3\n")
    assert "none of them is; an id of the data is" in said("sample_id\nnobody\n")
    assert "must have at least one id, got none" in said("sample_id\n")
    every = msdata.open(galaxies).split("train").table(["sample_id"])["sample_id"].to_pylist()
    assert "nothing is left of split 'train'" in said("\n".join(["sample_id", *every]) + "\n")
    assert "must be a part such as 0/5, got '5'" in said("", data__fold="5")
    assert "must be from 0/5 to 4/5, got 5/5" in said("", data__fold="5/5")
    assert not (tmp_path / "run" / "config.json").exists()
