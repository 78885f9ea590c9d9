"""Tables of labels as other programs write them: VOTable, ECSV, TSV, folders, comments, bytes."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table

from msdata.catalog.join import Catalog, read_catalog
from msdata.catalog.table import open_table, read_pieces
from msdata.errors import DataError, UsageError

IDS = ["007", "8", "9"]


def described() -> Table:
    table = Table({"objid": IDS, "z": MaskedColumn([0.1, 0.2, 0.3], mask=[0, 1, 0])})
    table["mass"] = MaskedColumn([5, 6, 7], mask=[1, 0, 0])
    table["good"] = [True, False, True]
    table["ra"] = np.array([10.0, 20.0, 30.0]) * u.deg
    table["fluxes"] = np.zeros((3, 2))
    return table


def check(catalog: Catalog) -> None:
    assert catalog.ids is not None
    assert catalog.ids.to_pylist() == IDS
    columns = catalog.columns.to_pydict()
    assert columns["redshift"] == [0.1, None, 0.3]
    assert columns["mass"] == [None, 6, 7]
    assert columns["good"] == [True, False, True]
    assert columns["ra"] == [10.0, 20.0, 30.0]
    assert "fluxes" not in columns
    assert "masked values count as missing: z 1, mass 1" in catalog.notes
    assert any("'fluxes'" in note and "left out" in note for note in catalog.notes)


@pytest.mark.parametrize("kind", ["tabledata", "binary2", "ecsv", "gzipped ecsv"])
def test_votable_and_ecsv_keep_ids_masks_and_units(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.any"
    if kind.endswith("ecsv"):
        described().write(path, format="ascii.ecsv")
        if kind != "ecsv":
            path.write_bytes(gzip.compress(path.read_bytes()))
    else:
        described().write(path, format="votable", tabledata_format=kind)
    check(read_catalog(path))
    pieces = list(read_pieces(open_table(path), ["objid", "mass"], rows_per_piece=2))
    assert [p.num_rows for p in pieces] == [2, 1]
    assert pa.concat_tables(pieces)["mass"].to_pylist() == [None, 6, 7]


@pytest.mark.parametrize("kind", ["votable", "ascii.ecsv"])
def test_a_position_in_another_unit_is_refused(kind: str, tmp_path: Path) -> None:
    table = Table({"id": [1], "z": [0.1], "ra": [0.5] * u.rad, "dec": [0.1] * u.rad})
    table.write(tmp_path / "t", format=kind)
    with pytest.raises(UsageError, match="'ra' must be decimal degrees, got unit 'rad'"):
        read_catalog(tmp_path / "t")


def test_coordinates_of_ecsv_are_read_by_their_parts(tmp_path: Path) -> None:
    table = Table({"id": [1, 2], "z": [0.1, 0.2]})
    table["coord"] = SkyCoord([10, 20] * u.deg, [-1, 2] * u.deg)
    table.write(tmp_path / "t.ecsv")
    columns = read_catalog(tmp_path / "t.ecsv").columns.to_pydict()
    assert (columns["ra"], columns["dec"]) == ([10, 20], [-1, 2])


def test_a_votable_leads_nowhere_else(tmp_path: Path) -> None:
    path, secret = tmp_path / "t.xml", tmp_path / "secret"
    described()["objid", "ra"].write(path, format="votable", tabledata_format="binary")
    secret.write_bytes(b"x")
    whole = path.read_text()
    start, stop = whole.index("<STREAM"), whole.index("</STREAM>")
    path.write_text(f'{whole[:start]}<STREAM a=">"\n href="file://{secret}">{whole[stop:]}')
    with pytest.raises(UsageError, match="rows lie elsewhere"):
        read_catalog(path)
    path.write_text(whole.replace("<VOTABLE", '<!DOCTYPE v [<!ENTITY e "x">]>\n<VOTABLE', 1))
    with pytest.raises(UsageError, match="defines entities"):
        read_catalog(path)
    hidden = f'{whole[:start]}<STREAM href="file://{secret}">{whole[stop:]}'.partition("?>")[2]
    path.write_bytes("<!--".encode("utf-16-le") + b"VOTABLE " + f"-->{hidden}".encode("utf-16-le"))
    with pytest.raises(UsageError, match="in UTF-16: not read"):
        read_catalog(path)
    path.write_text(whole[:start])
    with pytest.raises(DataError, match=r"t\.xml is broken"):
        read_catalog(path)
    path.write_text("<!DOCTYPE html>\n<html>Service unavailable</html>")
    with pytest.raises(UsageError, match="XML or HTML but not a VOTable"):
        read_catalog(path)


PLAIN = "objid,z,mass\n007,0.1,5\n8,0.2,\n"
LAYOUTS = {
    "tabs": (PLAIN.replace(",", "\t"), "separated by tabs"),
    "bars": (PLAIN.replace(",", "|"), "separated by bars"),
    "semicolons": (PLAIN.replace(",", ";"), "separated by semicolons"),
    "european": ("objid;z;mass\n007;0,1;5\n8;0,2;\n", "decimal comma are read as such"),
    "casjobs": (f"#Table1\n{PLAIN}", "1 lines above .* such as '#Table1'"),
    "comments": (f"# by me\n\n#\n\n{PLAIN}", "2 lines above .* such as '# by me'"),
    "names in a comment": (f"# {PLAIN}", "taken from the comment above the rows"),
    "byte order mark": (f"\ufeff{PLAIN}", ""),
    "mark before a comment": (f"\ufeff#Table1\n{PLAIN}", "'#Table1'"),
    "crlf": (f"#Table1\n{PLAIN}".replace("\n", "\r\n"), "'#Table1'"),
    "blank lines": (f"\n\n{PLAIN}\n\n", ""),
    "quoted": ('objid,z,"mass"\n"007",0.1,5\n8,0.2,\n', ""),
}


@pytest.mark.parametrize("is_gzipped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_in_any_layout_gives_the_same_labels(
    layout: str, is_gzipped: bool, tmp_path: Path
) -> None:
    text, says = LAYOUTS[layout]
    path = tmp_path / "t.txt"
    path.write_bytes(gzip.compress(text.encode()) if is_gzipped else text.encode())
    catalog = read_catalog(path)
    assert catalog.ids is not None
    assert catalog.ids.to_pylist() == ["007", "8"]
    assert catalog.columns["redshift"].to_pylist() == [0.1, 0.2]
    assert catalog.columns["mass"].to_pylist() == [5, None]
    if says:
        assert re.search(says, "; ".join(catalog.notes))
    else:
        assert not catalog.notes


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("1,0.1\n2,0.2\n", UsageError, "no line with names of columns: its first line is '1,0.1'"),
        ("# a comment\n1,0.1\n", UsageError, "no line with names of columns"),
        ("id;z;m\n1;0,5;2.5\n", UsageError, r"decimal comma \(0,5\) and with a point \(2.5\)"),
        ("id,z\n1,0.1\n2,0.2,0.3\n", DataError, "Expected 2 columns, got 3"),
        ("id\tz\n1\t0.1\n2\n", DataError, "Expected 2 columns, got 1"),
        ('id,z\n1,"0,5"\n', UsageError, "the first is '0,5' in row 1"),
        ("#only\n#comments\n", DataError, "is broken"),
        ("id ra dec z\n1 2 3 0.1\n", UsageError, "has spaces between its columns .*commas or tabs"),
    ],
)
def test_text_that_may_be_misread_is_refused(
    text: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error, match=says) as found:
        read_catalog(tmp_path / "t.csv")
    assert "t.csv" in str(found.value)


def write_parts(folder: Path, *tables: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, columns in enumerate(tables):
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet")
    return folder


def test_a_folder_of_parquet_files_is_one_catalog(tmp_path: Path) -> None:
    one, two = {"id": [b"a", b"b"], "z": [0.1, 0.2]}, {"id": [b"c"], "z": [0.3]}
    folder = write_parts(tmp_path / "cat", one, two)
    catalog = read_catalog(folder)
    assert catalog.ids is not None
    assert catalog.ids.to_pylist() == ["a", "b", "c"]
    assert catalog.columns["redshift"].to_pylist() == [0.1, 0.2, 0.3]
    assert catalog.notes == ("read 2 files of cat",)
    for name in ("_SUCCESS", ".part-0.crc", "_metadata.parquet", "notes.txt"):
        (folder / name).touch()
    assert "4 entries of cat are not read, such as .part-0.crc" in read_catalog(folder).notes
    write_parts(folder, one, {"id": [b"c"], "z": ["x"]})
    with pytest.raises(UsageError, match=r"part-1\.parquet has columns .*z string, but part-0"):
        read_catalog(folder)
    (folder / "part-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-1\.parquet is broken"):
        read_catalog(folder)
    (folder / "year=2020").mkdir()
    with pytest.raises(UsageError, match="partitions such as year=2020"):
        read_catalog(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"without \.parquet files \(it holds nothing\)"):
        read_catalog(tmp_path / "none")


@pytest.mark.parametrize("kind", ["parquet", "fits"])
def test_ids_in_bytes_are_text_unless_they_are_not_utf_8(kind: str, tmp_path: Path) -> None:
    def write(ids: list[bytes]) -> Path:
        path = tmp_path / f"c.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"id": ids, "z": [0.1, 0.2]}), path)
        else:
            Table({"id": np.array(ids, "S9"), "z": [0.1, 0.2]}).write(path, overwrite=True)
        return path

    catalog = read_catalog(write([b"123", "ö".encode()]))
    assert catalog.ids is not None
    assert catalog.ids.to_pylist() == ["123", "ö"]
    with pytest.raises(UsageError, match="ids in column 'id' are bytes that are not UTF-8"):
        read_catalog(write([b"123", b"\xff"]))


def test_ids_written_as_python_prints_bytes_are_read_and_told(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,z\nb'123',0.1\nb'124',0.2\n")
    catalog = read_catalog(tmp_path / "c.csv")
    assert catalog.ids is not None
    assert catalog.ids.to_pylist() == ["123", "124"]
    assert catalog.notes == ("the ids in column 'id' are written like b'123': read as 123",)
    (tmp_path / "c.csv").write_text("id,z\nb'123',0.1\nb124,0.2\n")
    catalog = read_catalog(tmp_path / "c.csv")
    assert catalog.ids is not None
    assert catalog.ids.to_pylist() == ["b'123'", "b124"]
