"""A split as PyTorch's map-style data set: the same samples, through people's own DataLoader."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import loading
import numpy as np
import packing
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

import msdata
from msdata.errors import DataError, UsageError
from msdata.loader.torch_dataset import TorchDataset, collate

Packed = Callable[..., Path]


@pytest.fixture(params=loading.LAYOUTS)
def split(request: pytest.FixtureRequest, tiny_source: Path, packed: Packed):
    return loading.open_train(packed(tiny_source, *loading.options_of(request.param)))


@pytest.fixture
def tar_split(tiny_source: Path, packed: Packed):
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


def as_arrays(batch: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in batch.items()}


def test_it_is_pytorchs_data_set_under_msdatas_name() -> None:
    assert msdata.TorchDataset is TorchDataset
    assert issubclass(TorchDataset, Dataset)
    assert TorchDataset.collate is collate


def test_a_sample_is_that_of_the_split(split) -> None:
    dataset = TorchDataset(split)
    assert len(dataset) == len(split) == loading.NUM_SAMPLES
    for i in (0, 7, 299, -1):
        sample, wanted = dataset[i], split[i]
        assert set(sample) == {*loading.ARRAYS, "sample_id", "redshift"}
        for name in loading.ARRAYS:
            assert isinstance(sample[name], torch.Tensor)
            assert sample[name].numpy().tobytes() == wanted[name].tobytes()
            assert sample[name].shape == loading.ARRAYS[name][0]
        assert sample["sample_id"] == wanted["sample_id"]
        assert sample["redshift"] == wanted["redshift"]


def test_a_batch_is_one_buffer_in_the_order_asked_for(split) -> None:
    dataset = TorchDataset(split)
    numbers = np.random.default_rng(1).integers(-300, 300, 70).tolist()
    samples = dataset.__getitems__(numbers)
    assert [s["sample_id"] for s in samples] == [split[n]["sample_id"] for n in numbers]
    for name in loading.ARRAYS:
        step = samples[0][name].nbytes
        addresses = {s[name].data_ptr() - i * step for i, s in enumerate(samples)}
        assert len(addresses) == 1
    loading.assert_true_to_source(as_arrays(collate(samples)))


def test_batches_do_not_share_memory_and_outlive_the_data_set(tar_split) -> None:
    dataset = TorchDataset(tar_split)
    batches = [collate(dataset.__getitems__(range(n, n + 9))) for n in range(0, 90, 9)]
    del dataset
    gc.collect()
    for batch in batches:
        loading.assert_true_to_source(as_arrays(batch))


def test_collate_copies_nothing_where_samples_are_rows_of_one_buffer(tar_split) -> None:
    samples = TorchDataset(tar_split).__getitems__(range(10, 30))
    batch = collate(samples)
    for name in loading.ARRAYS:
        assert batch[name].data_ptr() == samples[0][name].data_ptr()
        assert batch[name].is_contiguous()
        assert torch.equal(batch[name], torch.stack([s[name] for s in samples]))
    assert batch["redshift"].dtype == torch.float64
    assert batch["sample_id"] == [s["sample_id"] for s in samples]
    part = collate(samples[3:5])
    assert part["image"].data_ptr() == samples[3]["image"].data_ptr()


@pytest.mark.parametrize("order", [[1, 0], [0, 2], [3, 3], [2, 1, 0]])
def test_collate_stacks_what_are_no_consecutive_rows(tar_split, order) -> None:
    samples = TorchDataset(tar_split).__getitems__(range(4))
    chosen = [samples[i] for i in order]
    batch = collate(chosen)
    for name in loading.ARRAYS:
        assert torch.equal(batch[name], torch.stack([s[name] for s in chosen]))


def test_collate_stacks_samples_of_different_buffers(tar_split) -> None:
    dataset = TorchDataset(tar_split)
    chosen = [dataset[5], dataset[6], dataset[7]]
    batch = collate(chosen)
    assert torch.equal(batch["image"], torch.stack([s["image"] for s in chosen]))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_data_loader_with_workers_gives_every_sample_once(tar_split, start: str) -> None:
    dataset = TorchDataset(tar_split, columns=["mantis_id", "redshift", "fold"])
    dataset[0]  # Files are open and the reader made before the workers start.
    options = {"multiprocessing_context": start, "num_workers": 2, "persistent_workers": True}
    loader = DataLoader(dataset, 32, shuffle=True, collate_fn=collate, **options)
    for _ in range(2 if start == "fork" else 1):
        batches = list(loader)
        for batch in batches:
            loading.assert_true_to_source(as_arrays(batch))
            assert batch["mantis_id"].tolist() == [int(i) for i in batch["sample_id"]]
        ids = [i for batch in batches for i in batch["sample_id"]]
        assert sorted(ids) == [f"{n:07d}" for n in range(loading.NUM_SAMPLES)]


def test_a_data_loader_without_workers_copies_nothing(tar_split) -> None:
    dataset = TorchDataset(tar_split)
    loader = DataLoader(dataset, 50, collate_fn=dataset.collate)
    found = [i for batch in loader for i in batch["sample_id"]]
    assert found == tar_split.table(["sample_id"]).column(0).to_pylist()
    for batch in DataLoader(dataset, 50):
        loading.assert_true_to_source(as_arrays(batch))
    subset = DataLoader(Subset(dataset, range(5)), 5, collate_fn=collate)
    loading.assert_true_to_source(as_arrays(next(iter(subset))))


def test_it_is_pickled_as_a_path_and_opened_anew(tar_split, monkeypatch, tmp_path) -> None:
    dataset = TorchDataset(tar_split, columns=["ra"])
    dataset[0]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(pickled)
    assert set(again[3]) == {*loading.ARRAYS, "sample_id", "ra"}
    assert again[3]["sample_id"] == dataset[3]["sample_id"]


@pytest.mark.parametrize("number", [300, -301])
def test_a_number_beyond_the_split_is_refused(tar_split, number) -> None:
    with pytest.raises(IndexError, match=f"sample {number} of 300 in split 'train'"):
        TorchDataset(tar_split)[number]


def test_faults_are_those_of_the_loader(tar_split, tiny_source, packed, tmp_path) -> None:
    with pytest.raises(UsageError, match="no column colour"):
        TorchDataset(tar_split, columns=["colour"])
    assert TorchDataset(tar_split).__getitems__([]) == []
    folder = tmp_path / "data"
    packing.run(["cp", "-r", str(tar_split.dataset.path), str(folder)])
    split = loading.open_train(folder)
    split.shard_paths[0].unlink()
    with pytest.raises(DataError, match="is missing; run 'msdata verify --repair"):
        TorchDataset(split)


def test_without_torch_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nimport msdata\n"
        "try:\n    msdata.TorchDataset\n"
        "except msdata.errors.MissingPackageError as error:\n    print(error)\n"
        "print(msdata.Loader.__name__)"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import msdata.errors; " + code],
        capture_output=True,
        text=True,
        env=packing.environment(),
    )
    assert found.stderr == ""
    assert found.stdout == "TorchDataset needs torch: run pip install 'msdata[train]'\nLoader\n"
