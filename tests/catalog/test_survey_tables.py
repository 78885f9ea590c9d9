"""Recipes on small tables with the surveys' own columns, and what tables of other writers hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from msdata.catalog.table import open_table, read_pieces
from msdata.cli import main

Rows = list[dict[str, Any]]


def build(folder: Path, key: str, table: str, more: str = "") -> int:
    """Runs `msdata catalog build` on one survey's table."""
    (folder / "spec.toml").write_text(f'{more}\n[surveys.{key}]\nfiles = ["{table}"]\n')
    return main(["catalog", "build", str(folder / "spec.toml"), str(folder / "out"), "--no-figure"])


def write_fits(path: Path, rows: Rows, name: str | None = None) -> None:
    columns = {n: np.array([row[n] for row in rows]) for n in rows[0]}
    dtype = [(n, c.astype("S") if c.dtype.kind == "U" else c) for n, c in columns.items()]
    table = np.zeros(len(rows), [(n, c.dtype) for n, c in dtype])
    for n, values in dtype:
        table[n] = values
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table, name=name)]).writeto(path)


def result(folder: Path) -> tuple[list[str], dict[str, int]]:
    """Ids in the survey of what is in the catalog; rows dropped by reason."""
    report = json.loads((folder / "out" / "catalog.json").read_text())
    table = pq.read_table(folder / "out" / "catalog.parquet")
    dropped = {r: n for r, n in report["surveys"][0]["num_dropped"].items() if n}
    return sorted(table["object_id"].to_pylist()), dropped


# One good row of each survey; then what spoils it, with the reason.
GOOD: dict[str, dict[str, Any]] = {
    "sdss": {
        **{"SPECPRIMARY": np.uint8(1), "BESTOBJID": "1237645879551000001 ", "CLASS": "GALAXY"},
        **{"PLUG_RA": 10.0, "PLUG_DEC": 5.0, "ZWARNING": 0, "Z": 0.1, "Z_NOQSO": 0.1},
    },
    "desi": {
        **{"TARGETID": 39627000000000001, "OBJTYPE": "TGT", "ZCAT_PRIMARY": True, "ZWARN": 0},
        **{"SPECTYPE": "GALAXY", "TARGET_RA": 10.0, "TARGET_DEC": 5.0, "Z": 0.1},
    },
    "gama": {
        **{"CATAID": 7, "SURVEY": "GAMA", "SURVEY_CODE": 5, "NQ": 4, "RA": 10.0, "DEC": 5.0},
        **{"Z": 0.1, "IS_BEST": 1},
    },
    "deep2": {
        **{"OBJNO": 7, "ZQUALITY": 4, "CLASS": "GALAXY", "RA": 10.0, "DEC": 5.0},
        **{"Z": 0.1001, "ZBEST": 0.1},
    },
    "vipers": {
        **{"id_IAU": "VIPERS 101", "num": 101, "zflg": 3.5, "classFlag": 1},
        **{"alpha": 10.0, "delta": 5.0, "zspec": 0.7},
    },
    "vvds": {"NUM": 7, "ZFLAGS": 4, "ALPHA": 10.0, "DELTA": 5.0, "Z": 0.7},
    "wigglez": {"WiggleZ_Name": "S00J7", "Q": 5, "RA": 10.0, "Dec": 5.0, "redshift": 0.6},
    "sixdf": {"TARGETID": "g0007", "QUALITY": 4, "RA": 10.0, "DEC": 5.0, "CZ": 9000.0},
}
BAD: dict[str, dict[str, Rows]] = {
    "sdss": {
        "not the primary spectrum": [{"SPECPRIMARY": np.uint8(0)}],
        "redshift warning": [{"ZWARNING": 4}],
        "no galaxy": [{"CLASS": "QSO"}, {"CLASS": "STAR"}],
    },
    "desi": {
        "sky or a broken fiber": [{"OBJTYPE": "SKY"}, {"OBJTYPE": "BAD"}, {"OBJTYPE": ""}],
        "no target id": [{"TARGETID": -390001}],
        "not the primary spectrum": [{"ZCAT_PRIMARY": False}],
        "redshift warning": [{"ZWARN": 4}],
        "no galaxy": [{"SPECTYPE": "QSO"}],
    },
    "gama": {
        "other survey": [{"SURVEY": "SDSS"}, {"SURVEY": "2dFGRS"}, {"SURVEY": "WiggleZ"}],
        "insecure redshift": [{"NQ": 2}],
        "star": [{"Z": 0.0005}, {"Z": -0.0003}],
        "no redshift": [{"Z": np.nan}],
    },
    "deep2": {
        "insecure redshift": [{"ZQUALITY": q} for q in (-2, -1, 0, 1, 2)],
        "no galaxy": [{"CLASS": "STAR"}],
    },
    "vipers": {
        "insecure redshift": [{"zflg": f} for f in (1.5, 9.5, 14.4, 22.4, 0.0)],
        "no galaxy target": [{"classFlag": f} for f in (-1, -2, -3, -88, -99)],
    },
    "vvds": {"insecure redshift": [{"ZFLAGS": f} for f in (0, 1, 2, 9, 14, 24, 214)]},
    "wigglez": {"insecure redshift": [{"Q": q} for q in (1, 2, 3, 6)]},
    "sixdf": {"insecure redshift": [{"QUALITY": q} for q in (1, 2, 6, 9)]},
}


@pytest.mark.parametrize("key", GOOD)
def test_of_a_surveys_rows_only_its_secure_galaxies_are_taken(key: str, tmp_path: Path) -> None:
    good = GOOD[key]
    spoilt = [{**good, **change} for changes in BAD[key].values() for change in changes]
    write_fits(tmp_path / "t.fits", [*spoilt, good], "ZCATALOG" if key == "desi" else None)
    assert build(tmp_path, key, "t.fits") == 0
    ids, dropped = result(tmp_path)
    first = next(iter(good))
    names = {"sdss": "BESTOBJID"}
    assert ids == [str(good[names.get(key, first)]).strip()]
    assert dropped == {reason: len(changes) for reason, changes in BAD[key].items()}


def test_gamas_rows_from_the_liverpool_telescope_are_its_own(tmp_path: Path) -> None:
    rows = [{**GOOD["gama"], "CATAID": n, "RA": 10.0 + n, "SURVEY": "GAMA_LT"} for n in (1, 2)]
    write_fits(tmp_path / "t.fits", rows)
    assert build(tmp_path, "gama", "t.fits") == 0
    assert result(tmp_path) == (["1", "2"], {})


def test_a_query_of_sdss_without_the_primary_flag_is_read_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "#Table1\nobjID,ra,dec,z,zWarning,class\n12376458795510000019,10,5,0.1,0,GALAXY\n"
    (tmp_path / "t.csv").write_text(text)
    assert build(tmp_path, "sdss", "t.csv") == 0
    assert result(tmp_path) == (["12376458795510000019"], {})
    note = "t.csv has no column SPECPRIMARY: 'not the primary spectrum' not cut"
    assert f"note: {note}\n" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "catalog.json").read_text())
    assert report["notes"] == [note]
    cuts = [cut["reason"] for cut in report["surveys"][0]["cuts"]]
    assert cuts == ["redshift warning", "no galaxy"]


def test_desi_without_its_flags_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{n: v for n, v in GOOD["desi"].items() if n != "ZCAT_PRIMARY"}]
    write_fits(tmp_path / "t.fits", rows)
    assert build(tmp_path, "desi", "t.fits") == 2
    assert "no column ZCAT_PRIMARY, which the recipe of DESI needs" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["true", "True", "T", "1"])
def test_bools_in_csv_are_read_as_their_writers_spell_them(tmp_path: Path, text: str) -> None:
    words = {"true": "false", "True": "False", "T": "F", "1": "0"}
    rows = [{**GOOD["desi"], "TARGETID": n, "TARGET_RA": 10.0 + n} for n in (1, 2, 3)]
    values = [text, words[text], ""]
    table = pa.table({n: [str(r[n]) for r in rows] for n in rows[0]})
    index = table.column_names.index("ZCAT_PRIMARY")
    pyarrow.csv.write_csv(table.set_column(index, "ZCAT_PRIMARY", [values]), tmp_path / "t.csv")
    assert build(tmp_path, "desi", "t.csv") == 0
    assert result(tmp_path) == (["1"], {"not the primary spectrum": 2})


def gama_columns(**more: fits.Column) -> list[fits.Column]:
    """Columns of four GAMA rows, a degree apart."""
    columns = {
        "CATAID": fits.Column("CATAID", "J", array=np.arange(1, 5)),
        "SURVEY": fits.Column("SURVEY", "4A", array=np.array(["GAMA"] * 4)),
        "NQ": fits.Column("NQ", "I", array=np.array([4] * 4, np.int16)),
        "RA": fits.Column("RA", "D", array=np.arange(4.0)),
        "DEC": fits.Column("DEC", "D", array=np.ones(4)),
        "Z": fits.Column("Z", "E", array=np.full(4, 0.1)),
    }
    return list({**columns, **more}.values())


def test_null_integers_pass_no_cut_and_are_no_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = fits.Column("CATAID", "J", null=999999, array=np.array([1, 999999, 999999, 4]))
    quality = fits.Column("NQ", "I", null=99, array=np.array([4, 4, 4, 99], np.int16))
    hdu = fits.BinTableHDU.from_columns(gama_columns(CATAID=ids, NQ=quality))
    hdu.writeto(tmp_path / "t.fits")
    assert build(tmp_path, "gama", "t.fits") == 0
    names = ["1", "J001.00000+01.00000", "J002.00000+01.00000"]
    assert result(tmp_path) == (names, {"insecure redshift": 1})
    assert "without an id in their survey, named by position: 2\n" in capsys.readouterr().out


def test_ids_that_were_rounded_are_refused_as_pack_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = fits.Column("CATAID", "D", array=1237645879551000000.0 + np.arange(4))
    fits.BinTableHDU.from_columns(gama_columns(CATAID=ids)).writeto(tmp_path / "t.fits")
    assert build(tmp_path, "gama", "t.fits") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "t.fits: the ids in column 'CATAID' were written as floating-point numbers" in error
    small = fits.Column("CATAID", "D", array=np.array([1.0, 2.0, np.nan, 2.0**53 - 1]))
    hdu = fits.BinTableHDU.from_columns(gama_columns(CATAID=small))
    hdu.writeto(tmp_path / "t.fits", overwrite=True)
    assert build(tmp_path, "gama", "t.fits") == 0
    assert result(tmp_path)[0] == ["1", "2", "9007199254740991", "J002.00000+01.00000"]


def test_text_that_is_not_utf_8_is_read_as_latin_1(tmp_path: Path) -> None:
    survey = fits.Column("SURVEY", "5A", array=np.array([b"GAMA", b"K\xf6ln", b"GAMA", b"GAMA"]))
    fits.BinTableHDU.from_columns(gama_columns(SURVEY=survey)).writeto(tmp_path / "t.fits")
    assert build(tmp_path, "gama", "t.fits") == 0
    assert result(tmp_path) == (["1", "3", "4"], {"other survey": 1})
    lines = ["CATAID,SURVEY,NQ,RA,DEC,Z,größe", "é1,GAMA,4,10,1,0.1,ü", "2,Köln,4,11,1,0.1,"]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode("latin-1"))
    (table,) = read_pieces(open_table(tmp_path / "t.csv"), ["CATAID", "SURVEY", "größe"])
    assert table["CATAID"].to_pylist() == ["é1", "2"]
    assert table["SURVEY"].to_pylist() == ["GAMA", "Köln"]
    assert table["größe"].to_pylist() == ["ü", None]
    values = pa.array([b"a", b"K\xf6ln"])
    pq.write_table(pa.table({"x": values}), tmp_path / "t.parquet")
    (table,) = read_pieces(open_table(tmp_path / "t.parquet"), ["x"])
    assert table["x"].to_pylist() == ["a", "Köln"]


def test_reddening_that_cannot_be_is_absent_with_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reddening = fits.Column("EBV", "E", array=np.array([0.05, -999, 99, np.nan]))
    fits.BinTableHDU.from_columns(gama_columns(EBV=reddening)).writeto(tmp_path / "t.fits")
    assert build(tmp_path, "gama", "t.fits", '[ebv.sfd]\ncolumn = "EBV"') == 0
    table = pq.read_table(tmp_path / "out" / "catalog.parquet").sort_by("ra")
    found = table["ebv_sfd"].to_numpy()
    assert found[0] == np.float32(0.05)
    assert np.isnan(found[1:]).all()
    said = "note: ebv_sfd outside -0.1 to 5, which is absent: 2\n"
    assert said in capsys.readouterr().out
