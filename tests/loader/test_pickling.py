"""Opened data sets in other processes: pickled as paths, opened there, the same data or none."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loading
import numpy as np
import packing
import pytest
import torch
from torch.utils.data import DataLoader

import msdata
from msdata.errors import DataError

Packed = Callable[..., Path]


@pytest.fixture
def split(tiny_source: Path, packed: Packed) -> msdata.Split:
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


def _send_ids(opened: list[Any], pipe: Any) -> None:
    """What a child process finds in what was pickled for it, from another folder."""
    os.chdir("/")
    for made in opened:
        if isinstance(made, msdata.Loader):
            pipe.send(loading.ids_of(loading.run_epoch(made)))
            made.close()
        else:
            pipe.send([made[i]["sample_id"] for i in range(9)])
    pipe.close()


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_all_that_is_opened_by_a_relative_path_goes_to_other_processes(
    split, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = split.dataset.path
    monkeypatch.chdir(folder.parent)
    data = msdata.open(folder.name)
    opened = data.split("train")
    monkeypatch.chdir(folder)
    context = multiprocessing.get_context(start)
    ours, theirs = context.Pipe(duplex=False)
    with msdata.Loader(opened, 32, seed=4) as loader:
        made = [data, opened, msdata.TorchDataset(opened), loader]
        child = context.Process(target=_send_ids, args=(made, theirs))
        child.start()
        theirs.close()
        found = [ours.recv() for _ in made]
        child.join(packing.TIMEOUT_S)
        assert child.exitcode == 0
        assert found[:3] == [split.table(["sample_id"]).column(0).to_pylist()[:9]] * 3
        assert found[3] == loading.ids_of(loading.run_epoch(loader))


def test_a_relative_path_outlives_a_change_of_folder(split, monkeypatch, tmp_path) -> None:
    folder = split.dataset.path
    monkeypatch.chdir(folder.parent)
    opened = msdata.open(folder.name).split("train")
    monkeypatch.chdir(tmp_path)
    assert opened.dataset.path == folder
    with msdata.Loader(opened, 100) as loader, msdata.Loader(split, 100) as wanted:
        loading.assert_equal_batches(loading.run_epoch(loader), loading.run_epoch(wanted))
    assert opened[3]["sample_id"] == split[3]["sample_id"]


def test_a_pickled_loader_resumes_where_it_stood_with_all_its_options(split) -> None:
    place = msdata.Topology(num_nodes=1, ranks_per_node=2, rank=1)
    weights = np.arange(300.0)
    options = {
        "columns": ["ra"],
        "remainder": "pad",
        "weights": weights,
        "copy": True,
        "verify": True,
    }
    with msdata.Loader(split, 40, seed=9, topology=place, **options) as loader:
        list(loader)
        wanted = loading.run_epoch(loader, 2)
        pickled = pickle.dumps(loader)
        loader.set_epoch(1)
        whole = loading.run_epoch(loader)
    weights[:] = 1
    with pickle.loads(pickled) as found:
        loading.assert_equal_batches(whole[:2], wanted)
        loading.assert_equal_batches(loading.run_epoch(found), whole[2:])
        assert set(whole[0]) == {*loading.ARRAYS, "sample_id", "ra", "is_real", "repeat"}


def test_another_data_set_in_the_same_place_is_not_taken_for_the_pickled_one(
    split, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(split.dataset.path, folder)
    pickled = [pickle.dumps(made) for made in (msdata.open(folder), loading.open_train(folder))]
    shutil.rmtree(folder)
    shutil.copytree(packed(tiny_source, *loading.options_of("contiguous")), folder)
    for one in pickled:
        with pytest.raises(DataError, match=r"is another data set than the one that was pickled"):
            pickle.loads(one)


def test_a_loader_in_a_data_loader_is_refused_with_what_to_do(split) -> None:
    with msdata.Loader(split, 8) as loader:
        for options in ({}, {"batch_size": None}, {"shuffle": True}):
            with pytest.raises(TypeError, match="DataLoader cannot take it; iterate it as it is"):
                next(iter(DataLoader(loader, **options)))


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_a_split_is_a_map_style_data_set_of_its_own(split, start: str | None) -> None:
    options = {} if start is None else {"num_workers": 2, "multiprocessing_context": start}
    split[0]
    found = list(DataLoader(split, 100, **options))
    assert [i for batch in found for i in batch["sample_id"]] == split.table(["sample_id"]).column(
        0
    ).to_pylist()
    for batch in found:
        assert isinstance(batch["image"], torch.Tensor)
        loading.assert_true_to_source({n: np.asarray(v) for n, v in batch.items()})
