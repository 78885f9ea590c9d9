"""`msdata catalog positions`: every notation gives the same degrees, and bad rows are named."""

from __future__ import annotations

import json
from pathlib import Path

import astropy_healpix
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits

from msdata.catalog.build.dust import reddening
from msdata.catalog.build.spec import DustTask
from msdata.catalog.positions import make_positions, parse_position
from msdata.cli import main
from msdata.errors import UsageError
from msdata.fetch.targets import Slice, read_targets

SKY = SkyCoord([197.6144, 0.25, 359.9], [18.4381, -0.5, -29.9], unit="deg")


def write_map(path: Path) -> Path:
    grid = astropy_healpix.HEALPix(4, order="ring")
    values = np.linspace(0.01, 0.4, grid.npix, dtype=np.float32)
    hdu = fits.BinTableHDU.from_columns([fits.Column("EBV", "E", array=values)])
    hdu.header["ORDERING"], hdu.header["COORDSYS"] = "RING", "G"
    hdu.writeto(path)
    return path


def texts(notation: str) -> list[tuple[str, str]]:
    if notation == "degrees":
        pairs = zip(SKY.ra.deg, SKY.dec.deg, strict=True)
        return [(repr(float(r)), repr(float(d))) for r, d in pairs]
    separators = {"colons": ":", "letters": None, "blanks": " "}[notation]
    options = {"precision": 6, "pad": True}
    if separators is not None:
        options["sep"] = separators
    ra, dec = SKY.ra.to_string("hour", **options), SKY.dec.to_string("deg", **options)
    return [(str(r), str(d)) for r, d in zip(ra, dec, strict=True)]


@pytest.mark.parametrize("notation", ["degrees", "colons", "letters", "blanks"])
def test_every_notation_is_read_as_astropy_wrote_it(
    notation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "in.csv"
    rows = [f"{k + 1},{ra},{dec},{k}" for k, (ra, dec) in enumerate(texts(notation))]
    listed.write_text("\n".join(["objid,RAJ2000,DEJ2000,mag_r", *rows]) + "\n")
    ebv, out = write_map(tmp_path / "map.fits"), tmp_path / "new" / "out.parquet"
    words = ["catalog", "positions", str(listed), str(out), "--ebv", f"csfd={ebv}", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["positions"] == 3
    table = pq.read_table(out)
    assert table.column_names == ["sample_id", "ra", "dec", "mag_r", "ebv_csfd"]
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    found = SkyCoord(ra, dec, unit="deg")
    assert found.separation(SKY).arcsec.max() < 2e-5
    if notation == "degrees":
        np.testing.assert_array_equal(ra, SKY.ra.deg)
    task = DustTask(name="csfd", kind="healpix", value=str(ebv))
    np.testing.assert_array_equal(table["ebv_csfd"].to_numpy(), reddening(task, ra, dec))
    # As `fetch` takes it; a second run replaces its own file.
    targets, notes = read_targets(out, id_column=None, part=Slice())
    assert {target.sample_id for target in targets} == {f"{k:07d}" for k in (1, 2, 3)}
    assert not notes
    assert main(words) == 0
    for (one, other), where in zip(texts(notation), found, strict=True):
        typed = parse_position(f"{one} {other}")
        assert typed == pytest.approx((where.ra.deg, where.dec.deg), abs=1e-12)
        assert typed == parse_position(f"{one}, {other}")


def test_objects_without_ids_are_named_by_their_positions(tmp_path: Path) -> None:
    table = pa.table({"ra": [-0.5, 10.0], "dec": [1.25, -2.5]})
    pq.write_table(table, tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    assert main(["catalog", "positions", str(tmp_path / "in.parquet"), str(out)]) == 0
    names = pq.read_table(out)["sample_id"].to_pylist()
    assert names == ["J359.50000+01.25000", "J010.00000-02.50000"]
    targets, _ = read_targets(out, id_column=None, part=Slice())
    assert len(targets) == 2
    assert make_positions([(-0.5, 1.25), (10, -2.5)]).table["sample_id"].to_pylist() == names


ROWS = "id,ra,dec\n1,10,5\n"
BAD = {
    "too low": (ROWS + "2,11,-30.5\n3,12,-45\n", "at least -30, .* got -30.5 .* 2 rows \\(2, 3\\)"),
    "same id": (ROWS + "1,11,5\n", r"every id must be there once, .* 1 row \(2\)"),
    "same place": (ROWS + "2,11,5\n3,370,5\n", "right ascension must be 0 to 360"),
    "twice": (ROWS + "2,10.0000000001,5\n", r"every position must be there once, .* 1 row \(2\)"),
    "no id": (ROWS + ",11,5\n", r"must have an id, got none in 1 row \(2\)"),
    "mixed": (ROWS + "2,01:00:00,05:00:00\n", "1 rows in degrees, 1 sexagesimal and 0 of both"),
    "both": ("id,ra,dec\n1,01:00:00,5\n", "0 rows in degrees, 0 sexagesimal and 1 of both"),
    "word": (ROWS + "2,none,5\n3,11,\n", r"got 'none 5' and the like in 2 rows \(2, 3\)"),
    "minutes": ("id,ra,dec\n1,01:60:00,05:00:00\n", "degrees or sexagesimal"),
    "hours": ("id,ra,dec\n1,25:00:00,05:00:00\n", "got 375 5"),
    "columns": ("id,x,y\n1,2,3\n", r"known names .* \(ra, dec\), got id, x, y"),
    "empty": ("id,ra,dec\n", "has no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lists_are_refused_with_the_number_of_rows(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD[case]
    (tmp_path / "in.csv").write_text(content)
    out = tmp_path / "o.parquet"
    assert main(["catalog", "positions", str(tmp_path / "in.csv"), str(out)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    with pytest.raises(UsageError, match=message):
        raise UsageError(said)
    assert not out.exists()


@pytest.mark.parametrize(
    "text",
    ["", "197.6", "a b", "1 2 3", "10 01:00:00", "nan 5", "10 91", "10 -30.01", "10 5 J2000"],
)
def test_a_typed_position_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"position|declination"):
        parse_position(text)


def test_bad_options_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.csv").write_text(ROWS)
    (tmp_path / "mine.parquet").write_text("the user's own")
    for words, message in (
        (["in.csv", "out.csv"], "must end in .parquet"),
        (["typo.csv", "o.parquet"], "typo.csv is not a file"),
        (["in.csv", "mine.parquet"], "this command did not make it"),
        (["in.csv", "o.parquet", "--ebv", "csfd"], "--ebv must be NAME=MAP.fits"),
        (["in.csv", "o.parquet", "--ebv", "csfd=typo.fits"], "typo.fits of E(B-V) is not a file"),
        (["in.csv", "o.parquet", "--id-column", "name"], "has no column 'name'"),
    ):
        paths = [
            str(tmp_path / word) if "." in word and "=" not in word else word for word in words
        ]
        assert main(["catalog", "positions", *paths]) == 2
        assert message in capsys.readouterr().err
