"""Coded data sets by strangers: wrong steps, lengths, dtypes and chunks end in one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import seal

import msdata
from msdata.core.checksum import crc32c_of_parts
from msdata.errors import DataError
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.verify.verify import verify_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    (root / "source").mkdir()
    for number in range(8):
        rng = np.random.default_rng(number)
        sample = {"image": rng.normal(0, 1, (2, 16, 16)).astype(np.float32), "counts": np.arange(9)}
        (root / "source" / f"{number}.pkl").write_bytes(pickle.dumps(sample))
    pack(
        PackSettings(
            source=root / "source",
            out=root / "data",
            quantize={"*": 4.0},
            compress="lz4",
            split_fractions=(1, 0, 0),
        )
    )
    return root / "data"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def forge(out: Path, name: str, change: Callable[[list[Any]], Any]) -> None:
    """Changes a column of the index, and the checksums that guard it."""
    table = pq.read_table(out / "index.parquet")
    values = change(table[name].to_pylist())
    column = (
        values if isinstance(values, pa.Array) else pa.array(values, table.schema.field(name).type)
    )
    table = table.set_column(table.column_names.index(name), name, column)
    # A new file: who reads the old one has it open.
    (out / "index.parquet").unlink()
    pq.write_table(table, out / "index.parquet", write_page_checksum=True)
    seal(out)


def read_all(out: Path) -> None:
    data = msdata.open(out)
    split = data.split("train")
    assert split.steps("image").shape == (8, 2)
    assert split.codes("image").shape == (8,)
    assert split.shard_record_nbytes.shape == (1,)
    for number in range(len(data)):
        data[number]


def lists(values: list[Any]) -> pa.Array:
    return pa.array(values, pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("nbytes_image", lambda v: [0, *v[1:]], "nbytes_image must fit the array, got 0"),
        ("nbytes_image", lambda v: [-5, *v[1:]], "nbytes_image must fit the array, got -5"),
        ("nbytes_image", lambda v: [2**62, *v[1:]], "nbytes_image must fit the array, got 4"),
        ("nbytes_image", lambda v: [v[0] + 1, *v[1:]], "nbytes must be the sum of its arrays'"),
        ("nbytes", lambda v: [v[0] + 1, *v[1:]], "nbytes must be the sum of its arrays'"),
        ("dtype_image", lambda v: ["<f8", *v[1:]], "dtype_image must be one of <i2, <i4, <f4"),
        ("dtype_image", lambda v: [None, *v[1:]], "'dtype_image' must not have nulls"),
        ("step_image", lambda v: [[-1, 1], *v[1:]], "step_image must be finite and at least 0"),
        ("step_image", lambda v: [[np.nan, 1], *v[1:]], "step_image must be finite and at least 0"),
        ("step_image", lambda v: [[np.inf, 1], *v[1:]], "step_image must be finite and at least 0"),
        ("step_image", lambda v: lists([[1.0]] * 8), "step_image must hold 2 numbers per sample"),
        ("step_image", lambda v: lists([[1.0, None]] * 8), "step_image must hold 2 numbers"),
        ("step_image", lambda v: pa.array([1.0] * 8), "'step_image' must hold list values"),
        ("offset_image", lambda v: [2**40, *v[1:]], "offset_image must be 0 to"),
    ],
)
def test_a_forged_index_is_refused(
    name: str, change: Callable[[list[Any]], Any], says: str, out: Path
) -> None:
    forge(out, name, change)
    with pytest.raises(DataError, match=says):
        read_all(out)
    assert verify_dataset(out).faults


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("counts"), "coding must be an object of the arrays image, counts"),
        (lambda c: c["counts"].update(quantize=4), "quantize must be null for an array of dtype"),
        (lambda c: c["image"].update(quantize=0), "quantize must be a number at least 0.01"),
        (lambda c: c["image"].update(quantize="4"), "quantize must be a finite number"),
        (lambda c: c["image"].update(compress="gzip"), "compress must be one of none, lz4, zstd"),
        (lambda c: c["image"].update(codes="<i8"), "codes must be one of <i2, <i4, <f4"),
        (lambda c: c["counts"].update(codes="<i2"), "codes must be one of <i8"),
        (lambda c: c["image"].update(quantize=None), "codes must be one of <f4"),
    ],
)
def test_a_coding_that_does_not_fit_the_schema_is_refused(
    change: Callable[[dict[str, Any]], Any], says: str, out: Path
) -> None:
    content = json.loads((out / "dataset.json").read_bytes())
    change(content["coding"])
    (out / "dataset.json").write_text(json.dumps(content))
    seal(out)
    with pytest.raises(DataError, match=says):
        msdata.open(out)


@pytest.mark.parametrize("codes", ["<i4", "<f4"])
def test_samples_wider_than_the_manifest_says_are_refused_and_a_fault(
    codes: str, out: Path
) -> None:
    said = msdata.open(out).manifest.coding["image"].codes
    forge(out, "dtype_image", lambda values: [codes, *values[1:]])
    with pytest.raises(DataError, match=f"dtype_image must fit {said} of dataset.json, got <i4"):
        msdata.open(out).split("train").codes("image")
    assert verify_dataset(out).faults


@pytest.mark.parametrize("at", [1, 2, 3, 4, 7, 8, 11, 12, 15, 16, 20])
def test_a_chunk_that_lies_about_itself_is_refused_and_named(at: int, out: Path) -> None:
    """Bytes of the header and of the first offsets; the index vouches for them."""
    split = msdata.open(out).split("train")
    stored, file = split.read_stored(3)
    content = bytearray(file.path.read_bytes())
    content[int(split.spans.offsets(np.array([3]))[0, 0]) + at] ^= 0x7F
    file.path.write_bytes(content)
    stored, _ = split.read_stored(3)
    forge(
        out, "crc32c", lambda v: [crc32c_of_parts(stored) if i == 3 else c for i, c in enumerate(v)]
    )
    sample_id = split.sample_id(3)
    with pytest.raises(DataError, match=f"shard-000000.tar: sample {sample_id}: array 'image'"):
        msdata.open(out).split("train")[3]
    (fault,) = (f for f in verify_dataset(out).faults if f.kind == "sample")
    assert fault.message.startswith(f"sample {sample_id} does not decode: array 'image'")


def test_an_impossible_step_is_a_fault_that_says_what_is_wrong(out: Path) -> None:
    forge(out, "step_image", lambda v: [[1e-40, 1e-40], *v[1:]])
    (fault,) = verify_dataset(out).faults
    assert fault.message.endswith("array 'image' is corrupt: it does not decode")


def test_pixels_that_are_not_those_that_were_packed_are_a_fault(out: Path) -> None:
    forge(out, "step_image", lambda v: [[2 * s for s in v[0]], *v[1:]])
    sample_id = msdata.open(out).split("train").sample_id(0)
    (fault,) = verify_dataset(out).faults
    assert fault.message.startswith(f"sample {sample_id} decodes to other pixels: CRC32C ")
