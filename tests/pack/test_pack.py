"""What a pack makes: the same bytes for any number of processes, readable by stock tools."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import packing
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

import msdata
from msdata.cli import main
from msdata.sources.blockfile import NUM_COLUMNS

Packed = Callable[..., Path]
FORMATS = {
    "tar": ("--format", "tar"),
    "hdf5": ("--format", "hdf5"),
    "chunked": ("--format", "hdf5", "--chunked"),
}
LAYOUTS = {
    **FORMATS,
    "coded tar": ("--quantize", "4", "--compress", "lz4"),
    "codes in tar": ("--quantize", "image=8"),
    "coded hdf5": ("--format", "hdf5", "--quantize", "4", "--compress", "zstd"),
    "codes in hdf5": ("--format", "hdf5", "--quantize", "4"),
}


@pytest.fixture
def many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many workers as are asked for, though they have little to do."""
    monkeypatch.setattr("msdata.pack.planning._WORKER_NBYTES", 1)


@pytest.mark.parametrize("jobs", [2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("many_workers")
def test_any_number_of_workers_gives_the_same_bytes(
    layout: str, jobs: int, tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    options = (*LAYOUTS[layout], *packing.TINY_SHARDS)
    command = packing.pack_command(tiny_source, tmp_path / "out", *options, "--jobs", str(jobs))
    assert main(command[len(packing.MSDATA) :]) == 0
    packing.assert_same(tmp_path / "out", packed(tiny_source, *options))


def test_the_function_packs_the_same_bytes_as_the_command(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    catalog = tiny_source / "catalog.csv"
    options = {"catalog": str(catalog), "container": "hdf5", "shard_nbytes": 1 << 16}
    report = msdata.pack(str(tiny_source), tmp_path / "out", jobs=2, **options)
    assert report.num_packed == report.manifest.num_samples
    packing.assert_same(
        tmp_path / "out", packed(tiny_source, *FORMATS["hdf5"], *packing.TINY_SHARDS)
    )
    with pytest.raises(TypeError, match="colour"):
        msdata.pack(tiny_source, tmp_path / "other", colour="red")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("many_workers")
def test_rejected_objects_do_not_make_the_bytes_depend_on_the_workers(
    layout: str, flawed_source: Path, packed: Packed, tmp_path: Path
) -> None:
    options = (*LAYOUTS[layout], *packing.TINY_SHARDS)
    command = packing.pack_command(flawed_source, tmp_path / "out", *options, "--jobs", "3")
    assert main(command[len(packing.MSDATA) :]) == 0
    expected = packed(flawed_source, *options)
    packing.assert_same(tmp_path / "out", expected)
    assert len((expected / "rejected.csv").read_text().splitlines()) == 1 + 24
    assert len(msdata.open(expected)) == 96


def test_samples_come_out_as_they_went_in(mantis_source: Path, packed: Packed) -> None:
    data = msdata.open(packed(mantis_source, "--shard-size", "4MiB"))
    assert data.schema.name == "mantis_shrimp"
    assert sum(len(data.split(s)) for s in data.splits) == len(data) == 40
    for i in range(len(data)):
        found = data[i]
        wanted = packing.mantis_object(int(found["sample_id"]))
        for name in ("panstarrs", "galex", "unwise"):
            is_nan = np.isnan(wanted[name])
            assert np.array_equal(found[name][~is_nan], wanted[name][~is_nan])
            assert np.isfinite(found[name]).all()
        assert found["filled_panstarrs"] == np.count_nonzero(np.isnan(wanted["panstarrs"]))
        no_coverage = int(found["sample_id"]) % 5 == 0
        assert found["missing_bands"] == ("galex.FUV" if no_coverage else "")
        assert found["redshift"] == pytest.approx(0.01 + int(found["sample_id"]) % 97 / 100)


def test_all_containers_hold_the_same_samples(tiny_source: Path, packed: Packed) -> None:
    tables = []
    for options in FORMATS.values():
        data = msdata.open(packed(tiny_source, *options, *packing.TINY_SHARDS))
        offsets = [n for n in data.table.column_names if n.startswith("offset_")]
        # Shards are cut by bytes, which differ by container; the order of samples does not.
        tables.append(data.table.drop_columns([*offsets, "shard"]))
        assert np.array_equal(
            data[7]["image"], msdata.open(packed(tiny_source, *options))[7]["image"]
        )
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_stock_tarfile_and_the_dali_index_agree_with_msdata(
    tiny_source: Path, packed: Packed
) -> None:
    out = packed(tiny_source, *packing.TINY_SHARDS)
    split = msdata.open(out).split("val")
    row = 0
    for path in split.shard_paths:
        lines = path.with_suffix(".idx").read_text().splitlines()
        assert lines[0] == f"v1.2 {len(lines) - 1}"
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            entries = [e for line in lines[1:] for e in np.array(line.split()).reshape(-1, 4)]
            assert [m.name for m in members] == [e[3] for e in entries]
            assert [(m.offset_data, m.size) for m in members] == [
                (int(e[1]), int(e[2])) for e in entries
            ]
            for first in range(0, len(members), 3):
                sample = split[row]
                image = np.load(io.BytesIO(tar.extractfile(members[first]).read()))
                assert np.array_equal(image, sample["image"])
                text = json.load(tar.extractfile(members[first + 2]))
                assert text["sample_id"] == sample["sample_id"]
                assert text["crc32c"] == sample["crc32c"]
                assert text["exposure_s"] == sample["exposure_s"]
                row += 1
    assert row == len(split)


def test_h5py_reads_what_the_index_says(tiny_source: Path, packed: Packed) -> None:
    for options in (FORMATS["hdf5"], FORMATS["chunked"]):
        split = msdata.open(packed(tiny_source, *options, *packing.TINY_SHARDS)).split("train")
        row = 0
        for path in split.shard_paths:
            with h5py.File(path) as file:
                for k in range(len(file["image"])):
                    sample = split[row]
                    assert np.array_equal(file["image"][k], sample["image"])
                    assert file["sample_id"][k].decode() == sample["sample_id"]
                    assert file["redshift"][k] == sample["redshift"]
                    row += 1
        assert row == len(split)


def test_a_catalogue_gives_the_same_from_csv_parquet_and_fits(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    table = pyarrow.csv.read_csv(tiny_source / "catalog.csv")
    pq.write_table(table, tmp_path / "c.parquet")
    Table({n: np.array(table[n].to_pylist()) for n in table.column_names}).write(
        tmp_path / "c.fits"
    )
    for name in ("c.parquet", "c.fits"):
        out = tmp_path / name[2:]
        options = ("--catalog", str(tmp_path / name), *packing.TINY_SHARDS, "--jobs", "1")
        assert packing.pack(tiny_source, out, *options).returncode == 0
        packing.assert_same(out, packed(tiny_source, *packing.TINY_SHARDS))


def test_without_a_catalogue_there_are_samples_without_labels(
    tiny_source: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.symlink_to(tiny_source / "photometry")
    process = packing.pack(source, tmp_path / "out", "--jobs", "1")
    assert process.returncode == 0, process.stderr
    data = msdata.open(tmp_path / "out")
    assert len(data) == 300
    assert "redshift" not in data.columns


def test_split_columns_and_fractions_decide_the_splits(tiny_source: Path, tmp_path: Path) -> None:
    packing.pack(tiny_source, tmp_path / "a", "--split-column", "fold", "--jobs", "1")
    data = msdata.open(tmp_path / "a")
    assert data.splits == ("a", "b", "c")
    numbers = [int(i) for i in data.split("b").table(["sample_id"])["sample_id"].to_pylist()]
    assert sorted(numbers) == list(range(1, 300, 3))
    packing.pack(tiny_source, tmp_path / "b", "--split", "1,0,0", "--jobs", "1")
    assert msdata.open(tmp_path / "b").splits == ("train",)


def test_the_seed_changes_order_and_splits_and_adding_objects_moves_none(
    tiny_source: Path, packed: Packed, tmp_path: Path
) -> None:
    def split_of(out: Path) -> dict[str, str]:
        table = msdata.open(out).table
        return dict(zip(table["sample_id"].to_pylist(), table["split"].to_pylist(), strict=True))

    before = split_of(packed(tiny_source))
    packing.pack(tiny_source, tmp_path / "other", "--seed", "1", "--jobs", "1")
    assert split_of(tmp_path / "other") != before
    some = tmp_path / "some"
    packing.make_source(some, 100, packing.tiny_object)
    packing.pack(some, tmp_path / "out", "--jobs", "1")
    after = split_of(tmp_path / "out")
    assert {i: before[i] for i in after} == after


def test_numbers_of_the_dicts_keep_their_values_and_step_aside_for_the_index(
    tmp_path: Path,
) -> None:
    big = 171_972_001_234_567_891
    for number in range(30):
        sample = {
            "image": np.full((2, 4), number, np.float32),
            "objid": big + number,
            "shard": 7,
            "position": number,
            "redshift": -1.0,
            "quality": np.nan if number % 2 else 0.5,
            "name": f"galaxy {number}",
        }
        packing.write_object(tmp_path / "in" / f"{number}.pkl", sample)
    packing.write_catalog(tmp_path / "in" / "catalog.csv", range(30))
    for container in ("tar", "hdf5"):
        out = tmp_path / container
        process = packing.pack(tmp_path / "in", out, "--format", container, "--jobs", "2")
        assert process.returncode == 0, process.stderr
        table = msdata.open(out).table
        for row in table.to_pylist():
            number = int(row["sample_id"])
            assert row["objid"] == big + number
            assert row["position"] == number
            assert row["object_shard"] == 7
            assert row["object_redshift"] == -1.0
            assert row["redshift"] == pytest.approx(0.01 + number / 100)
            assert np.isnan(row["quality"]) if number % 2 else row["quality"] == 0.5
        assert table.schema.field("objid").type == pa.int64()


def test_catalogue_columns_named_like_the_index_are_kept_under_another_name(
    tiny_source: Path, tmp_path: Path
) -> None:
    table = pyarrow.csv.read_csv(tiny_source / "catalog.csv")
    for name in ("shard", "missing_bands", "image", "a/b", "crc32c", "num_nan"):
        table = table.append_column(name, pa.array(np.arange(len(table)) % 5))
    pq.write_table(table, tmp_path / "c.parquet")
    for container in ("tar", "hdf5"):
        options = ("--catalog", str(tmp_path / "c.parquet"), "--format", container)
        process = packing.pack(tiny_source, tmp_path / container, *options, "--jobs", "1")
        assert process.returncode == 0, process.stderr
        data = msdata.open(tmp_path / container)
        wanted = {"catalog_shard", "catalog_missing_bands", "catalog_image", "a_b"}
        assert wanted < set(data.columns)
        row = data[3]
        assert row["catalog_image"] == int(row["sample_id"]) % 5
        assert row["image"].shape == (3, 8, 8)


def test_block_files_keep_the_splits_they_have(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 3}
    for split, count in counts.items():
        folder = tmp_path / "blocks" / split
        folder.mkdir(parents=True)
        rows = np.arange(count, dtype=np.float32)[:, None] + np.linspace(0.1, 0.9, NUM_COLUMNS)
        np.save(folder / "mantis_shrimp_0.npy", rows.astype(np.float32))
    process = packing.pack(tmp_path / "blocks", tmp_path / "out", "--jobs", "2")
    assert process.returncode == 0, process.stderr
    data = msdata.open(tmp_path / "out")
    assert {s: len(data.split(s)) for s in data.splits} == counts
    refused = packing.pack(tmp_path / "blocks", tmp_path / "again", "--split", "1,0,0")
    assert refused.returncode == 2
    assert "are split already, by their folders or names; leave it out" in refused.stderr


def test_rejected_csv_is_sorted_and_complete(flawed_source: Path, packed: Packed) -> None:
    with (packed(flawed_source, *packing.TINY_SHARDS) / "rejected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["sample_id"] for r in rows] == sorted(r["sample_id"] for r in rows)
    reasons = {int(r["sample_id"]) % 20: r["reason"] for r in rows}
    assert sorted(reasons) == [0, 3, 6, 9]
    assert "trunc" in reasons[0]
    assert reasons[3] == "the file is empty"
    assert "shape (3, 8, 9) instead of (3, 8, 8)" in reasons[6]
    assert reasons[9] == "no row in the catalog"


def test_what_an_object_holds_beside_its_arrays_does_not_cost_it(tmp_path: Path) -> None:
    for number in range(6):
        sample = packing.tiny_object(number)
        sample["exposure_s"] = None if number == 4 else 1.5 * number
        sample["header"] = {"cards": {"EXPTIME": [1, 2]}}
        packing.write_object(tmp_path / "in" / f"{number}.pkl", sample)
    for container in ("tar", "hdf5"):
        out = tmp_path / container
        process = packing.pack(tmp_path / "in", out, "--format", container, "--jobs", "1")
        assert process.returncode == 0, process.stderr
        found = {r["sample_id"]: r["exposure_s"] for r in msdata.open(out).table.to_pylist()}
        assert found == {str(n): None if n == 4 else 1.5 * n for n in range(6)}


def test_no_fraction_of_nan_may_be_too_large_whatever_the_arrays(
    tiny_source: Path, tmp_path: Path
) -> None:
    process = packing.pack(tiny_source, tmp_path / "out", "--max-nan-fraction", "1", "--jobs", "1")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--split", "1,0,0", "--split-column", "fold"), "contradict each other; give one of them"),
        (("--max-nan-fraction", "0.5"), "applies to no array: none has named bands"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    options: tuple[str, ...], says: str, tiny_source: Path, tmp_path: Path
) -> None:
    process = packing.pack(tiny_source, tmp_path / "out", *options)
    assert process.returncode == 2
    assert says in process.stderr
    assert process.stderr.count("\n") == 1
