"""`msdata index add`: columns of a table beside the index of a packed data set."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import msdata
from msdata.cli import main
from msdata.dataset.added import added_fingerprint
from msdata.errors import DataError, UsageError
from msdata.verify.verify import verify_dataset

NUM = 30


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A data set of 30 tiny samples, ids 0000000 to 0000029, in three splits."""
    folder = tmp_path_factory.mktemp("packed") / "DATA"
    with msdata.Writer(folder, seed=1) as writer:
        for number in range(NUM):
            image = np.full((2, 4, 4), number, np.float32)
            writer.write(f"{number:07d}", {"image": image}, redshift=number / 100)
    return folder


@pytest.fixture
def data(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "DATA"))


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def table(folder: Path, ids: list[int], **more: object) -> Path:
    z = [n / 100 + 0.001 for n in ids]
    return write(folder / "strm.parquet", id=ids, z_phot=z, flag=[f"f{n}" for n in ids], **more)


def test_added_columns_are_read_like_those_of_the_index(data, tmp_path, capsys):
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    # In another order, and not all of them.
    report = msdata.add_columns(
        data, table(tmp_path, [*range(NUM - 1, 2, -1)]), take={"photoz": "z_phot", "flag": "flag"}
    )
    assert (report.num_samples, report.num_missing, report.num_unknown) == (NUM, 3, 0)
    assert all(p.read_bytes() == content for p, content in before.items())
    opened = msdata.open(data)
    for name in opened.splits:
        split = opened.split(name)
        ids = split.table(["sample_id"])["sample_id"].to_pylist()
        wanted = [int(i) / 100 + 0.001 if int(i) > 2 else np.nan for i in ids]
        np.testing.assert_array_equal(split.numbers("photoz"), wanted)
        flags = [f"f{int(i)}" if int(i) > 2 else None for i in ids]
        # Beside a column of the index, alone, with all others, by sample, and pickled.
        assert split.table(["flag", "redshift"])["flag"].to_pylist() == flags
        assert opened.table["flag"].to_pylist().count("f5") == 1
        assert split[0]["flag"] == flags[0]
        again = pickle.loads(pickle.dumps(split))
        np.testing.assert_array_equal(again.numbers("photoz"), wanted)
        loader = msdata.Loader(split, batch_size=1, columns=["photoz"], policy="sequential")
        with loader:
            found = np.concatenate([batch["photoz"] for batch in loader])
        np.testing.assert_array_equal(np.sort(found), np.sort(wanted))
    # A second table, and both survive.
    assert main(["index", "add", str(data), str(table(tmp_path, [*range(NUM)], mag=[1.5] * NUM)),
                 "--take", "r=mag", "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["columns"] == ["r"]
    assert {"photoz", "flag", "r"} <= {*msdata.open(data).columns}
    assert not verify_dataset(data).faults
    assert not verify_dataset(data).notes
    assert main(["info", str(data)]) == 0
    assert "added later from strm.parquet: photoz, flag; 3 samples had no row" in (
        capsys.readouterr().out
    )
    assert main(["card", str(data)]) == 0
    assert "columns-001.parquet" in (data / "CARD.md").read_text()


def test_samples_keep_their_fingerprint_and_the_added_columns_get_one(data, tmp_path):
    before = msdata.open(data)
    assert added_fingerprint(before.added) is None
    msdata.add_columns(data, table(tmp_path, [*range(NUM)]), take=["z_phot"])
    after = msdata.open(data)
    assert after.manifest.fingerprint == before.manifest.fingerprint
    assert len(added_fingerprint(after.added)) == 16


@pytest.mark.parametrize(
    ("ids", "take", "message"),
    [
        ([*range(NUM), 77, 78], None, r"2 of 32 rows .* have an id that no sample"),
        ([*range(NUM), 3, 4], None, r"2 rows .* repeat an id of another row, first '3'"),
        ([77, 78], None, r"no sample of .* has a row in .*: a sample is '0000"),
        ([1, 2], ["redshift=z_phot"], r"cannot add 1 of 1 columns .* reserves redshift"),
        ([1, 2], ["crc32c=z_phot", "a=flag"], r"cannot add 1 of 2 columns .* crc32c; rename"),
        ([1, 2], ["image=z_phot"], r"has or reserves image"),
        ([1, 2], ["z_fot"], r"has no column z_fot; it has id, z_phot, flag"),
        ([1, 2], ["a/b=flag"], r"without '/'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_number(data, tmp_path, ids, take, message):
    source, before = table(tmp_path, ids), sorted(data.iterdir())
    renamed = None if take is None else dict((t.split("=") * 2)[:2] for t in take)
    with pytest.raises(UsageError, match=message):
        msdata.add_columns(data, source, take=renamed)
    assert sorted(data.iterdir()) == before


def test_unknown_rows_are_left_out_if_asked_and_names_clash_the_second_time(data, tmp_path, capsys):
    source = table(tmp_path, [*range(NUM), 77])
    words = ["index", "add", str(data), str(source), "--skip-unknown"]
    assert main(words) == 0
    assert "1 rows left out" in capsys.readouterr().out
    assert main(words) == 2
    assert "cannot add 2 of 2 columns" in capsys.readouterr().err


def test_a_removed_or_altered_side_table_is_told(data, tmp_path):
    msdata.add_columns(data, table(tmp_path, [*range(NUM)]), take=["z_phot"])
    side = data / "columns-000.parquet"
    whole = side.read_bytes()
    for content, message in (
        (None, "is missing, with the added columns z_phot"),
        (whole[:-1] + b"X", "was altered or truncated, with the added columns z_phot"),
    ):
        if content is None:
            side.unlink()
        else:
            side.write_bytes(content)
        with pytest.raises(DataError, match=message):
            msdata.open(data)
        report = verify_dataset(data)
        assert [(f.kind, f.path) for f in report.faults] == [("columns", side.name)]
        # The samples were checked all the same.
        assert report.num_samples == NUM
        assert main(["verify", str(data), "--quiet"]) == 1
    side.write_bytes(whole)
    assert not verify_dataset(data).faults


def test_a_registry_from_elsewhere_is_refused(data, packed, tmp_path):
    msdata.add_columns(data, table(tmp_path, [*range(NUM)]), take=["z_phot"])
    registry = data / "columns.json"
    content = json.loads(registry.read_text())
    for change, message in (
        ({"fingerprint": "0" * 16}, "is of data set 0000000000000000"),
        ({"tables": [{**content["tables"][0], "name": "../x.parquet"}]}, "names are plain"),
        ({"tables": [{**content["tables"][0], "columns": ["redshift"]}]}, "must have the columns"),
        ({"tables": content["tables"] * 2}, "distinct columns"),
    ):
        registry.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=message):
            msdata.open(data)
        assert verify_dataset(data).faults
    # Deleting it takes the columns away; what is left is told, and may be replaced.
    registry.unlink()
    assert "z_phot" not in msdata.open(data).columns
    assert any("columns-000.parquet does not belong" in n for n in verify_dataset(data).notes)
    msdata.add_columns(data, table(tmp_path, [*range(NUM)]), take=["z_phot"])
    assert "z_phot" in msdata.open(data).columns


def test_three_paths_without_add_and_a_folder_named_add(data, tmp_path, capsys, monkeypatch):
    source = table(tmp_path, [*range(NUM)])
    assert main(["index", "./add", str(data), str(source)]) == 2
    assert "or 'add' DATA TABLE, got three paths" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    Path("add").mkdir()
    np.save("add/a.npy", np.ones((2, 4, 4), np.float32))
    np.save("add/b.npy", np.ones((2, 4, 4), np.float32))
    assert main(["index", "./add", "out", "--split", "1,0,0"]) == 0
    assert len(msdata.open("out")) == 2
    assert main(["index", "add", "other", "--take", "x"]) == 2
    assert "must be used with 'msdata index add DATA TABLE'" in capsys.readouterr().err
