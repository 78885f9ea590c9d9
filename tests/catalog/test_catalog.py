"""Catalogs of every format give every object its label, or the reason why not."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.catalog.join import ALIKE, Catalog, Joined, join, read_catalog
from msdata.errors import DataError, UsageError


def _candidates(ids: list[str], catalog_row: list[int] | None = None) -> pa.Table:
    columns: dict[str, Any] = {
        "sample_id": pa.array(ids, pa.string()),
        "path": [f"{number}/{name}.npy" for number, name in enumerate(ids)],
        "row": pa.array([-1] * len(ids), pa.int64()),
    }
    if catalog_row is not None:
        columns["catalog_row"] = pa.array(catalog_row, pa.int64())
    return pa.table(columns)


def _csv(tmp_path: Path, text: str, **options: Any) -> Catalog:
    path = tmp_path / "catalog.csv"
    path.write_text(text)
    return read_catalog(path, **options)


def _column(joined: Joined, name: str) -> list[Any]:
    values: list[Any] = joined.table[name].to_pylist()
    return values


COLUMNS = {
    "objid": np.array([1, 2, 3]),
    "Z": np.array([0.1, 0.2, np.nan]),
    "RA": np.array([10.0, 20.0, 30.0]),
    "DEC": np.array([-1.0, 0.0, 1.0]),
    "survey": np.array(["SDSS", "DESI", "GAMA"]),
    "good": np.array([True, False, True]),
}


def _write(path: Path, kind: str) -> Path:
    table = pa.table(COLUMNS)
    if kind.startswith("csv"):
        pa.csv.write_csv(table, path)
    elif kind == "parquet":
        pa.parquet.write_table(table, path)
    else:
        from astropy.table import Table

        fits = Table({name: v.astype(v.dtype.newbyteorder(">")) for name, v in COLUMNS.items()})
        fits["survey"] = ["SDSS  ", "DESI", "GAMA "]
        fits["fluxes"] = np.zeros((3, 5))
        fits.write(path, format="fits")
    if kind.endswith("gz") and path.read_bytes()[:2] != b"\x1f\x8b":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("suffix", ["", ".anything"])
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "fits", "fits.gz"])
def test_every_format_gives_the_same_labels(tmp_path: Path, kind: str, suffix: str) -> None:
    catalog = read_catalog(_write(tmp_path / f"catalog.{kind}{suffix}", kind))
    joined = join(_candidates(["0000002", "0000001"]), catalog)
    assert _column(joined, "redshift") == [0.2, 0.1]
    assert _column(joined, "ra") == [20.0, 10.0]
    assert _column(joined, "dec") == [0.0, -1.0]
    assert _column(joined, "survey") == ["DESI", "SDSS"]
    assert _column(joined, "good") == [False, True]
    assert _column(joined, "objid") == [2, 1]
    assert "fluxes" not in joined.table.column_names
    assert bool(catalog.notes) == kind.startswith("fits")
    assert joined.num_rejected == 0


def test_masked_fits_values_are_null(tmp_path: Path) -> None:
    from astropy.table import MaskedColumn, Table

    ebv = MaskedColumn([1, 2], mask=[False, True], fill_value=-99)
    Table({"id": ["a", "b"], "z": [0.1, 0.2], "n": ebv}).write(tmp_path / "c.fits")
    joined = join(_candidates(["a", "b"]), read_catalog(tmp_path / "c.fits"))
    assert _column(joined, "n") == [1, None]


def test_objects_without_a_usable_redshift_have_the_reason(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "id,z\na,0.5\nb,\nc,nan\nd,inf\n")
    joined = join(_candidates(["a", "b", "c", "d", "e"]), catalog)
    assert _column(joined, "reason") == [
        None,
        *["no redshift in the catalog"] * 2,
        "redshift inf in the catalog is outside -0.01 to 8",
        "no row in the catalog",
    ]
    assert joined.num_rejected == 4


def test_the_first_of_objects_with_one_id_is_kept(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "id,z\n0001234,0.5\n7,0.1\n")
    joined = join(_candidates(["1234", "1234", "7"]), catalog)
    assert _column(joined, "reason") == [None, "duplicate id; 0/1234.npy is kept", None]


def test_objects_whose_ids_differ_by_zeros_alone_share_no_label(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "id,z\n5,0.5\n7,0.1\n")
    reasons = _column(join(_candidates(["0000005", "07", "5", "07"]), catalog), "reason")
    assert reasons[0] == reasons[2] == ALIKE
    assert reasons[1] is None
    assert reasons[3].startswith("duplicate id")


def test_only_the_ids_that_differ_by_zeros_alone_are_ambiguous(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n / 100}\n" for n in range(30))
    catalog = _csv(tmp_path, f"id,z\n{rows}0000005,0.9\nx01,0.4\nx1,0.5\n")
    stems = [f"{n:07d}" for n in range(30)]
    joined = join(_candidates([*stems, "x01", "x1"]), catalog)
    assert joined.num_rejected == 1
    assert _column(joined, "reason")[5].startswith("ambiguous id: rows of the catalog differ")
    redshifts = _column(joined, "redshift")
    assert redshifts[:5] + redshifts[6:] == [n / 100 for n in range(30) if n != 5] + [0.4, 0.5]
    # Of a repeated row there is nothing to doubt.
    catalog = _csv(tmp_path, "id,z\n0005,0.5\n0005,0.5\n")
    assert _column(join(_candidates(["5"]), catalog), "reason") == [None]


def test_ids_beyond_64_bits_are_not_rounded(tmp_path: Path) -> None:
    big = 2**64 + 1
    catalog = _csv(tmp_path, f"id,z\n{big},0.5\n{big + 1},0.1\n")
    joined = join(_candidates([str(big), str(big + 1)]), catalog)
    assert _column(joined, "redshift") == [0.5, 0.1]


def test_equal_catalog_rows_count_once_and_conflicting_ones_reject(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "id,z,t\na,0.5,\na,0.5,\nb,0.1,x\nb,0.2,x\n,0.3,\n,0.4,\n")
    joined = join(_candidates(["a", "b"]), catalog)
    assert _column(joined, "reason") == [None, "conflicting rows in the catalog"]


def test_a_catalog_row_number_joins_without_ids(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "zspec,name\n0.1,x\n0.2,y\n")
    joined = join(_candidates(["0000001", "0000000", "0000009"], [1, 0, 9]), catalog)
    assert _column(joined, "redshift") == [0.2, 0.1, None]
    assert _column(joined, "reason") == [None, None, "no row in the catalog"]
    with pytest.raises(UsageError, match="2 rows, the first object is of row 5"):
        join(_candidates(["0000005"], [5]), catalog)


def test_names_that_the_index_needs_are_moved_out_of_the_way(tmp_path: Path) -> None:
    text = "sample_id,z,redshift,split,offset_x,catalog_split,path\na,0.1,0.9,train,1,c,p\n"
    catalog = _csv(tmp_path, text, redshift_column="z")
    joined = join(_candidates(["a"]), catalog)
    assert _column(joined, "redshift") == [0.1]
    assert _column(joined, "catalog_redshift") == [0.9]
    assert _column(joined, "catalog_split_") == ["train"]
    assert _column(joined, "catalog_split") == ["c"]
    assert _column(joined, "catalog_offset_x") == [1]
    assert _column(joined, "path") == ["0/a.npy"]
    assert len(set(joined.table.column_names)) == joined.table.num_columns
    assert any("'split' is kept as 'catalog_split_'" in note for note in catalog.notes)


def test_only_the_columns_asked_for_are_kept(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "id,z,ra,ebv,x\na,0.1,1,2,3\n", columns=["ebv"])
    assert catalog.columns.column_names == ["redshift", "ra", "ebv"]
    with pytest.raises(UsageError, match=r"no column 'ebw' \(--columns\).*did you mean 'ebv'"):
        _csv(tmp_path, "id,z,ebv\na,0.1,1\n", columns=["ebw"])


def test_a_wrong_or_unknown_column_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'objd' \(--id-column\); it has objid, z; did you mean"):
        _csv(tmp_path, "objid,z\n1,0.1\n", id_column="objd")
    with pytest.raises(UsageError, match="has id, q; name it with --redshift-column"):
        _csv(tmp_path, "id,q\n1,0.1\n")
    with pytest.raises(UsageError, match="'z' holds string, not numbers"):
        _csv(tmp_path, "id,z\n1,high\n")
    catalog = _csv(tmp_path, "nome,z\n1,0.1\n")
    with pytest.raises(UsageError, match="has nome, z; name it with --id-column"):
        join(_candidates(["1"]), catalog)
    assert join(_candidates(["1"]), _csv(tmp_path, "nome,z\n1,0.1\n", id_column="nome"))


def test_when_nothing_matches_both_sides_are_shown(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "id,z\n99,0.1\n")
    with pytest.raises(UsageError, match=r"object is '0000001', an id in column 'id' is '99'"):
        join(_candidates(["0000001"]), catalog)


def test_files_that_are_no_catalog_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        read_catalog(tmp_path / "nope.csv")
    (tmp_path / "frame.pkl").write_bytes(pickle.dumps({"z": [1]}))
    with pytest.raises(UsageError, match="pickles run code: save it with DataFrame"):
        read_catalog(tmp_path / "frame.pkl")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"bad\.parquet is broken"):
        read_catalog(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="is broken"):
        _csv(tmp_path, "id,z\n1,2,3\n")
    fits = _write(tmp_path / "c.fits", "fits")
    whole = fits.read_bytes()
    for num_bytes in (2000, len(whole) // 2880 * 2880 - 2880 + 10):
        fits.write_bytes(whole[:num_bytes])
        with pytest.raises(DataError, match=r"c\.fits is broken"):
            read_catalog(fits)
    fits.write_bytes(whole[:4000])
    with pytest.raises(UsageError, match=r"no table: it holds images only, or is truncated"):
        read_catalog(fits)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match=r"empty\.csv is broken"):
        read_catalog(tmp_path / "empty.csv")
    whole = _write(tmp_path / "c.csv.gz", "csv.gz").read_bytes()
    (tmp_path / "c.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"c\.csv\.gz is broken"):
        read_catalog(tmp_path / "c.csv.gz")


@given(
    ids=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    objects=st.lists(st.integers(0, 30), min_size=1, max_size=20),
)
def test_the_join_equals_a_plain_loop(ids: list[int], objects: list[int]) -> None:
    catalog = Catalog(
        path=Path("c"),
        ids=pa.array([str(i) for i in ids]),
        id_column="id",
        file_columns=("id", "z"),
        columns=pa.table({"redshift": [i / 10 for i in ids]}),
    )
    stems = [f"{n:07d}" for n in objects]
    if not set(ids) & set(objects):
        with pytest.raises(UsageError, match="no object has a row"):
            join(_candidates(stems), catalog)
        return
    joined = join(_candidates(stems), catalog)
    for place, (number, row) in enumerate(zip(objects, joined.table.to_pylist(), strict=True)):
        if number in objects[:place]:
            assert row["reason"].startswith("duplicate id")
        elif number not in ids:
            assert row["reason"] == "no row in the catalog"
        else:
            assert row["reason"] is None and row["redshift"] == number / 10


def test_objects_without_redshift_are_kept_where_they_are_wanted(tmp_path: Path) -> None:
    text = "id,z,ebv\n1,0.5,0.1\n2,,0.2\n"
    joined = join(_candidates(["1", "2"]), _csv(tmp_path, text, needs_redshift=False))
    assert joined.num_rejected == 0
    assert _column(joined, "redshift") == [0.5, None]
    without = _csv(tmp_path, "id,ebv\n1,0.1\n2,0.2\n", needs_redshift=False)
    joined = join(_candidates(["1", "2"]), without)
    assert joined.num_rejected == 0
    assert "redshift" not in joined.table.column_names
    with pytest.raises(UsageError, match="or give --unlabelled"):
        _csv(tmp_path, "id,ebv\n1,0.1\n")


def test_a_catalog_without_rows_or_with_sexagesimal_positions_says_so(tmp_path: Path) -> None:
    path = tmp_path / "catalog.csv"
    path.write_text("id,ra,dec,redshift\n")
    with pytest.raises(UsageError, match=r"catalog\.csv has no rows, only names of columns"):
        read_catalog(path)
    path.write_text("id,ra,dec,redshift\n1,10h,5,0.1\n")
    with pytest.raises(UsageError, match=r"'ra' holds string.*write positions as decimal degrees"):
        read_catalog(path)


def test_one_name_among_the_numbers_does_not_undo_the_join(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "id,z\n0,0.1\n1,0.2\n-3,0.4\ntotal,0.3\n,0.5\n")
    joined = join(_candidates(["0000000", "0000001", "-3", "total", "Total"]), catalog)
    assert _column(joined, "redshift") == [0.1, 0.2, 0.4, 0.3, None]


def test_ids_with_a_decimal_point_are_whole_numbers_unless_digits_are_lost(tmp_path: Path) -> None:
    catalog = _csv(tmp_path, "id,z\n12.0,0.1\n-7.0,0.2\n,0.3\n")
    joined = join(_candidates(["0000012", "-7"]), catalog)
    assert _column(joined, "redshift") == [0.1, 0.2]
    names = _csv(tmp_path, "id,z\n12.0,0.1\nx.0,0.2\n")
    assert _column(join(_candidates(["12.0"]), names), "redshift") == [0.1]
    for text in (f"{2**53 + 2}.0", "1.237648720693756e+18"):
        with pytest.raises(UsageError, match=r"'id' were written as floating-point .*lost their"):
            _csv(tmp_path, f"id,z\n1.0,0.1\n{text},0.2\n")
    path = tmp_path / "c.parquet"
    pa.parquet.write_table(pa.table({"id": [1.0, 2.0**53], "z": [0.1, 0.2]}), path)
    with pytest.raises(UsageError, match="such as 9007199254740992, and have lost"):
        read_catalog(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"c.{kind}"
    table = pa.Table.from_arrays([[1], [0.1], [0.9]], names=["id", "redshift", "redshift"])
    (pa.csv.write_csv if kind == "csv" else pa.parquet.write_table)(table, path)
    with pytest.raises(UsageError, match=r"has 2 columns named 'redshift'; rename all but one"):
        read_catalog(path)


def test_a_z_that_may_be_a_magnitude_is_asked_about(tmp_path: Path) -> None:
    text = "id,u,G,r,i,z\n1,22,21,20,19.5,0.31\n"
    with pytest.raises(UsageError, match=r"'z' beside u and G, so.*--redshift-column z, or anoth"):
        _csv(tmp_path, text)
    asked = _csv(tmp_path, text, redshift_column="z")
    assert _column(join(_candidates(["1"]), asked), "redshift") == [0.31]
    assert "redshift" not in _csv(tmp_path, text, needs_redshift=False).columns.column_names
    named = _csv(tmp_path, "id,g,r,i,z,zspec\n1,21,20,19.5,19.1,0.3\n")
    assert _column(join(_candidates(["1"]), named), "redshift") == [0.3]


@pytest.mark.parametrize(
    "others", [("g", "r"), ("x", "Y"), ("J", "Ks"), ("i", "y"), ("X", "y", "g")]
)
def test_a_z_beside_bands_or_coordinates_is_no_redshift(
    tmp_path: Path, others: tuple[str, ...]
) -> None:
    text = f"id,z,{','.join(others)}\n1,20.1{',1' * len(others)}\n"
    with pytest.raises(UsageError, match=r"so it may be a magnitude or a coordinate"):
        _csv(tmp_path, text)
    plain = _csv(tmp_path, text, needs_redshift=False)
    assert "redshift" not in plain.columns.column_names
    assert any("'z' beside" in note and "not taken as redshift" in note for note in plain.notes)
    one = _csv(tmp_path, "id,z,g,x\n1,0.2,1,1\n")
    assert one.columns["redshift"].to_pylist() == [0.2]


def test_redshifts_outside_the_range_are_doubted_with_a_count(tmp_path: Path) -> None:
    kept = [-0.002, 0.0, 1.6, 7.64]
    sentinels = [-99, -1, -9.99, 9.9999, 99, 999.9, 1e20, -0.5]
    rows = "".join(f"{n},{z}\n" for n, z in enumerate([*kept, *sentinels]))
    catalog = _csv(tmp_path, f"id,z\n{rows}")
    assert catalog.notes == (
        "redshifts outside -0.01 to 8, such as -99, -1, -9.99, count as absent: 8 "
        "(--redshift-range sets the limits)",
    )
    joined = join(_candidates([str(n) for n in range(12)]), catalog)
    assert _column(joined, "redshift") == [*kept, *[None] * 8]
    assert joined.num_rejected == 8
    reasons = _column(joined, "reason")
    assert reasons[7] == "redshift 9.9999 in the catalog is outside -0.01 to 8"
    wide = _csv(tmp_path, f"id,z\n{rows}", redshift_range=(-0.6, 100))
    assert wide.columns["redshift"].null_count == 5
    unlabelled = _csv(tmp_path, f"id,z\n{rows}", needs_redshift=False)
    assert join(_candidates(["4"]), unlabelled).num_rejected == 0


def test_reddening_outside_the_range_is_absent_with_a_count(tmp_path: Path) -> None:
    text = "id,z,ebv_csfd,EBV,E(B-V),ebv_err,sebvx,ebv_n\n"
    rows = ["1,0.1,-999,-9.0,99,-999,-999,-99", "2,0.2,-0.02,0.5,4.9,-999,-999,0"]
    catalog = _csv(tmp_path, text + "\n".join(rows) + "\n")
    columns = {name: catalog.columns[name].to_pylist() for name in catalog.columns.column_names}
    assert columns["ebv_csfd"] == [None, -0.02]
    assert columns["EBV"] == [None, 0.5]
    assert columns["E(B-V)"] == [None, 4.9]
    assert columns["ebv_n"] == [None, 0]
    # Neither errors nor other words that hold these letters.
    assert columns["ebv_err"] == columns["sebvx"] == [-999, -999]
    assert len(catalog.notes) == 4
    assert catalog.notes[0] == (
        "values of 'ebv_csfd' outside -0.1 to 5, such as -999, count as absent: 1 "
        "(--ebv-range sets the limits)"
    )


def test_text_among_redshifts_is_shown_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds string, not numbers, the first is '--' in row 2;"):
        _csv(tmp_path, "id,z\n1,0.1\n2,--\n3,\n")


def test_a_second_column_that_could_be_the_id_is_noted(tmp_path: Path) -> None:
    notes = _csv(tmp_path, "id,objid,z\n1,7,0.1\n").notes
    assert notes == ("ids are taken from column 'objid', not from 'id'; --id-column names another",)
    assert not _csv(tmp_path, "id,objid,z\n1,7,0.1\n", id_column="id").notes
    assert not _csv(tmp_path, "id,mantis_id,z\n1,7,0.1\n").notes


def test_integers_stay_exact_whatever_their_size(tmp_path: Path) -> None:
    big, huge = 2**63, 2**64
    text = f"id,z,u,n,t,f\n1,0.1,{big},{big - 1},{huge},{2**60}\n2,0.2,{huge - 1},,7,0.5\n"
    columns = _csv(tmp_path, text).columns
    assert columns["u"].to_pylist() == [big, huge - 1]
    assert columns["u"].type == pa.uint64()
    assert columns["n"].to_pylist() == [big - 1, None]
    assert columns["n"].type == pa.int64()
    assert columns["t"].to_pylist() == [str(huge), "7"]
    assert columns["f"].to_pylist() == [float(2**60), 0.5]
    assert any("'t' holds integers beyond 64 bits" in n for n in _csv(tmp_path, text).notes)
    path = tmp_path / "c.parquet"
    decimals = pa.array([2**62 + 1, None]).cast(pa.decimal128(38, 0))
    table = {"id": [1, 2], "z": [0.1, 0.2], "d": decimals, "good": [True, None]}
    pa.parquet.write_table(pa.table(table), path)
    columns = read_catalog(path).columns
    assert columns["d"].to_pylist() == [2**62 + 1, None]
    assert columns["good"].to_pylist() == [True, None]


def test_ids_in_single_precision_are_refused_where_they_are_rounded(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    ids = pa.array([1.0, None, 2.0**24 - 1], pa.float32())
    pa.parquet.write_table(pa.table({"id": ids, "z": [0.1, 0.2, 0.3]}), path)
    catalog = read_catalog(path)
    assert catalog.ids is not None
    assert catalog.ids.to_pylist() == ["1", None, "16777215"]
    assert catalog.notes == ("rows of the catalog without an id: 1",)
    ids = pa.array([1.0, 2.0**24], pa.float32())
    pa.parquet.write_table(pa.table({"id": ids, "z": [0.1, 0.2]}), path)
    with pytest.raises(UsageError, match="such as 16777216, and have lost"):
        read_catalog(path)


def test_fits_columns_of_every_kind_are_read_or_named(tmp_path: Path) -> None:
    from astropy.coordinates import SkyCoord
    from astropy.table import MaskedColumn, QTable
    from astropy.time import Time
    from astropy.units import km, s

    table = QTable({"id": [1, 2], "z": [0.1, 0.2]})
    table["coord"] = SkyCoord(["1h", "2h"], ["-4d", "5d"])
    table["when"] = Time([51544.0, 51545.5], format="mjd")
    table["speed"] = [1.0, 2.0] * km / s
    table["count"] = MaskedColumn([7, 8], mask=[False, True])
    table["large"] = np.array([1, 2**64 - 1], np.uint64)
    table["name"] = MaskedColumn(["a", "b"], mask=[False, True])
    table["complex"] = np.array([1j, 2])
    table["grid"] = np.zeros((2, 3))
    table.write(tmp_path / "c.fits")
    catalog = read_catalog(tmp_path / "c.fits")
    columns = catalog.columns.to_pydict()
    assert columns["ra"] == pytest.approx([15, 30])
    assert columns["dec"] == pytest.approx([-4, 5])
    assert columns["speed"] == [1, 2]
    assert columns["count"] == [7, None]
    assert columns["large"] == [1, 2**64 - 1]
    assert columns["name"] == ["a", None]
    assert [note.split()[1] for note in catalog.notes] == ["'when'", "'complex'", "'grid'"]


def test_null_in_fits_is_null_also_of_scaled_and_logical_columns(tmp_path: Path) -> None:
    from astropy.io import fits

    columns = [
        fits.Column("id", "J", null=-7, array=np.array([1, -7, -7, 2])),
        fits.Column("z", "E", array=np.array([0.1, 0.2, 0.3, np.nan])),
        fits.Column("good", "L", array=np.array([True, False, True, False])),
        fits.Column("scaled", "I", null=-1, array=np.array([10, -1, 20, 30], np.int16)),
        fits.Column("site", "4A", array=np.array([b"a", b"M\xfcnc", b"c", b"d"])),
    ]
    path = tmp_path / "c.fits"
    hdu = fits.BinTableHDU.from_columns(columns)
    hdu.header["TSCAL4"] = 0.5
    hdu.writeto(path)
    # The standard's null of a logical column is a byte 0.
    content = path.read_bytes()
    row = hdu.columns["good"].dtype.itemsize and content.rindex(b"\x00\x00\x00\x01\x3d")
    assert content[row + 8 : row + 9] == b"T"
    path.write_bytes(content[: row + 8] + b"\0" + content[row + 9 :])
    catalog = read_catalog(path)
    assert catalog.ids is not None
    assert catalog.ids.to_pylist() == ["1", None, None, "2"]
    columns_read = catalog.columns.to_pydict()
    assert columns_read["good"] == [None, False, True, False]
    assert columns_read["scaled"] == [5, None, 10, 15]
    assert columns_read["site"][1] == "Münc"
    assert catalog.notes == (
        "column 'site' is not UTF-8: read as Latin-1",
        "rows of the catalog without an id: 2",
    )


@pytest.mark.parametrize(
    ("name", "unit", "says"),
    [
        ("RA", "rad", "'RA' must be decimal degrees, got unit 'rad'"),
        ("DEC", "arcsec", "'DEC' must be decimal degrees"),
        ("z", "km/s", "'z' must be a redshift without unit, got unit 'km/s'"),
        ("z", "mag", "'z' must be a redshift without unit"),
    ],
)
def test_a_fits_column_of_another_unit_is_refused(
    tmp_path: Path, name: str, unit: str, says: str
) -> None:
    from astropy.io import fits

    columns = [
        fits.Column(n, "D", unit=unit if n == name else None, array=np.array([0.1]))
        for n in ("z", "RA", "DEC")
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "c.fits")
    with pytest.raises(UsageError, match=says):
        read_catalog(tmp_path / "c.fits")


def test_text_in_latin_1_is_read_and_noted_and_utf_16_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    text = "id,z,größe,ort\n1,0.1,2,Köln\n"
    path.write_bytes(text.encode("latin-1"))
    catalog = read_catalog(path)
    assert catalog.columns["ort"].to_pylist() == ["Köln"]
    assert "größe" in catalog.columns.column_names
    assert catalog.notes == ("c.csv is not UTF-8: its text was read as Latin-1",)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_catalog(path).columns["ort"].to_pylist() == ["Köln"]
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(UsageError, match=r"c\.csv is UTF-16 text; save it as UTF-8"):
        read_catalog(path)


def test_positions_that_are_nowhere_on_the_sky_count_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "catalog.csv"
    path.write_text("id,redshift,ra,dec\n1,0.1,10,5\n2,0.2,400,5\n3,0.3,-20,95\n4,0.4,-999,-999\n")
    catalog = read_catalog(path)
    assert catalog.columns["ra"].to_pylist() == [10.0, None, -20.0, None]
    assert catalog.columns["dec"].to_pylist() == [5.0, 5.0, None, None]
    assert any("ra in degrees outside -180 to 360" in n and ": 2" in n for n in catalog.notes)
    assert any("dec in degrees outside -90 to 90" in n and ": 2" in n for n in catalog.notes)
