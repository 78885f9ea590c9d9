"""The Python of README and docs runs as it stands there, on a small data set and a short training.

Blocks that only include a file of docs/examples are run by tests/docs/test_guides.py.
"""

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

ROOT = Path(__file__).parents[1]


def blocks_of(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    return [block for block in blocks if not block.startswith("--8<--")]


BLOCKS = {
    page.relative_to(ROOT).as_posix(): blocks_of(page)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
# Start of a block -> why it cannot run here.
NOT_RUN = {
    "webdataset.WebDataset(": "its paths are elided; test_interoperation.py reads shards so",
    "import json, tarfile": "reads coded shards; test_interoperation.py runs it on some",
    "import h5py, hdf5plugin": "reads coded shards; test_interoperation.py runs it on some",
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


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_python_blocks_run_in_the_order_of_the_page(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in BLOCKS[page]:
        if any(block.startswith(start) for start in NOT_RUN):
            continue
        if "load_model" in block:
            names |= {"images": torch.zeros(2, 9, 24, 24), "ebv": torch.zeros(2)}
        text = block.replace("/local/scratch", str(tmp_path))
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        exec(compile(text, page, "exec"), names)
    if "logits" in names:
        assert names["logits"].shape == (2, 16)
    if "found" in names:
        assert len(names["found"].columns["z_mean"]) == len(msdata.open("DATA").split("test"))
    if "loader" in names:
        names["loader"].close()


def test_the_pages_show_loading_caching_networks_and_tables_of_predictions() -> None:
    text = "".join(block for blocks in BLOCKS.values() for block in blocks)
    shown = ("msdata.Loader(", "CacheConfig(", "mstrain.load_model(", "mstrain.read_predictions(")
    assert all(name in text for name in shown)


def test_blocks_that_do_not_run_are_those_that_are_named() -> None:
    blocks = [block for blocks in BLOCKS.values() for block in blocks]
    assert all(sum(block.startswith(start) for block in blocks) == 1 for start in NOT_RUN)


def test_public_names_are_imported_when_they_are_used() -> None:
    for name in mstrain.__all__:
        assert getattr(mstrain, name) is not None
    with pytest.raises(AttributeError, match="module 'mstrain' has no attribute 'evaluator'"):
        mstrain.evaluator  # noqa: B018
