"""Coded data sets in the loader: codes for a GPU, corrupt records, hostile indices."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loading
import numpy as np
import pyarrow.parquet as parquet
import pytest

import msdata
from msdata.cache.client import LOCAL
from msdata.dataset import coding
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from msdata.loader.coded_read import RecordRows
from msdata.topology import Topology

Packed = Callable[..., Path]
CODED = [name for name in loading.LAYOUTS if name.startswith("code")]


@pytest.fixture(params=CODED)
def split(request: pytest.FixtureRequest, tiny_source: Path, packed: Packed) -> Split:
    return loading.open_train(packed(tiny_source, *loading.options_of(request.param)))


@pytest.fixture
def own(tiny_source: Path, packed: Packed, tmp_path: Path) -> Split:
    """A coded tar data set that the test may damage."""
    made = packed(tiny_source, *loading.options_of("coded"))
    return loading.open_train(Path(shutil.copytree(made, tmp_path / "data")))


@pytest.fixture(params=["C", "NumPy"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "NumPy":
        monkeypatch.setattr(coding, "_coding", None)


def make(split: Split, batch_size: int = 32, **options: Any) -> msdata.Loader:
    return msdata.Loader(split, batch_size, topology=Topology(), **options)


def flip(split: Split, row: int, array: int, at: int) -> None:
    """Flips bits of a sample's stored bytes, in its shard."""
    offset = int(split.spans.offsets(np.array([row]))[0, array]) + at
    path = split.shard_paths[int(split.spans.shards(np.array([row]))[0])]
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


@pytest.mark.parametrize("cache", [None, "auto"])
def test_codes_and_steps_make_the_pixels_of_the_loader(split: Split, cache: Any, by: None) -> None:
    with make(split) as loader, make(split, decode=False, cache=cache) as undecoded:
        pairs = list(zip(loading.run_epoch(loader), loading.run_epoch(undecoded), strict=True))
    assert split.dataset.manifest.coding["image"].codes == "<i2"
    for pixels, codes in pairs:
        assert codes["image"].dtype == np.int16
        assert codes["image_step"].dtype == np.float32
        assert codes["image_step"].shape == (len(codes["image"]), 3)
        image = coding.decode_codes(codes.pop("image"), codes.pop("image_step"))
        loading.assert_equal_batches([pixels], [{**codes, "image": image}])


def test_codes_are_asked_only_of_what_has_them(
    tiny_source: Path, packed: Packed, split: Split
) -> None:
    plain = loading.open_train(packed(tiny_source, *loading.options_of("tar")))
    with pytest.raises(UsageError, match="decode=False needs quantized arrays"):
        make(plain, decode=False)
    with make(split, decode=False) as loader:
        ring = loader.ring_nbytes
    with make(split) as loader:
        assert ring <= loader.ring_nbytes


def test_a_record_that_does_not_decode_is_named(own: Split, by: None) -> None:
    flip(own, 17, 0, 40)
    runs: tuple[dict[str, Any], ...] = ({"verify": True}, {"verify": True, "cache": "auto"})
    for options in (*runs, {}, {"cache": "auto"}, {"decode": False}):
        if not options:
            # A length in the header, which is seen without a checksum.
            flip(own, 17, 0, 5)
        with make(own, **options) as loader, pytest.raises(DataError) as caught:
            loading.run_epoch(loader)
        for word in (own.sample_id(17), "train/shard-", "is corrupt", "msdata verify --repair"):
            assert word in str(caught.value), options


def test_a_record_that_is_corrupt_in_memory_alone_comes_from_storage(own: Split, by: None) -> None:
    with make(own, cache="auto") as loader:
        wanted = loading.run_epoch(loader)
        assert loading.packing.wait_for(
            lambda: loader.stats()["cache"]["local"]["filled"] == len(own)
        )
        slots = loader._cache.client.tiers[LOCAL].slots
        for slot in (3, 5):
            os.pwrite(slots.fd, b"\0" * 8, slots.record_at(slot) + 4)
        loader.set_epoch(0)
        loading.assert_equal_batches(loading.run_epoch(loader), wanted)


def test_arrays_far_apart_in_their_shard_are_read_one_by_one() -> None:
    offsets = np.array([[100, 1 << 30], [5000, 6000]])
    rows = RecordRows(offsets, np.array([[70, 30], [50, 20]]))
    rows.bind(np.array([0, 1]))
    places, sizes = rows.spans(offsets, np.array([0, 1]))
    assert places.tolist() == offsets.tolist()
    assert sizes.tolist() == [[70, 30], [50, 20]]
    assert [len(part) for part in rows.parts(0)] == [70, 30]
    near = RecordRows(offsets[1:], np.array([[50, 20]]))
    near.bind(np.array([0]))
    places, sizes = near.spans(offsets[1:], np.array([0]))
    assert (places.tolist(), sizes.tolist()) == ([[5000]], [[1020]])
    near.reads(0)[0][0][:] = np.arange(1020) % 251
    assert near.parts(0)[1].tolist() == (np.arange(1000, 1020) % 251).tolist()


def test_a_column_named_as_steps_are_is_refused_beside_them(split: Split) -> None:
    with pytest.raises(UsageError, match="batches need the name 'redshift' for steps"):
        msdata.loader.columns.BatchColumns(split, ["redshift"], extra={"redshift": np.zeros(3)})


def test_steps_are_never_taken_from_another_sample(split: Split) -> None:
    table = parquet.read_table(split.dataset.path / "index.parquet")
    steps = np.array(table["step_image"].to_pylist(), np.float32)
    by_id = dict(zip(table["sample_id"].to_pylist(), steps, strict=True))
    with make(split, 7, decode=False) as loader:
        for batch in loader:
            for sample_id, step in zip(batch["sample_id"], batch["image_step"], strict=True):
                assert (by_id[sample_id] == step).all()
