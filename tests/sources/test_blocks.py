"""Upstream's block files give the same objects, whatever names the rows."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdata.errors import DataError, SampleError
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.blockfile import NUM_COLUMNS
from msdata.sources.blocks import BlockFiles

SIZES = {"train": {0: 3, 2: 2, 10: 1}, "val": {0: 2}, "test": {1: 1}}


def _rows(num_rows: int, start: int) -> np.ndarray:
    rows = np.arange(num_rows, dtype=np.float32)[:, None] + np.float32(start)
    return rows + np.linspace(0.1, 0.9, NUM_COLUMNS, dtype=np.float32)


def _save_blocks(folder: Path, sizes: dict[str, dict[int, int]]) -> dict[str, np.ndarray]:
    """Blocks whose rows start with a number that counts over all blocks of all splits."""
    written, start = {}, 0
    for split, blocks in sizes.items():
        (folder / split).mkdir(parents=True)
        for number, num_rows in blocks.items():
            path = folder / split / f"mantis_shrimp_{number}.npy"
            written[str(path)] = _rows(num_rows, start)
            np.save(path, written[str(path)])
            start += num_rows
    return written


def _check(source: BlockFiles, written: dict[str, np.ndarray]) -> None:
    for row in source.scan().to_pylist():
        sample = source.read(row["path"], row["row"])
        flat = written[str(source.root / row["path"])][row["row"]]
        assert {name: array.shape for name, array in sample.items()} == {
            survey.name: survey.shape for survey in MANTIS_SHRIMP.arrays
        }
        joined = np.concatenate([sample[n].ravel() for n in ("galex", "panstarrs", "unwise")])
        np.testing.assert_array_equal(joined, flat)


def test_without_indices_an_object_is_named_by_its_place(tmp_path: Path) -> None:
    written = _save_blocks(tmp_path / "npy_blocks", SIZES)
    with BlockFiles(tmp_path) as source:
        table = source.scan()
        assert table["sample_id"].to_pylist() == sorted(table["sample_id"].to_pylist())
        assert "train-10-0000000" in table["sample_id"].to_pylist()
        assert "catalog_row" not in table.column_names
        assert table["split"].to_pylist().count("train") == 6
        assert "npy_blocks/val/mantis_shrimp_0.npy" in table["path"].to_pylist()
        _check(source, written)


def _object_array(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


@pytest.mark.parametrize("form", ["2-D", "object", "list"])
def test_with_indices_an_object_is_named_by_its_catalog_row(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "npy_blocks"
    written = _save_blocks(folder, {"train": {0: 2, 1: 2}})
    numbers = [np.array([7, 3]), np.array([0, 5])]
    if form == "2-D":
        np.save(folder / "train_indices.npy", np.array(numbers))
    elif form == "object":
        np.save(folder / "train_indices.npy", _object_array(numbers), allow_pickle=True)
    else:
        (folder / "train_indices.npy").write_bytes(pickle.dumps(numbers))
    mask = np.ones(8, bool)
    mask[3] = False
    np.save(tmp_path / "exists_mask.npy", mask)
    for root in (tmp_path, folder):
        source = BlockFiles(root)
        table = source.scan()
        assert table["sample_id"].to_pylist() == ["0000000", "0000005", "0000007"]
        assert table["catalog_row"].to_pylist() == [0, 5, 7]
        assert table["row"].to_pylist() == [0, 1, 0]
        assert table.schema.metadata[b"num_missing"] == b"1"
        _check(source, written)


def test_masks_by_split_or_by_block_leave_out_missing_rows(tmp_path: Path) -> None:
    _save_blocks(tmp_path, {"train": {2: 2, 10: 1, 0: 3}, "val": {0: 2}})
    # By number, not by name: 0, 2, 10.
    np.save(tmp_path / "train" / "exists_mask.npy", np.array([1, 0, 1, 1, 1, 0], bool))
    np.save(tmp_path / "val" / "exists_mask_0.npy", np.array([0, 1], bool))
    assert BlockFiles(tmp_path).scan()["sample_id"].to_pylist() == [
        *("train-00-0000000", "train-00-0000002", "train-02-0000000", "train-02-0000001"),
        "val-00-0000001",
    ]


def test_a_row_of_zeros_is_a_missing_object(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    rows = np.zeros((2, NUM_COLUMNS), np.float32)
    rows[1, 5] = 1
    np.save(tmp_path / "test" / "mantis_shrimp_0.npy", rows)
    source = BlockFiles(tmp_path)
    assert source.read("test/mantis_shrimp_0.npy", 1)["galex"].sum() == 1
    with pytest.raises(SampleError, match="the row is all zeros: a missing object"):
        source.read("test/mantis_shrimp_0.npy", 0)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_floats_byte_orders_and_layouts_are_read(
    tmp_path: Path, dtype: str, order: str
) -> None:
    (tmp_path / "val").mkdir()
    rows = np.array(_rows(3, 1), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "val" / "mantis_shrimp_0.npy", rows)
    source = BlockFiles(tmp_path)
    assert source.read("val/mantis_shrimp_0.npy", 2)["unwise"].dtype == np.dtype(dtype)
    _check(source, {str(tmp_path / "val/mantis_shrimp_0.npy"): rows})


def test_a_truncated_block_loses_only_the_rows_that_are_cut(tmp_path: Path) -> None:
    _save_blocks(tmp_path, {"val": {0: 3}})
    path = tmp_path / "val" / "mantis_shrimp_0.npy"
    os.truncate(path, path.stat().st_size - 10)
    source = BlockFiles(tmp_path)
    assert source.scan().num_rows == 3
    source.read("val/mantis_shrimp_0.npy", 1)
    with pytest.raises(SampleError, match="truncated block file: row 2 ends at byte"):
        source.read("val/mantis_shrimp_0.npy", 2)


def test_a_block_of_another_shape_is_named_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    path = tmp_path / "val" / "mantis_shrimp_0.npy"
    np.save(path, np.zeros((2, 100), np.float32))
    with pytest.raises(DataError, match=r"shrimp_0\.npy has shape \(2, 100\).*\(rows, 148596\)"):
        BlockFiles(tmp_path).scan()
    path.write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(DataError, match=r"shrimp_0\.npy is not a block file: its \.npy header"):
        BlockFiles(tmp_path).scan()


def test_indices_and_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    _save_blocks(tmp_path, {"train": {0: 2}, "val": {1: 1}})
    np.save(tmp_path / "train_indices.npy", np.array([[0, 1]]))
    with pytest.raises(DataError, match=r"has no val_indices\.npy, but indices for other splits"):
        BlockFiles(tmp_path).scan()
    np.save(tmp_path / "val_indices.npy", np.array([[4]]))
    with pytest.raises(DataError, match="has indices of 1 blocks, none of val/mantis_shrimp_1"):
        BlockFiles(tmp_path).scan()
    np.save(tmp_path / "val_indices.npy", np.array([[4], [9]]))
    np.save(tmp_path / "exists_mask.npy", np.ones(5, bool))
    with pytest.raises(DataError, match="has 5 rows, but the indices of val reach 9"):
        BlockFiles(tmp_path).scan()
    np.save(tmp_path / "train_indices.npy", np.array([[0, 1, 2]]))
    with pytest.raises(DataError, match=r"has 3 indices for .*, which has 2 rows"):
        BlockFiles(tmp_path).scan()


def test_indices_that_run_code_are_refused(tmp_path: Path) -> None:
    _save_blocks(tmp_path, {"val": {0: 1}})
    stream = io.BytesIO(b"cos\nsystem\n(S'touch ran'\ntR.")
    (tmp_path / "val_indices.npy").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=r"asks for the global os\.system"):
        BlockFiles(tmp_path).scan()


def test_a_source_that_went_to_another_process_opens_its_own_files(tmp_path: Path) -> None:
    written = _save_blocks(tmp_path, {"val": {0: 2}})
    source = BlockFiles(tmp_path)
    source.read("val/mantis_shrimp_0.npy", 0)
    copy = pickle.loads(pickle.dumps(source))
    source.close()
    _check(copy, written)


def test_a_folder_without_blocks_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no train/, val/ or test/mantis_shrimp_K\.npy"):
        BlockFiles(tmp_path).scan()


def test_indices_in_one_row_are_those_of_the_blocks_one_after_the_other(tmp_path: Path) -> None:
    written = _save_blocks(tmp_path, {"train": {0: 2, 3: 1}})
    np.save(tmp_path / "train_indices.npy", np.array([7, 3, 5]))
    with BlockFiles(tmp_path) as source:
        rows = {row["catalog_row"]: (row["path"], row["row"]) for row in source.scan().to_pylist()}
        assert rows == {
            7: ("train/mantis_shrimp_0.npy", 0),
            3: ("train/mantis_shrimp_0.npy", 1),
            5: ("train/mantis_shrimp_3.npy", 0),
        }
        _check(source, written)
    np.save(tmp_path / "train_indices.npy", np.array([7, 3]))
    with pytest.raises(DataError, match="holds 2 numbers in one row for 3 rows in 2 blocks"):
        BlockFiles(tmp_path).scan()
