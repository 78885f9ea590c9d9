"""The table of predictions: whole or not at all, in the order of the index, back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qp
import small_disk

from msdata.errors import DataError, StorageError, UsageError
from mstrain.evaluation.list_table import Spool, SpooledRows
from mstrain.evaluation.metrics.densities import make_densities
from mstrain.evaluation.metrics.scores import point_estimates, scores
from mstrain.evaluation.predictions import (
    read_predictions,
    write_predictions,
)

NUM_BINS = 12
EDGES = np.linspace(0, 1.6, NUM_BINS + 1)


def some_densities(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).gamma(1, 1, (count, NUM_BINS))
    return (values / (values @ np.diff(EDGES))[:, None]).astype(np.float32)


def spooled(folder: Path, density: np.ndarray, num_ranks: int) -> tuple[list[Spool], SpooledRows]:
    """The densities as ranks would leave them, each its shuffled share in several pieces."""
    rows = np.random.default_rng(1).permutation(len(density))
    spools, parts = [], []
    for rank in range(num_ranks):
        spool = Spool(folder / "p.parquet", rank, NUM_BINS)
        spool.open()
        mine = rows[rank::num_ranks]
        for piece in np.array_split(mine, 3):
            spool.add(density[piece])
        spools.append(spool)
        parts.append(spool.finish(mine))
    return spools, SpooledRows(parts, len(density), NUM_BINS)


def columns_of(density: np.ndarray) -> dict[str, np.ndarray]:
    truth = np.random.default_rng(2).uniform(0, 1.6, len(density))
    truth[::5] = np.nan
    found = make_densities(density, EDGES)
    return {
        "sample_id": np.array([f"{i:07d}" for i in range(len(density))], object),
        "redshift": truth,
        **point_estimates(found),
        **scores(found, truth),
    }


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_table_comes_back_as_it_was_from_any_number_of_ranks(
    num_ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstrain.evaluation.list_table._GROUP_ROWS", 16)
    density = some_densities(50)
    columns = columns_of(density)
    path = tmp_path / "p.parquet"
    spools, densities = spooled(tmp_path, density, num_ranks)
    write_predictions(path, columns, densities, EDGES, {"split": "test"})
    for spool in spools:
        spool.__exit__(None, None, None)
    found = read_predictions(path)
    np.testing.assert_array_equal(np.concatenate(list(found.density_parts())), density)
    np.testing.assert_array_equal(found.edges, EDGES)
    assert found.origin == {"format_version": 1, "split": "test"}
    for name, values in columns.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    rows = [49, 0, 17, 16]
    np.testing.assert_array_equal(found.densities_of(rows), density[rows])
    known = np.isfinite(columns["redshift"])
    np.testing.assert_allclose(found.mean_density(known), density[known].mean(axis=0), rtol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


def test_the_table_is_plain_parquet_with_nulls_and_lists(tmp_path: Path) -> None:
    density = some_densities(20)
    spools, densities = spooled(tmp_path, density, 1)
    write_predictions(tmp_path / "p.parquet", columns_of(density), densities, EDGES, {})
    spools[0].__exit__(None, None, None)
    table = pq.read_table(tmp_path / "p.parquet")
    assert str(table.schema.field("density").type) == f"fixed_size_list<element: float>[{NUM_BINS}]"
    assert table.column("redshift").null_count == table.column("pit").null_count == 4
    assert table.column("z_mean").null_count == 0


def test_integers_beside_nulls_come_back_to_the_last_digit(tmp_path: Path) -> None:
    density = some_densities(5)
    numbers = [1234567890123456789, None, -(2**63), 2**53 + 1, 2**63 - 1]
    given = {
        "sample_id": np.array([f"{i}" for i in range(5)], object),
        "id": pa.chunked_array([pa.array(numbers[:2]), pa.array(numbers[2:])]),
        "all": pa.chunked_array([pa.array([2**64 - 1] * 5, pa.uint64())]),
        "flag": pa.chunked_array([pa.array([True, None, False, True, None])]),
        "text": pa.chunked_array([pa.array(["a", None, "b", "c", "d"])]),
    }
    path = tmp_path / "p.parquet"
    spools, densities = spooled(tmp_path, density, 1)
    with spools[0]:
        write_predictions(path, given, densities, EDGES, {})
    table = pq.read_table(path)
    for name in ("id", "all", "flag", "text"):
        assert table.column(name).type == given[name].type
        assert table.column(name).to_pylist() == given[name].to_pylist()
    found = read_predictions(path).columns
    assert found["id"].dtype == np.int64
    assert found["id"].tolist() == numbers
    assert found["id"].mask.tolist() == [False, True, False, False, False]
    assert found["all"].tolist() == [2**64 - 1] * 5
    assert found["flag"].tolist() == [True, None, False, True, None]
    assert found["text"].tolist() == ["a", None, "b", "c", "d"]


def test_missing_and_double_rows_are_refused(tmp_path: Path) -> None:
    density = some_densities(10)
    with Spool(tmp_path / "p.parquet", 0, NUM_BINS) as spool:
        spool.open()
        spool.add(density[:5])
        part = spool.finish(np.array([0, 1, 2, 3, 3]))
        with pytest.raises(DataError, match="5 rows, 4 different ones, for 5 samples"):
            SpooledRows([part], 5, NUM_BINS)
        with pytest.raises(DataError, match="for 6 samples"):
            SpooledRows([part], 6, NUM_BINS)


def test_an_interrupted_write_leaves_the_former_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    density = some_densities(10)
    path = tmp_path / "p.parquet"
    path.write_text("former")
    spools, densities = spooled(tmp_path, density, 1)
    monkeypatch.setattr(SpooledRows, "__getitem__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_predictions(path, columns_of(density), densities, EDGES, {})
    spools[0].__exit__(None, None, None)
    assert path.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(StorageError, match="disk is full"),
        Spool(tmp_path / "p.parquet", 0, NUM_BINS) as spool,
    ):
        spool.open()
        spool._file.close()
        spool._file = full.open("wb", buffering=0)
        spool.add(some_densities(4))


def test_what_is_no_table_of_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; run 'mstrain evaluate' first"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(UsageError, match="is not a table of predictions"):
        read_predictions(tmp_path / "text.parquet")
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="is not a table of predictions"):
        read_predictions(tmp_path / "other.parquet")


def test_a_second_job_is_kept_out_and_a_killed_one_s_files_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    killed = tmp_path / ".p.parquet.rank00007.partial"
    killed.write_bytes(b"half")
    with Spool(path, 0, NUM_BINS) as spool:
        spool.open()
        assert not killed.exists()
        wait = pytest.raises(UsageError, match=r"another job is writing .*p\.parquet; wait")
        with Spool(path, 0, NUM_BINS) as second, wait:
            second.open()
        assert spool.path.exists()
    assert list(tmp_path.iterdir()) == []


def test_qp_reads_the_densities_and_columns_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstrain.evaluation.qp_file._GROUP_ROWS", 16)
    density = some_densities(50)
    columns = {
        **columns_of(density),
        "note": pa.chunked_array([pa.array(["a", None, "bcé"] * 16 + ["d", "e"])]),
        "number": pa.chunked_array([pa.array([2**60 + 1, None] * 25)]),
        "flag": pa.chunked_array([pa.array([True, False] * 25)]),
    }
    path = tmp_path / "p.hdf5"
    spools, densities = spooled(tmp_path, density, 1)
    write_predictions(path, columns, densities, EDGES, {"split": "test"})
    spools[0].__exit__(None, None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["p.hdf5"]
    found = qp.read(str(path))
    np.testing.assert_array_equal(found.metadata["bins"].ravel(), EDGES)
    # qp divides by the integrals, in double precision.
    np.testing.assert_allclose(found.objdata["pdfs"], density, rtol=3e-7)
    assert found.npdf == 50
    expected = make_densities(density, EDGES)
    np.testing.assert_allclose(found.ppf(0.5).ravel(), columns["z_median"], atol=1e-6)
    np.testing.assert_allclose(found.cdf(0.8).ravel(), expected.cdf[:, 6], atol=1e-6)
    for name in ("redshift", "z_mean", "pit"):
        np.testing.assert_array_equal(found.ancil[name], columns[name], err_msg=name)
    assert list(found.ancil["sample_id"]) == list(columns["sample_id"])
    with h5py.File(path) as file:
        assert file["data/pdfs"].dtype == np.float32
        assert file["data/pdfs"][()].tobytes() == density.tobytes()
        assert file["ancil/note"][2] == "bcé".encode()
        assert file["ancil/note"][1] == b""
        assert file["ancil/number"][0] == 2**60 + 1
        assert file["ancil/number"].attrs["_FillValue"] == file["ancil/number"][1]
        assert file["ancil/flag"][()].tolist() == [True, False] * 25
        assert json.loads(file.attrs["mstrain"])["split"] == "test"


def test_a_full_disk_leaves_no_file_for_qp(tmp_path: Path) -> None:
    density = np.tile(some_densities(50), (500, 1))
    spools, densities = spooled(tmp_path, density, 1)
    columns = {"sample_id": np.arange(len(density))}
    with spools[0], small_disk.mounted(tmp_path / "disk", "tmpfs", 1) as disk:
        with pytest.raises(StorageError, match="disk is full"):
            write_predictions(disk / "p.hdf5", columns, densities, EDGES, {})
        assert not list(disk.iterdir())
