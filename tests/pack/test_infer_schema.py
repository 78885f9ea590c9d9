"""The schema of a folder is what most of its first objects share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest

from msdata.errors import DataError, SampleError, UsageError
from msdata.pack.candidates import ShardSlice
from msdata.pack.columns import check_array_names, label_names, scalar_names
from msdata.pack.planning import infer_schema, num_workers, schema_of, with_pixel_scales
from msdata.pack.state import PackPlan
from msdata.schema import MANTIS_SHRIMP, Schema, Survey
from msdata.sources.pickles import PickleTree


def _infer(folder: Path) -> Schema:
    source = PickleTree(folder)
    table = source.scan()
    locations = list(zip(table["path"].to_pylist(), table["row"].to_pylist(), strict=True))
    return infer_schema(source, locations[:16])[0]


def test_three_known_arrays_are_the_named_schema_whatever_their_dtype() -> None:
    sample = packing.mantis_object(1)
    assert schema_of(sample) == MANTIS_SHRIMP
    sample["galex"] = sample["galex"].astype(">f8")
    sample["exposure_s"] = 43.0
    found = schema_of(sample)
    assert found.arrays == MANTIS_SHRIMP.arrays
    assert found.scalars == ("exposure_s",)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "u1", ">i2", "?", "<c8", "<u8"])
def test_any_numeric_array_is_described_in_little_endian(dtype: str) -> None:
    schema = schema_of({"x": np.zeros((2, 3), dtype)})
    assert schema.name == "inferred"
    assert schema["x"].shape == (2, 3)
    assert schema["x"].numpy_dtype == np.dtype(dtype).newbyteorder("<")
    assert Schema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize(
    ("sample", "error", "says"),
    [
        ({"name": "M 31"}, SampleError, "holds no arrays"),
        ({"x": np.array(["a"])}, SampleError, "not numbers"),
        ({"x": np.zeros((0, 3))}, UsageError, "empty shape"),
        ({"not a name": np.zeros(3)}, UsageError, "array name must consist of"),
    ],
)
def test_what_cannot_be_described_is_said(sample: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        schema_of(sample)


def test_a_few_broken_objects_are_outvoted(tmp_path: Path) -> None:
    for number in range(20):
        packing.write_object(tmp_path / f"{number:02}.pkl", packing.tiny_object(number))
    (tmp_path / "00.pkl").write_bytes(b"")
    (tmp_path / "01.pkl").write_bytes(b"\x80")
    (tmp_path / "02.pkl").unlink()
    (tmp_path / "02.pkl").symlink_to(tmp_path / "nowhere")
    packing.write_object(tmp_path / "03.pkl", {"other": np.zeros(3)})
    packing.write_object(tmp_path / "04.pkl", {"no name": np.zeros(3)})
    schema = _infer(tmp_path)
    assert schema.names == ("image", "spectrum")
    assert schema.scalars == ("exposure_s",)


def test_when_none_is_usable_the_first_reason_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"")
    (tmp_path / "b.pkl").write_bytes(b"x")
    with pytest.raises(DataError, match=r"none of the first 2 objects.*a\.pkl: the file is empty"):
        _infer(tmp_path)


def test_pixel_scales_are_set_by_name() -> None:
    schema = with_pixel_scales(MANTIS_SHRIMP, {"unwise": 1.5})
    assert schema["unwise"].pixel_scale_arcsec == 1.5
    assert schema["galex"] == MANTIS_SHRIMP["galex"]
    with pytest.raises(UsageError, match=r"--pixel-scale must name one of .*, got unwize"):
        with_pixel_scales(MANTIS_SHRIMP, {"unwize": 1.5})


def test_names_of_the_index_are_never_given_away() -> None:
    labels = label_names(["redshift", "shard", "galex", "a/b", "a_b", "nan_galex"], MANTIS_SHRIMP)
    assert labels["redshift"] == "redshift"
    assert labels["shard"] == "catalog_shard"
    assert labels["nan_galex"] == "catalog_nan_galex"
    assert len(set(labels.values())) == len(labels)
    schema = Schema(name="x", arrays=MANTIS_SHRIMP.arrays, scalars=("redshift", "crc32c", "ra"))
    names = scalar_names(schema, labels.values())
    assert names == {"redshift": "object_redshift", "crc32c": "object_crc32c", "ra": "ra"}
    with pytest.raises(UsageError, match="array 'split' has a name that the index"):
        check_array_names(Schema(name="x", arrays=(Survey(name="split", shape=(2,)),)))


def test_entries_that_shards_leave_out_are_named(tmp_path: Path) -> None:
    for number in range(20):
        sample = {"x": np.full((2, 3), number, np.float32), "survey": "SDSS", "is_star": False}
        packing.write_object(tmp_path / "o" / f"{number:07d}.pkl", {**sample, "flux": 1.5})
    process = packing.pack(tmp_path / "o", tmp_path / "out", "--jobs", "1")
    assert process.returncode == 0, process.stderr
    assert "objects hold 'survey', 'is_star', which shards leave out" in process.stdout


@pytest.mark.parametrize(
    ("num_samples", "num_shards", "jobs", "expected"),
    [(100, 4, 16, 1), (2000, 24, 2, 2), (2000, 24, 16, 10), (100_000, 24, 64, 24), (1, 1, 8, 1)],
)
def test_small_data_sets_are_packed_by_few_workers(
    num_samples: int, num_shards: int, jobs: int, expected: int
) -> None:
    edges = [num_samples * n // num_shards for n in range(num_shards + 1)]
    slices = tuple(
        ShardSlice(split="train", name=f"shard-{n:06d}.tar", start=edges[n], stop=edges[n + 1])
        for n in range(num_shards)
    )
    plan = PackPlan(schema=MANTIS_SHRIMP, slices=slices, label_columns=(), num_rejected=0, notes=())
    assert num_workers(plan, range(num_shards), jobs) == expected
    assert num_workers(plan, [], jobs) == 1
