"""What becomes of a catalogue's columns, ids and doubtful values on the way into a data set."""

from __future__ import annotations

import csv
from pathlib import Path

import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import msdata
from msdata.errors import UsageError
from msdata.fetch.targets import Slice, read_targets
from msdata.pack.settings import PackSettings
from msdata.sources.pickles import object_path


def make_objects(folder: Path, stems: list[str]) -> Path:
    """A folder of tiny objects of these names."""
    for number, stem in enumerate(stems):
        packing.write_object(folder / f"{stem}.npy", packing.tiny_object(number))
    return folder


def rejected(out: Path) -> dict[str, str]:
    """Reason of each rejected object, by id."""
    with (out / "rejected.csv").open(newline="") as file:
        return {row["sample_id"]: row["reason"] for row in csv.DictReader(file)}


def test_integers_and_bools_keep_their_type_in_the_index_where_some_are_absent(
    tmp_path: Path,
) -> None:
    source = make_objects(tmp_path / "in", [str(n) for n in range(4)])
    columns = {
        "id": pa.array(range(4)),
        "redshift": [0.1, 0.2, 0.3, 0.4],
        "visits": pa.array([2**62 + 1, None, 3, None]),
        "large": pa.array([2**64 - 1, None, 1, 2**63], pa.uint64()),
        "good": pa.array([True, None, False, True]),
    }
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table(columns), path)
    for container in ("tar", "hdf5"):
        out = tmp_path / container
        words = ("--catalog", str(path), "--format", container, "--jobs", "1")
        process = packing.pack(source, out, *words)
        assert process.returncode == 0, process.stderr
        table = pq.read_table(out / "index.parquet").sort_by("sample_id")
        for name in ("visits", "large", "good"):
            assert table[name].type == columns[name].type
            assert table[name].to_pylist() == columns[name].to_pylist()


def test_doubtful_labels_are_counted_and_the_limits_are_options(tmp_path: Path) -> None:
    source = make_objects(tmp_path / "in", ["1", "2", "3"])
    rows = "1,0.3,0.02\n2,9.9999,0.03\n3,0.4,-999\n"
    (source / "catalog.csv").write_text(f"id,z,ebv\n{rows}")
    process = packing.pack(source, tmp_path / "out", "--jobs", "1")
    assert process.returncode == 0, process.stderr
    assert "redshifts outside -0.01 to 8, such as 9.9999, count as absent: 1" in process.stdout
    assert "values of 'ebv' outside -0.1 to 5, such as -999, count as absent: 1" in process.stdout
    reason = "redshift 9.9999 in the catalog is outside -0.01 to 8"
    assert rejected(tmp_path / "out") == {"2": reason}
    data = msdata.open(tmp_path / "out")
    assert {r["sample_id"]: r["ebv"] for r in data.table.to_pylist()} == {"1": 0.02, "3": None}
    words = ("--redshift-range", "-0.5", "12", "--ebv-range", "-1000", "1", "--jobs", "1")
    process = packing.pack(source, tmp_path / "wide", *words)
    assert process.returncode == 0, process.stderr
    assert "count as absent" not in process.stdout
    assert msdata.open(tmp_path / "wide").table.num_rows == 3
    again = packing.pack(source, tmp_path / "wide", "--resume", "--jobs", "1")
    assert again.returncode == 2
    assert "--redshift-range -0.5,12.0, not -0.01,8.0" in again.stderr


@pytest.mark.parametrize("limits", [(0.5, 0.5), (1.0, 0.0), (-1.0, 2.0), (0.0, float("nan"))])
def test_limits_that_are_no_range_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="--redshift-range must be two increasing numbers above"):
        PackSettings(source=Path("s"), out=Path("o"), redshift_range=limits)


def test_a_pack_that_rejects_most_objects_says_why_and_fails(tmp_path: Path) -> None:
    source = make_objects(tmp_path / "in", [str(n) for n in range(9)])
    rows = "".join(f"{n},{z}\n" for n, z in enumerate([0.1, 0.2, 0.3, 99, 98, ""]))
    (source / "catalog.csv").write_text(f"id,z\n{rows}")
    process = packing.pack(source, tmp_path / "out", "--jobs", "1")
    assert process.returncode == 1
    assert process.stderr.splitlines() == [
        "msdata pack: 6 of 9 objects were rejected: no row in the catalog (3), redshift N in the "
        "catalog is outside N to N (2), no redshift in the catalog (1); see "
        f"{tmp_path / 'out' / 'rejected.csv'}; if you expect that, give --max-rejected 6"
    ]
    assert msdata.open(tmp_path / "out").table.num_rows == 3
    meant = packing.pack(source, tmp_path / "meant", "--jobs", "1", "--max-rejected", "6")
    assert meant.returncode == 0, meant.stderr
    # Half of them is not most of them.
    (source / "catalog.csv").write_text("id,z\n" + "".join(f"{n},0.1\n" for n in range(5)))
    half = packing.pack(source, tmp_path / "half", "--jobs", "1")
    assert half.returncode == 0, half.stderr


def test_what_is_fetched_by_a_catalogue_is_packed_by_it(tmp_path: Path) -> None:
    """Of one pair that differs by zeros alone both are left out, of all others none."""
    ids = ["5", "0000005", "6", "07", "12345678", "000123456789", "J12-x", "8.0b"]
    catalog = tmp_path / "catalog.csv"
    rows = "".join(f"{i},{n}.5,1.5,0.{n + 1}\n" for n, i in enumerate(ids))
    catalog.write_text(f"id,ra,dec,redshift\n{rows}")
    targets, remarks = read_targets(catalog, id_column=None, part=Slice())
    assert len(targets) == 6
    assert any("differ by leading zeros alone, such as '5' and '0000005'" in r for r in remarks)
    for number, target in enumerate(targets):
        path = tmp_path / "objects" / object_path(target.sample_id, ".npy")
        packing.write_object(path, packing.tiny_object(number))
    words = ("--catalog", str(catalog), "--jobs", "1")
    process = packing.pack(tmp_path / "objects", tmp_path / "out", *words)
    assert process.returncode == 0, process.stderr
    assert rejected(tmp_path / "out") == {}
    wanted = {t.sample_id: t.ra for t in targets}
    found = {r["sample_id"]: r["ra"] for r in msdata.open(tmp_path / "out").table.to_pylist()}
    assert found == wanted


@pytest.mark.parametrize("name", ["a.tmp", "exists_mask", "#5", "a/b"])
def test_an_id_whose_file_a_pack_would_pass_over_is_not_fetched(tmp_path: Path, name: str) -> None:
    (tmp_path / "c.csv").write_text(f"id,ra,dec\n1,2,3\n{name},4,5\n")
    with pytest.raises(UsageError, match="cannot name a file"):
        read_targets(tmp_path / "c.csv", id_column=None, part=Slice())
