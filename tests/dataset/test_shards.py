"""One contract for every container: what is appended is what stock tools and offsets read back."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from msdata.core.checksum import crc32c, crc32c_of_parts
from msdata.core.files import remove_leftovers
from msdata.dataset.hdf5 import Hdf5ShardWriter
from msdata.dataset.shard import Record, ShardSummary, ShardWriter
from msdata.dataset.tar import TarShardWriter, member_key
from msdata.errors import SampleError, StorageError
from msdata.schema import Schema, Survey

SCHEMA = Schema(
    name="inferred",
    arrays=(
        Survey(name="image", shape=(3, 170, 70), bands=("g", "r", "i"), pixel_scale_arcsec=0.25),
        Survey(name="counts", shape=(5,), dtype="<u2"),
        Survey(name="phase", shape=(4, 4), dtype="<c8"),
        Survey(name="flag", shape=(), dtype="|b1"),
    ),
)


def _record(number: int, sample_id: str | None = None) -> Record:
    random = np.random.default_rng(number)
    arrays = (
        random.normal(size=(3, 170, 70)).astype(np.float32),
        random.integers(0, 9, 5).astype(np.uint16),
        random.normal(size=(4, 4, 2)).astype(np.float32).view(np.complex64)[..., 0],
        np.array(number % 2 == 0),
    )
    arrays = tuple(np.ascontiguousarray(a).reshape(a.shape) for a in arrays)
    name = f"galaxy {number:03}" if sample_id is None else sample_id
    metadata = {"sample_id": name, "redshift": number / 100, "note": None if number % 3 else "x"}
    return Record(sample_id=name, arrays=arrays, crc32c=crc32c_of_parts(arrays), metadata=metadata)


class ContainerContract:
    """Inherited by each container."""

    suffix = ""

    def open(self, path: Path, num_samples: int) -> ShardWriter:
        raise NotImplementedError

    def read(self, path: Path) -> list[Mapping[str, Any]]:
        """Samples as a stock tool reads them: arrays by name and `json`."""
        raise NotImplementedError

    def write(
        self, folder: Path, records: list[Record], room: int = 0
    ) -> tuple[Path, ShardSummary]:
        path = folder / f"shard-000000{self.suffix}"
        writer = self.open(path, max(room, len(records)))
        for record in records:
            writer.append(record)
        assert not path.exists()
        return path, writer.finish()

    @pytest.mark.parametrize("count", [1, 2, 40])
    def test_stock_tools_read_what_was_appended(self, count: int, tmp_path: Path) -> None:
        records = [_record(n) for n in range(count)]
        path, _ = self.write(tmp_path, records)
        found = self.read(path)
        assert len(found) == count
        for sample, record in zip(found, records, strict=True):
            for survey, array in zip(SCHEMA.arrays, record.arrays, strict=True):
                assert sample[survey.name].dtype == survey.numpy_dtype
                assert sample[survey.name].shape == survey.shape
                assert sample[survey.name].tobytes() == array.tobytes()
            assert sample["json"] == record.metadata

    def test_offsets_lead_to_the_bytes_of_each_array(self, tmp_path: Path) -> None:
        records = [_record(n) for n in range(20)]
        path, summary = self.write(tmp_path, records)
        content = path.read_bytes()
        assert summary.nbytes == len(content)
        assert summary.offsets.shape == (20, 4)
        for record, offsets in zip(records, summary.offsets.tolist(), strict=True):
            for array, offset in zip(record.arrays, offsets, strict=True):
                assert content[offset : offset + array.nbytes] == array.tobytes()

    def test_the_frame_checksum_is_over_all_other_bytes(self, tmp_path: Path) -> None:
        path, summary = self.write(tmp_path, [_record(n) for n in range(7)])
        is_frame = np.ones(summary.nbytes, bool)
        for a, survey in enumerate(SCHEMA.arrays):
            for offset in summary.offsets[:, a]:
                is_frame[offset : offset + survey.nbytes] = False
        content = np.frombuffer(path.read_bytes(), np.uint8)
        assert crc32c(np.ascontiguousarray(content[is_frame])) == summary.frame_crc32c

    def test_the_same_records_give_the_same_bytes(self, tmp_path: Path) -> None:
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir()
            self.write(folder, [_record(n) for n in range(9)])
        names = sorted(p.name for p in (tmp_path / "a").iterdir())
        assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
        for name in names:
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    @pytest.mark.parametrize("count", [1, 3, 11, 20, 32, 33, 49])
    def test_fewer_samples_than_announced_leave_no_hole(self, count: int, tmp_path: Path) -> None:
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir()
        records = [_record(n) for n in range(count)]
        exact, _ = self.write(tmp_path / "a", records)
        roomy, _ = self.write(tmp_path / "b", records, room=50)
        assert roomy.read_bytes() == exact.read_bytes()

    def test_an_aborted_shard_leaves_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / f"shard-000000{self.suffix}"
        writer = self.open(path, 5)
        writer.append(_record(0))
        writer.abort()
        writer.abort()
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_writer_left_is_removed_and_what_one_writes_is_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir()
        killed = self.open(tmp_path / "b" / f"shard-000000{self.suffix}", 30)
        for n in range(30, 60):
            killed.append(_record(n))
        clean, _ = self.write(tmp_path / "a", [_record(0)])
        again, _ = self.write(tmp_path / "b", [_record(0)])
        before = sorted(again.parent.iterdir())
        remove_leftovers(again.parent)
        assert sorted(again.parent.iterdir()) == before
        assert any(p.suffix == ".partial" for p in before)
        # As the system does for a process that ends; the writer itself removes nothing.
        monkeypatch.setattr(Path, "unlink", lambda path: None)
        killed.abort()
        monkeypatch.undo()
        remove_leftovers(again.parent)
        assert again.read_bytes() == clean.read_bytes()
        assert sorted(p.name for p in again.parent.iterdir()) == sorted(
            p.name for p in clean.parent.iterdir()
        )

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "nowhere" / f"shard-000000{self.suffix}"
        with pytest.raises(
            StorageError, match=rf"cannot write .*nowhere/shard-000000{self.suffix}"
        ):
            self.open(path, 3)

    @pytest.mark.parametrize("call", ["fsync", "replace", "pwritev"])
    def test_a_refused_call_names_the_shard_and_leaves_nothing(
        self, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

        path = tmp_path / f"shard-000000{self.suffix}"
        writer = self.open(path, 3)
        writer.append(_record(0))
        monkeypatch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=r"shard-000000.*the disk is full"):
            writer.finish()
        monkeypatch.undo()
        writer.abort()
        assert list(tmp_path.iterdir()) == []


class TestTar(ContainerContract):
    suffix = ".tar"

    def open(self, path: Path, num_samples: int) -> ShardWriter:
        return TarShardWriter(path, SCHEMA)

    def read(self, path: Path) -> list[Mapping[str, Any]]:
        samples: list[dict[str, Any]] = []
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                if not samples or samples[-1]["key"] != key:
                    samples.append({"key": key})
                if kind == "json":
                    samples[-1]["json"] = json.loads(content)
                else:
                    samples[-1][kind.removesuffix(".npy")] = np.load(io.BytesIO(content))
        return samples

    @pytest.mark.parametrize("sample_id", ["a.b", "a/b", "ü €", "..", "-x", "a\nb", " "])
    def test_any_id_makes_one_key_without_dots_or_slashes(
        self, sample_id: str, tmp_path: Path
    ) -> None:
        path, _ = self.write(tmp_path, [_record(0, sample_id), _record(1, sample_id + "2")])
        found = self.read(path)
        assert [s["json"]["sample_id"] for s in found] == [sample_id, sample_id + "2"]
        assert found[0]["key"] == member_key(sample_id)

    def test_an_id_too_long_for_a_name_is_refused_and_leaves_no_hole(self, tmp_path: Path) -> None:
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir()
        clean, _ = self.write(tmp_path / "a", [_record(0), _record(1)])
        path = tmp_path / "b" / "shard-000000.tar"
        writer = self.open(path, 3)
        writer.append(_record(0))
        with pytest.raises(SampleError, match="too long for a tar member's name"):
            writer.append(_record(5, "x" * 100))
        writer.append(_record(1))
        writer.finish()
        assert path.read_bytes() == clean.read_bytes()


class TestContiguousHdf5(ContainerContract):
    suffix = ".h5"
    chunked = False

    def open(self, path: Path, num_samples: int) -> ShardWriter:
        return Hdf5ShardWriter(path, SCHEMA, max_samples=num_samples, chunked=self.chunked)

    def read(self, path: Path) -> list[Mapping[str, Any]]:
        with h5py.File(path) as file:
            assert (file["image"].chunks is not None) == self.chunked
            assert file["image"].attrs["bands"] == "g,r,i"
            count = len(file["sample_id"])
            assert all(len(file[name]) == count for name in SCHEMA.names)
            return [
                {
                    **{name: np.asarray(file[name][i]) for name in SCHEMA.names},
                    "json": json.loads(file["json"][i]),
                }
                for i in range(count)
            ]


class TestChunkedHdf5(TestContiguousHdf5):
    chunked = True


@pytest.mark.parametrize(
    ("values", "dtype", "stored", "absent"),
    [
        ([2**62 + 1, -5], "int64", [2**62 + 1, -5], None),
        ([2**62 + 1, None], "int64", [2**62 + 1, -(2**63)], -(2**63)),
        ([2**63 + 1, 4], "uint64", [2**63 + 1, 4], None),
        ([2**63 + 1, None], "uint64", [2**63 + 1, 2**64 - 1], 2**64 - 1),
        ([True, False], "bool", [True, False], None),
        ([True, None], "int8", [1, -128], -128),
        ([2**53, 0.5], "float64", [2.0**53, 0.5], None),
        ([None, None], "float64", [np.nan, np.nan], None),
        ([None, 0.5], "float64", [np.nan, 0.5], None),
    ],
)
def test_a_label_in_an_hdf5_shard_is_exact_and_says_what_null_is(
    values: list[Any], dtype: str, stored: list[Any], absent: int | None, tmp_path: Path
) -> None:
    with h5py.File(_with_labels(tmp_path, values)) as file:
        found = file["label"]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[:], np.array(stored, dtype))
        assert found.attrs.get("_FillValue") == absent
        assert [json.loads(text)["label"] for text in file["json"][:]] == values


@pytest.mark.parametrize(
    "values",
    [[2**63, -1], [2**53 + 1, 0.5], [2**64, 1], [-(2**63), None], ["a", 1], [None, "a"]],
)
def test_labels_that_no_type_holds_stand_in_the_json_of_an_hdf5_shard_alone(
    values: list[Any], tmp_path: Path
) -> None:
    with h5py.File(_with_labels(tmp_path, values)) as file:
        assert "label" not in file
        assert [json.loads(text)["label"] for text in file["json"][:]] == values


def _with_labels(folder: Path, values: list[Any]) -> Path:
    path = folder / "shard-000000.h5"
    writer = Hdf5ShardWriter(path, SCHEMA, max_samples=len(values))
    for number, value in enumerate(values):
        record = _record(number)
        writer.append(replace(record, metadata={**record.metadata, "label": value}))
    writer.finish()
    return path
