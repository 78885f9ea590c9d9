"""The Python of README.md runs as it stands there, on a small data set and a short training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training

import msdata
import msdata.cli
import mstrain.cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)

# Begin of a block -> why it cannot run here.
NOT_RUN = {
    "webdataset.WebDataset(": "its paths are elided; test_interoperation.py reads shards so",
}
# What stands for a cluster's node.
SMALLER = {"memory_gib=400": "memory_gib=0.01", "ssd_gib=1500": "ssd_gib=0.01"}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, packed: Callable[..., Path], ranks: training.Ranks
) -> Path:
    """A folder with DATA, its statistics, and RUN, trained and evaluated."""
    folder = tmp_path_factory.mktemp("readme")
    source = training.make_source(tmp_path_factory.mktemp("shown"))
    data = packed(source, "--split", "0.5,0.1,0.4", "--max-nan-fraction", "1")
    (folder / "DATA").symlink_to(data)
    run = folder / "RUN"
    assert msdata.cli.main(["stats", str(data), "--quiet"]) == 0
    ranks.run(training.words_of(data, run, epochs="1"))
    options = ("--split", "test", "--no-report", "--replicates", "20", "--quiet")
    assert mstrain.cli.main(["evaluate", str(run), str(data), *options]) == 0
    return folder


def test_python_blocks_run_in_the_order_of_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    num_run = 0
    for block in BLOCKS:
        if any(block.startswith(begin) for begin in NOT_RUN):
            continue
        if "load_model" in block:
            names |= {"images": torch.zeros(2, 9, 24, 24), "ebv": torch.zeros(2)}
        if "CacheConfig" in block:
            names["split"] = msdata.open("DATA").split("train")
        text = block.replace("/local/scratch", str(tmp_path))
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        exec(compile(text, "README.md", "exec"), names)
        num_run += 1
        loader = names.get("loader")
    assert num_run == len(BLOCKS) - len(NOT_RUN) >= 5
    assert names["logits"].shape == (2, 16)
    assert len(names["found"].columns["z_mean"]) == len(names["data"].split("test"))
    assert loader is not None
    loader.close()


def test_blocks_that_do_not_run_are_those_that_are_named() -> None:
    assert all(sum(block.startswith(begin) for block in BLOCKS) == 1 for begin in NOT_RUN)


def test_public_names_are_imported_when_they_are_used() -> None:
    for name in mstrain.__all__:
        assert getattr(mstrain, name) is not None
    with pytest.raises(AttributeError, match="module 'mstrain' has no attribute 'evaluator'"):
        mstrain.evaluator  # noqa: B018
