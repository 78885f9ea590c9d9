"""Batches as tensors: from a loader, and as an IterableDataset in people's own DataLoader."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loading
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import msdata
import msdata.torch
from msdata.errors import UsageError

Packed = Callable[..., Path]


@pytest.fixture
def split(tiny_source: Path, packed: Packed) -> msdata.Split:
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


def as_arrays(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(values).copy() for name, values in batch.items()}


def arrays_of(batches: Any) -> list[dict[str, Any]]:
    return [as_arrays(batch) for batch in batches]


def test_tensors_are_the_arrays_of_the_ring(split) -> None:
    options = {"columns": ["redshift", "fold"], "remainder": "pad", "seed": 3}
    with (
        msdata.Loader(split, 40, as_torch=True, **options) as found,
        msdata.Loader(split, 40, **options) as wanted,
    ):
        for batch, expected in zip(found, wanted, strict=True):
            for name, values in batch.items():
                is_text = name in ("sample_id", "fold")
                assert isinstance(values, list if is_text else torch.Tensor), name
            assert batch["redshift"].dtype == torch.float64
            assert batch["is_real"].dtype == torch.bool
            loading.assert_equal_batches([as_arrays(batch)], [expected])
        assert found.stats()["overwritten_batches"] == 0


def test_a_tensor_kept_too_long_is_warned_about_and_copies_are_not(split) -> None:
    with (
        msdata.Loader(split, 10, as_torch=True) as loader,
        pytest.warns(RuntimeWarning, match="a batch was overwritten"),
    ):
        list(loader)
    with msdata.Loader(split, 10, as_torch=True, copy=True) as loader:
        for batch in list(loader):
            loading.assert_true_to_source(as_arrays(batch))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_sequential_batches_are_stretches_of_the_index_on_any_number_of_ranks(
    split, num_ranks: int
) -> None:
    ids = split.table(["sample_id"]).column(0).to_pylist()
    whole = loading.global_epoch(split, num_ranks, 32, policy="sequential")
    assert loading.ids_of(whole) == ids
    with msdata.Loader(
        split, 32 // num_ranks, policy="sequential", topology=loading.topology(num_ranks, 0)
    ) as loader:
        first = loading.ids_of(loading.run_epoch(loader, 2))
        state = loader.state_dict()
    assert first == ids[: 32 // num_ranks] + ids[32 : 32 + 32 // num_ranks]
    resumed = loading.global_epoch(split, 3, 48, policy="sequential", state=state)
    assert loading.ids_of(resumed) == ids[64:]


def test_sequential_epochs_are_alike_and_cannot_be_drawn_by_weights(split) -> None:
    with msdata.Loader(split, 50, policy="sequential", seed=5) as loader:
        assert loading.ids_of(loading.run_epoch(loader)) == loading.ids_of(
            loading.run_epoch(loader)
        )
    with pytest.raises(UsageError, match="policy 'sequential' reads in the order of the index"):
        msdata.Loader(split, 50, policy="sequential", weights=np.ones(300))


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_an_iterable_data_set_gives_the_loaders_batches_epoch_by_epoch(
    split, start: str | None
) -> None:
    options = {} if start is None else {"num_workers": 1, "multiprocessing_context": start}
    dataset = msdata.torch.IterableDataset(split, 64, seed=8)
    through = DataLoader(dataset, batch_size=None, **options)
    assert len(through) == len(dataset) == 5
    with msdata.Loader(split, 64, seed=8) as loader:
        # Workers end with each epoch, and the next one continues all the same.
        for _ in range(1 if start == "spawn" else 2):
            wanted = loading.run_epoch(loader)
            loading.assert_equal_batches(arrays_of(list(through)), wanted)
        if start is None:
            dataset.set_epoch(0)
            loader.set_epoch(0)
            again = arrays_of(itertools.islice(through, 1))
            loading.assert_equal_batches(again, loading.run_epoch(loader, 1))
    dataset.close()


def test_batches_of_batches_and_several_workers_are_refused(split) -> None:
    dataset = msdata.torch.IterableDataset(split, 64)
    with pytest.raises(UsageError, match=r"give DataLoader\(dataset, batch_size=None\)"):
        next(iter(DataLoader(dataset)))
    with pytest.raises(UsageError, match="num_workers must be 0 or 1, got 2"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=2)))
    dataset.close()


def test_a_pickled_iterable_data_set_resumes_where_it_stood(split) -> None:
    dataset = msdata.torch.IterableDataset(split, 64, seed=2, policy="block", buffer_samples=20)
    whole = arrays_of(dataset)
    dataset.set_epoch(0)
    first = arrays_of(itertools.islice(dataset, 2))
    again = pickle.loads(pickle.dumps(dataset))
    loading.assert_equal_batches(first + arrays_of(again), whole)
    dataset.close()
    again.close()


# torchdata 0.11 calls what torch 2.13 has deprecated.
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("start", [None, "fork"])
def test_torchdatas_stateful_data_loader_saves_and_resumes(split, start: str | None) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    options = {} if start is None else {"num_workers": 1, "multiprocessing_context": start}

    def made() -> Any:
        dataset = msdata.torch.IterableDataset(split, 64, seed=6)
        assert isinstance(dataset, stateful.stateful.Stateful)
        return stateful.StatefulDataLoader(dataset, batch_size=None, **options)

    with msdata.Loader(split, 64, seed=6) as loader:
        wanted = [loading.run_epoch(loader) for _ in range(2)]
    first = made()
    loading.assert_equal_batches(arrays_of(itertools.islice(first, 2)), wanted[0][:2])
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = made()
    second.load_state_dict(state)
    loading.assert_equal_batches(arrays_of(second), wanted[0][2:])
    loading.assert_equal_batches(arrays_of(second), wanted[1])
