"""Columns of another table brought to a catalog, by id and by position."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from mock_surveys import shifted

from msdata.catalog.match import MatchConfig, Matched, match_tables
from msdata.cli import main
from msdata.errors import UsageError

# The seam of right ascension, both poles, and a place in between.
PLACES = [(0.0, 0.0), (359.99999, 45.0), (10.0, 90.0), (200.0, -90.0), (123.0, -20.0)]
BY_SKY = MatchConfig(take={"z_phot": "photoz"}, within_arcsec=1.5)
BY_ID = MatchConfig(take={"z_phot": "photoz"}, on=("object_id", "bestObjID"))


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def match(tmp_path: Path, catalog: dict, table: dict, config: MatchConfig) -> Matched:
    return match_tables(
        write(tmp_path / "catalog.parquet", **catalog),
        write(tmp_path / "table.parquet", **table),
        config,
    )


def counts(found: Matched) -> tuple[int, int, int]:
    return found.num_matched, found.num_ambiguous, found.num_unmatched


def sky(places: list[tuple[float, float]]) -> dict:
    return {"ra": [ra for ra, _ in places], "dec": [dec for _, dec in places]}


def near(place: tuple[float, float], arcsec: float, bearing: float) -> tuple[float, float]:
    ra, dec = shifted(np.array([place[0]]), np.array([place[1]]), np.array([bearing]), arcsec)
    return float(ra[0]), float(dec[0])


@pytest.mark.parametrize("bearing", [0.0, 90.0, 211.0])
def test_companions_match_to_the_radius_and_two_candidates_leave_the_object_empty(
    tmp_path, bearing
):
    # Per place: one at 1.4", at 1.6", none, two candidates; the places lie degrees apart.
    spread = [near(place, 1000.0 * (k + 1), 45.0) for k in range(3) for place in PLACES]
    centers = [*PLACES, *spread]
    rows = [near(p, 1.4, bearing) for p in PLACES]
    rows += [near(p, 1.6, bearing) for p in spread[:5]]
    rows += [near(p, r, bearing) for p in spread[10:] for r in (0.3, 1.4)]
    z = np.arange(len(rows), dtype=float)
    found = match(tmp_path, sky(centers), {**sky(rows), "photoz": z}, BY_SKY)
    assert counts(found) == (5, 5, 10)
    assert found.table["z_phot"].to_pylist() == [*range(5), *[None] * 15]
    assert found.table["ra"].to_pylist() == [ra for ra, _ in centers]
    assert any("several rows could be meant: 5" in note for note in found.notes)
    assert any("median 1.400 arcsec" in note for note in found.notes)


def test_one_row_close_to_two_objects_belongs_to_neither(tmp_path):
    left, right = near((0.0, 0.0), 1.0, 270.0), near((0.0, 0.0), 1.2, 90.0)
    objects = [left, right, (50.0, 0.0)]
    table = {**sky([(0.0, 0.0), (50.0, 0.0)]), "photoz": [0.1, 0.2]}
    found = match(tmp_path, sky(objects), table, BY_SKY)
    assert counts(found) == (1, 2, 0)
    assert found.table["z_phot"].to_pylist() == [None, None, 0.2]


def test_a_row_that_repeats_another_counts_once_and_never_doubles_an_object(tmp_path):
    table = {**sky([(50.0, 0.0)] * 2), "photoz": [0.2, 0.2]}
    found = match(tmp_path, sky([(50.0, 0.0)]), table, BY_SKY)
    assert counts(found) == (1, 0, 0)
    assert found.table.num_rows == 1
    ids = {"bestObjID": [7, 7, 8, 8], "photoz": [0.2, 0.2, 0.3, 0.4]}
    found = match(tmp_path, {"object_id": [8, 7, 7]}, ids, BY_ID)
    assert counts(found) == (2, 1, 0)
    assert found.table["z_phot"].to_pylist() == [None, 0.2, 0.2]
    assert any("share their id, and so a row, with another: 2" in n for n in found.notes)


@pytest.mark.parametrize("mine", ["int", "text", "bytes", "csv"])
@pytest.mark.parametrize("theirs", ["int", "text", "bytes", "csv", "fits"])
def test_ids_match_whatever_their_types(tmp_path, mine, theirs):
    # Neighbors that a double cannot tell apart.
    numbers = np.array([1237648720693755918, 1237648720693755919, 5])
    forms = {
        "int": pa.array(numbers),
        "text": pa.array([f" {n:019d}" for n in numbers]),
        "bytes": pa.array([str(n).encode() for n in numbers], pa.binary()),
    }

    def place(form: str, name: str, z: list[float]) -> Path:
        if form == "csv":
            lines = [f"{name},photoz", *(f"{n},{v}" for n, v in zip(numbers, z, strict=True))]
            path = tmp_path / f"{name}.csv"
            path.write_text("\n".join(lines) + "\n")
            return path
        if form == "fits":
            columns = [fits.Column(name, "K", array=numbers), fits.Column("photoz", "D", array=z)]
            fits.BinTableHDU.from_columns(columns).writeto(tmp_path / f"{name}.fits")
            return tmp_path / f"{name}.fits"
        return write(tmp_path / f"{name}.parquet", **{name: forms[form], "photoz": z})

    catalog = place(mine, "object_id", [9.0, 9.0, 9.0])
    found = match_tables(catalog, place(theirs, "bestObjID", [0.25, 0.5, 0.75]), BY_ID)
    assert counts(found) == (3, 0, 0)
    assert found.table["z_phot"].to_pylist() == [0.25, 0.5, 0.75]


def test_the_command_writes_a_whole_table_or_none(tmp_path, capsys):
    catalog = write(tmp_path / "c.parquet", object_id=["a", "b", None], redshift=[0.1, 0.2, 0.3])
    table = tmp_path / "t.csv"
    table.write_text("bestObjID,photoz,flag\na,0.11,x\nc,0.2,y\nb,-999,\n")
    out = tmp_path / "out.parquet"
    words = ["catalog", "match", str(catalog), str(table), str(out)]
    take = ["--on", "object_id=bestObjID", "--take", "z_phot=photoz,flag"]
    for _ in range(2):
        assert main([*words, *take, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["matched"], told["ambiguous"], told["unmatched"]) == (2, 0, 1)
    assert any("look like placeholders, such as -999: 1" in note for note in told["notes"])
    made = pq.read_table(out)
    assert made["z_phot"].to_pylist() == [0.11, -999.0, None]
    assert made["flag"].to_pylist() == ["x", None, None]
    before = out.read_bytes()
    for wrong, message in (
        (["--on", "object_id=bestObjId", "--take", "photoz"], "did you mean 'bestObjID'?"),
        (["--on", "object_id=bestObjID", "--take", "redshift=photoz"], "'redshift' already"),
        (["--on", "redshift=flag", "--take", "photoz"], "no object of"),
        (["--within-arcsec", "1", "--take", "flag"], "name them with --positions"),
        (["--within-arcsec", "-1", "--take", "flag"], "must be above 0"),
        (["--on", "object_id=bestObjID", "--take", "a=photoz,a=flag"], "'a' twice"),
        (["--on", "object_id=bestObjID", "--take", ","], "at least one column"),
        (["--on", "=bestObjID", "--take", "flag"], "--on must be"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
        assert out.read_bytes() == before
    catalog_bytes = catalog.read_bytes()
    assert main([*words[:4], str(catalog), *take]) == 2
    assert catalog.read_bytes() == catalog_bytes


def test_a_rounded_id_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"table.parquet.*have lost their last digits"):
        match(
            tmp_path,
            {"object_id": [1237648720693755918]},
            {"bestObjID": [1.237648720693755918e18], "photoz": [0.1]},
            BY_ID,
        )


def test_queries_for_the_tables_are_listed_and_printed(capsys):
    assert main(["catalog", "recipes"]) == 0
    assert "mgs, strm" in capsys.readouterr().out
    for name, column in (("mgs", "petroMag_r"), ("strm", "z_phot0")):
        assert main(["catalog", "recipes", name]) == 0
        assert column in capsys.readouterr().out
