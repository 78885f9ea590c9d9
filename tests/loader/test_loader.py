"""The contract of the loader, held by every layout of shards, with and without the C module."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loading
import numpy as np
import pytest
import raw_dataset
import torch

import msdata
import msdata.loader.read
from msdata.dataset import coding
from msdata.errors import UsageError
from msdata.plan.order import epoch_order
from msdata.schema import Schema, Survey

Packed = Callable[..., Path]


class LoaderContract:
    """What holds for every layout; `layout` names one of `loading.LAYOUTS`."""

    layout: str

    @pytest.fixture(autouse=True, params=["streaming", "reading"])
    def mode(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        assert msdata.loader.read._stream_fill is not None, (
            "run python setup.py build_ext --inplace"
        )
        if request.param == "reading":
            monkeypatch.setattr(msdata.loader.read, "_stream_fill", None)
            monkeypatch.setattr(coding, "_coding", None)
        return request.param

    @pytest.fixture
    def split(self, tiny_source: Path, packed: Packed):
        return loading.open_train(packed(tiny_source, *loading.options_of(self.layout)))

    def test_stats_say_which_way_samples_are_copied(self, split, mode) -> None:
        with msdata.Loader(split, 16) as loader:
            batches = loading.run_epoch(loader)
            stats = loader.stats()
        assert stats["is_streaming"] == (mode == "streaming")
        assert stats["steps"] == len(batches) == 19
        assert stats["samples"] == len(split) == loading.NUM_SAMPLES
        assert stats["bytes"] == stats["samples"] * split.schema.sample_nbytes
        assert 0 <= stats["wait_fraction"] <= 1
        assert stats["cold_samples"] <= stats["samples"]

    def test_every_sample_comes_once_an_epoch_as_its_pickle_has_it(self, split) -> None:
        with msdata.Loader(split, 32, threads=2) as loader:
            batches = loading.run_epoch(loader)
        assert len(batches) == len(loader)
        ids = loading.ids_of(batches)
        assert sorted(ids) == [f"{n:07d}" for n in range(loading.NUM_SAMPLES)]
        for batch in batches:
            loading.assert_true_to_source(batch)

    @pytest.mark.parametrize("policy", ["shuffle", "block"])
    def test_the_order_is_the_plans_for_seed_and_epoch(self, split, policy) -> None:
        ids = np.array(split.table(["sample_id"]).column(0).to_pylist())
        with msdata.Loader(split, 32, seed=5, policy=policy, buffer_samples=40) as loader:
            orders = []
            for epoch in range(3):
                orders.append(loading.ids_of(loading.run_epoch(loader)))
                wanted = epoch_order(
                    policy,
                    seed=5,
                    epoch=epoch,
                    num_samples=len(split),
                    shard_sizes=split.shard_sizes,
                    buffer_samples=40,
                )
                assert orders[-1] == ids[wanted].tolist()
        assert orders[0] != orders[1] != orders[2]

    @pytest.mark.parametrize("batch_size", [1, 7, 64, 500])
    def test_threads_prefetch_and_batch_size_change_no_order(self, split, batch_size) -> None:
        with msdata.Loader(split, 12, threads=1) as loader:
            wanted = loading.joined(loading.run_epoch(loader))
        for threads, prefetch in ((1, 1), (3, 2), (8, 3)):
            with msdata.Loader(split, batch_size, threads=threads, prefetch=prefetch) as loader:
                found = loading.joined(loading.run_epoch(loader))
            loading.assert_equal_batches([found], [wanted])

    def test_arrays_have_the_dtype_and_shape_of_the_schema(self, split) -> None:
        with msdata.Loader(split, 32) as loader:
            for count, batch in zip([32] * 9 + [12], loader, strict=True):
                for name, (shape, dtype) in loading.ARRAYS.items():
                    array = batch[name]
                    assert array.shape == (count, *shape)
                    assert array.dtype == np.dtype(dtype)
                    assert array.flags.c_contiguous
                    assert array.ctypes.data % 64 == 0
                assert batch["sample_id"].shape == batch["redshift"].shape == (count,)

    @pytest.mark.parametrize(("prefetch", "hold"), [(1, None), (2, None), (3, 1), (1, 4), (2, 2)])
    def test_as_many_batches_as_are_held_keep_their_bytes(self, split, prefetch, hold) -> None:
        num_held = prefetch + 1 if hold is None else hold
        held: list[tuple[dict, int]] = []
        addresses = set()
        with msdata.Loader(split, 8, prefetch=prefetch, num_valid_batches=hold) as loader:
            # Batches stay valid over the end of an epoch, too.
            for batch in itertools.chain(loader, loader, loader):
                addresses.add(batch["image"].ctypes.data)
                held.append((batch, _checksum(batch)))
                held = held[-num_held:]
                assert all(_checksum(b) == checksum for b, checksum in held)
            stats = loader.ring_nbytes
        assert len(addresses) <= prefetch + num_held
        assert stats == (prefetch + num_held) * (2 << 20)

    def test_shards_too_many_to_be_all_open_give_the_same_batches(self, split) -> None:
        with msdata.Loader(split, 100, threads=2) as loader:
            wanted = loading.run_epoch(loader)
        for max_held in (1, 5):
            split.files.max_held = max_held
            with msdata.Loader(split, 100, threads=2, verify=True) as loader:
                loading.assert_equal_batches(loading.run_epoch(loader), wanted)

    def test_columns_asked_for_come_with_their_samples(self, split) -> None:
        columns = ["ra", "mantis_id", "fold", "missing_bands", "crc32c"]
        with msdata.Loader(split, 50, columns=columns) as loader:
            for batch in loader:
                numbers = batch["sample_id"].astype(int)
                assert set(batch) == {*loading.ARRAYS, "sample_id", *columns}
                assert (batch["mantis_id"] == numbers).all()
                assert (batch["ra"] == numbers % 360 + 0.25).all()
                assert batch["fold"].tolist() == ["abc"[n % 3] for n in numbers]
                assert batch["missing_bands"].tolist() == [""] * 50

    def test_verify_accepts_sound_samples(self, split) -> None:
        with msdata.Loader(split, 64, verify=True) as loader:
            assert len(loading.ids_of(loading.run_epoch(loader))) == len(split)

    def test_an_epoch_left_early_begins_anew(self, split) -> None:
        with msdata.Loader(split, 10) as loader:
            first = loading.run_epoch(loader)
            second = loading.run_epoch(loader, 7)
            for batch in loader:
                loading.assert_equal_batches([loading.kept(batch)], second[:1])
                break
            del batch
            loading.assert_equal_batches(loading.run_epoch(loader)[:7], second)
            loader.set_epoch(0)
            loading.assert_equal_batches(loading.run_epoch(loader), first)


class TestTar(LoaderContract):
    layout = "tar"


class TestContiguousHdf5(LoaderContract):
    layout = "contiguous"


class TestChunkedHdf5(LoaderContract):
    layout = "chunked"


class TestCodesInHdf5(LoaderContract):
    layout = "codes"


class TestCodedTar(LoaderContract):
    layout = "coded"


class TestCodedHdf5(LoaderContract):
    layout = "coded chunks"


def _checksum(batch: dict) -> int:
    checksum = 0
    for name in loading.ARRAYS:
        checksum = zlib.crc32(batch[name].tobytes(), checksum)
    return checksum


@pytest.fixture
def split(tiny_source: Path, packed: Packed):
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


def test_all_layouts_give_the_same_batches(tiny_source: Path, packed: Packed) -> None:
    epochs: dict[bool, list[Any]] = {False: [], True: []}
    for layout in loading.LAYOUTS:
        found = loading.open_train(packed(tiny_source, *loading.options_of(layout)))
        with msdata.Loader(found, 16) as loader:
            epochs[found.is_coded].append(loading.run_epoch(loader))
    for same in epochs.values():
        assert len(same) == 3
        for other in same[1:]:
            loading.assert_equal_batches(same[0], other)
    loading.assert_equal_batches(
        *([{**batch, "image": 0} for batch in epochs[is_coded][0]] for is_coded in (False, True))
    )


@pytest.mark.parametrize("hold", [None, 1, 2, 5])
def test_a_batch_that_is_overwritten_while_in_use_is_told_of_once(split, hold) -> None:
    with msdata.Loader(split, 10, prefetch=2, num_valid_batches=hold) as loader:
        with pytest.warns(RuntimeWarning, match=r"overwritten while a variable or a.*copy=Tru"):
            kept = list(loader)
        # All but those that are still valid, and the one that would be looked at next.
        assert loader.stats()["overwritten_batches"] == len(kept) - (hold or 3) - 1
        list(loading.run_epoch(loader))


def test_former_names_of_arguments_are_taken_with_a_warning(split) -> None:
    with pytest.warns(FutureWarning, match=r"Loader\(last=\) is now called remainder="):
        loader = msdata.Loader(split, 16, last="pad")
    with loader:
        assert "is_real" in next(iter(loader))
    with pytest.warns(FutureWarning, match=r"Loader\(hold=\) is now called num_valid_batches="):
        loader = msdata.Loader(split, 16, prefetch=2, hold=1)
    with loader, msdata.Loader(split, 16, prefetch=2, num_valid_batches=1) as other:
        assert loader.ring_nbytes == other.ring_nbytes
    with pytest.warns(FutureWarning, match=r"CacheConfig\(fill=\) is now called warmup="):
        assert msdata.CacheConfig(fill="stage").warmup == "blocking"
    with pytest.raises(TypeError, match="unexpected keyword argument 'lats'"):
        msdata.Loader(split, 16, lats="pad")


@pytest.mark.parametrize("poison", [True, None], ids=["argument", "environment"])
def test_poisoned_batches_are_nan_once_they_are_no_longer_valid(
    split, poison: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not poison:
        monkeypatch.setenv("MSDATA_DEBUG", "1")
    with (
        msdata.Loader(split, 10, num_valid_batches=1, across_epochs=False, poison=poison) as loader,
        pytest.warns(RuntimeWarning, match="overwritten while"),
    ):
        kept = [batch["image"] for batch in loader]
    assert np.isfinite(kept[-1]).all()
    # Its buffer is not filled again: the epoch is over.
    assert np.isnan(kept[-2]).all()


def _crop(batch: dict) -> np.ndarray:
    return batch["image"][:, :1]


def _tensor(batch: dict) -> Any:
    return torch.from_numpy(batch["spectrum"])[2:]


@pytest.mark.parametrize("view", [_crop, _tensor, lambda b: memoryview(b["image"])])
def test_a_view_of_one_array_is_a_batch_in_use(split, view) -> None:
    with msdata.Loader(split, 10) as loader:
        with pytest.warns(RuntimeWarning, match="overwritten while a variable or a list"):
            kept = [view(batch) for batch in loader]
        assert loader.stats()["overwritten_batches"] == len(kept) - 5


@pytest.mark.parametrize("hold", [None, 1, 2])
def test_batches_used_one_after_the_other_are_not_told_of(split, hold) -> None:
    labels = []
    with msdata.Loader(split, 10, num_valid_batches=hold) as loader:
        for number, batch in itertools.chain.from_iterable(enumerate(loader) for _ in range(2)):
            labels.append((number, batch["redshift"], batch["image"].sum()))
        assert loader.stats()["overwritten_batches"] == 0
    assert len(labels) == 60


@pytest.mark.parametrize("cache", [None, msdata.CacheConfig(memory_gib=0.01)])
def test_copied_batches_may_all_be_kept(split, cache) -> None:
    with msdata.Loader(split, 16, copy=True, cache=cache) as loader:
        kept = [batch for _ in range(3) for batch in loader]
        assert loader.stats()["overwritten_batches"] == 0
        ring = loader.ring_nbytes
    for batch in kept:
        loading.assert_true_to_source(batch)
    with msdata.Loader(split, 16) as wanted:
        epochs = [batch for _ in range(3) for batch in loading.run_epoch(wanted)]
        loading.assert_equal_batches(kept, epochs)
        assert ring < wanted.ring_nbytes


def test_seeds_give_different_orders(split) -> None:
    orders = set()
    for seed in range(4):
        with msdata.Loader(split, 50, seed=seed) as loader:
            orders.add(tuple(loading.ids_of(loading.run_epoch(loader))))
    assert len(orders) == 4


def test_after_the_last_batch_comes_the_next_epoch_whoever_counted_the_steps(split) -> None:
    with msdata.Loader(split, 100) as counted, msdata.Loader(split, 100) as whole:
        for _ in range(3):
            found = loading.run_epoch(counted, len(counted))
            loading.assert_equal_batches(found, loading.run_epoch(whole))


def test_an_epoch_asked_for_again_comes_again(split) -> None:
    with msdata.Loader(split, 100) as loader:
        loader.set_epoch(2)
        third = loading.run_epoch(loader)
        loader.set_epoch(2)
        loading.assert_equal_batches(loading.run_epoch(loader, len(loader)), third)
        loader.set_epoch(2)
        loading.assert_equal_batches(loading.run_epoch(loader), third)


def test_an_older_iteration_cannot_go_on_beside_a_newer_one(split) -> None:
    with msdata.Loader(split, 10) as loader:
        older = iter(loader)
        next(older)
        newer = iter(loader)
        first = loading.kept(next(newer))
        with pytest.raises(UsageError, match="another one of this loader was started"):
            next(older)
        rest = [loading.kept(batch) for batch in newer]
        wanted = loading.run_epoch(loader)
        loader.set_epoch(0)
        wanted = loading.run_epoch(loader)
        loading.assert_equal_batches([first, *rest], wanted)


def test_a_closed_loader_says_so_and_its_batches_stay_readable(split) -> None:
    loader = msdata.Loader(split, 10)
    running = iter(loader)
    batch = next(running)
    loader.close()
    loader.close()
    loading.assert_true_to_source(batch)
    for attempt in (lambda: next(running), lambda: iter(loader)):
        with pytest.raises(UsageError, match="the loader was closed; make a new one"):
            attempt()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"prefetch": 0}, "prefetch must be at least 1, got 0"),
        ({"num_valid_batches": 0}, "num_valid_batches must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be an integer, got True"),
        ({"batch_size": 1.5}, r"batch_size must be an integer, got 1\.5"),
        ({"weights": np.ones(299)}, r"weights must be 300 numbers, .*, got shape \(299,\)"),
        ({"weights": np.full(300, np.nan)}, "weights must be finite .*, got 300 others"),
        ({"weights": -np.ones(300)}, "weights must be finite .*, got 300 others"),
        ({"weights": np.zeros(300)}, "all weights are 0"),
        ({"weights": np.ones(300), "policy": "block"}, "policy 'block'"),
        ({"cache": "ssd"}, "cache must be None, 'auto' or a CacheConfig, got 'ssd'"),
        ({"policy": "locality"}, "policy 'locality' deals samples to the nodes that cache them"),
        ({"remainder": "keep"}, "remainder must be one of drop, pad, short, got 'keep'"),
        ({"columns": ["colour"]}, "has no column colour; it has sample_id"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*63 - 1, got -1"),
        ({"seed": 1 << 64}, "seed must be from 0 to .*, got 18446744073709551616"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
        ({"batch_size": "8"}, "batch_size must be an integer, got '8'"),
        (
            {"batch_size": 10**9, "remainder": "pad"},
            "7 batches of 1,000,000,000 samples take .* are fr",
        ),
        ({"policy": "block", "buffer_samples": 0}, "buffer_samples must be at least 1, got 0"),
        ({"policy": "block", "buffer_samples": 1.5}, "buffer_samples must be an integer, got 1.5"),
        ({"prefetch": "3"}, "prefetch must be an integer, got '3'"),
        ({"split": "DATA"}, r"split must be a Split, got str; give msdata\.open"),
        ({"topology": 4}, "topology must be a Topology or None, got 4"),
        ({"columns": "redshift"}, r"columns must be a list of names, got 'redshift'; give \['"),
        ({"columns": [3]}, r"columns must be a list of names, got \[3\]"),
        ({"weights": np.ma.MaskedArray(np.ones(300), np.arange(300) < 2)}, "weights are masked"),
        ({"weights": np.full(300, 1j)}, r"weights must be numbers, one per sample: complex"),
    ],
)
def test_an_option_out_of_range_is_refused_when_the_loader_is_made(split, options, says) -> None:
    with pytest.raises(UsageError, match=says):
        msdata.Loader(**{"split": split, **options})


def test_numbers_of_numpy_are_taken_and_the_state_is_made_of_plain_ones(split) -> None:
    numbers = {"batch_size": np.int64(50), "seed": np.uint8(3), "prefetch": np.int32(1)}
    with msdata.Loader(split, **numbers) as loader:
        loader.set_epoch(np.int64(2))
        loading.run_epoch(loader, 2)
        state = loader.state_dict()
        assert json.loads(json.dumps(state)) == state
        rest = loading.run_epoch(loader)
        loader.load_state_dict(state)
        loading.assert_equal_batches(loading.run_epoch(loader), rest[2:])


def test_an_epoch_out_of_range_is_refused(split) -> None:
    with msdata.Loader(split) as loader:
        with pytest.raises(UsageError, match=r"epoch must be from 0 to 2\*\*63 - 1, got -1"):
            loader.set_epoch(-1)
        with pytest.raises(UsageError, match=r"epoch must be an integer, got 1\.5"):
            loader.set_epoch(1.5)


def test_a_batch_larger_than_the_split_takes_no_more_memory_than_the_split(split) -> None:
    with msdata.Loader(split, 300) as fitting, msdata.Loader(split, 10**5) as loader:
        assert loader.ring_nbytes == fitting.ring_nbytes
        assert [len(batch["sample_id"]) for batch in loader] == [300]


def test_what_is_no_place_of_a_sample_is_refused(split) -> None:
    assert split[np.int64(-1)]["sample_id"] == split[299]["sample_id"]
    for place in ("0000001", 1.0, slice(2)):
        with pytest.raises(TypeError, match=r"must be an integer, got .*; ask for one sample"):
            split[place]
        with pytest.raises(TypeError, match="number must be an integer, got"):
            split.dataset[place]


def test_a_url_is_no_path() -> None:
    with pytest.raises(UsageError, match="s3:/bucket/data is a URL; give the path of a folder"):
        msdata.open("s3://bucket/data")


def test_a_split_that_got_no_samples_is_named_with_those_there_are(split) -> None:
    with pytest.raises(UsageError, match="has no split 'val'; it has train"):
        split.dataset.split("val")


def test_more_arrays_than_one_read_fills_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msdata.loader.read, "_stream_fill", None)
    arrays = tuple(Survey(name=f"a{n}", shape=(2,), dtype="<i2") for n in range(1100))
    schema = Schema(name="inferred", arrays=arrays)
    data = raw_dataset.write_raw(tmp_path / "data", schema, [7], has_checksums=True)
    with msdata.Loader(loading.open_train(data), 7, threads=1, verify=True) as loader:
        (batch,) = loading.run_epoch(loader)
    wanted = raw_dataset.pattern_at(0, 1099 * 4, 4)
    assert batch["a1099"][batch["sample_id"] == "0000000"].tobytes() == wanted
