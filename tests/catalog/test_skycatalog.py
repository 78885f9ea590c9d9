"""The spectroscopic sample: recipes on the surveys' layouts, cuts, counts, ids, reddening."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import astropy_healpix
import numpy as np
import packing
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from mock_surveys import FAULTS, LAYOUTS, Truth, make_tables

from benchmarks.parts.catalog_build import differences
from msdata.catalog.build.dust import reddening
from msdata.catalog.build.recipe import BUILT_IN, load_recipe
from msdata.catalog.build.select import STAR, angles, first_redshift, passes_cut, repeated_ids
from msdata.catalog.build.spec import DustTask
from msdata.catalog.columns import read_catalog
from msdata.catalog.table import open_table, read_pieces
from msdata.cli import main
from msdata.errors import DataError, UsageError


@pytest.fixture(scope="module")
def mock(tmp_path_factory) -> tuple[Path, Truth]:
    """Tables of the eight surveys, with what has to become of them."""
    folder = tmp_path_factory.mktemp("surveys")
    return folder, make_tables(folder, 5000)


def build(folder: Path, out: Path, *options: str) -> int:
    return main(["catalog", "build", str(folder / "spec.toml"), str(out), "--quiet", *options])


def test_every_row_of_every_survey_ends_where_it_belongs(mock, tmp_path, capsys):
    folder, truth = mock
    assert build(folder, tmp_path / "out") == 0
    assert differences(truth, tmp_path / "out") == []
    # The test has to have something to find.
    reasons = sum(truth.num_dropped.values(), Counter())
    assert len(reasons) >= 11
    assert min(reasons.values()) >= 4
    shown = capsys.readouterr().out
    assert f"{len(truth.kept):,} objects" in shown
    assert [line.split()[0] for line in shown.splitlines()[1:9]] == [
        load_recipe(Path(key)).name for key in BUILT_IN
    ]


def test_no_two_objects_of_the_catalog_are_within_three_arcseconds(mock, tmp_path):
    assert build(mock[0], tmp_path / "out", "--no-figure") == 0
    table = pq.read_table(tmp_path / "out" / "catalog.parquet")
    sky = SkyCoord(table["ra"].to_numpy(), table["dec"].to_numpy(), unit="deg")
    _, distance, _ = sky.match_to_catalog_sky(sky, nthneighbor=2)
    assert 3 < distance.arcsec.min() < 3.11
    assert table["dec"].to_numpy().min() > -30
    assert table["redshift"].to_numpy().min() > 0
    assert table["redshift"].to_numpy().max() < 1.6


def test_the_same_input_gives_the_same_bytes_and_what_pack_reads(mock, tmp_path):
    for name in ("one", "two"):
        assert build(mock[0], tmp_path / name) == 0
    packing.assert_same(tmp_path / "one", tmp_path / "two")
    wanted = pq.read_table(tmp_path / "one" / "catalog.parquet")
    for name in ("catalog.csv", "catalog.parquet"):
        catalog = read_catalog(tmp_path / "one" / name)
        assert catalog.id_column == "sample_id"
        assert catalog.columns["redshift"].to_numpy() == pytest.approx(
            wanted["redshift"].to_numpy()
        )
    report = json.loads((tmp_path / "one" / "catalog.json").read_text())
    assert report["num_objects"] == wanted.num_rows
    assert all(survey["citation"] for survey in report["surveys"])


@pytest.mark.parametrize("key", BUILT_IN)
def test_each_recipe_names_columns_of_the_surveys_release(key):
    recipe = load_recipe(Path(key))
    columns = {recipe.id[0], recipe.ra[0], recipe.dec[0], *(n[0] for n in recipe.redshifts)}
    columns |= {cut.column[0] for cut in recipe.cuts}
    assert columns <= set(LAYOUTS[key])
    stars = [] if recipe.stars_below is None else [STAR]
    assert [*(cut.reason for cut in recipe.cuts), *stars] == list(FAULTS[key])
    assert recipe.citation
    assert recipe.title


@pytest.mark.parametrize(
    ("key", "column", "values", "passing"),
    [
        ("sdss", "ZWARNING", [0, 4, -1], [True, False, False]),
        ("sdss", "CLASS", ["GALAXY", "QSO", None], [True, False, False]),
        ("desi", "SPECTYPE", ["GALAXY", "STAR", ""], [True, False, False]),
        ("deep2", "ZQUALITY", [4, 3, 2, -1, -2], [True, True, False, False, False]),
        ("gama", "NQ", [4, 3, 2, 5], [True, True, False, True]),
        ("vvds", "ZFLAGS", [3, 4, 2, 9, 13, 24], [True, True, False, False, False, False]),
        ("vipers", "zflg", [2.0, 4.5, 1.9, 5.0, 9.2, 22.1], [True, True] + [False] * 4),
        ("vipers", "classFlag", [0, 1, 2, -99], [True, True, False, False]),
        ("sixdf", "QUALITY", [3, 4, 6, 2, 1], [True, True, False, False, False]),
        ("wigglez", "Q", [4, 5, 3, None], [True, True, False, False]),
    ],
)
def test_cuts_pass_what_the_surveys_call_secure(key, column, values, passing):
    (cut,) = (c for c in load_recipe(Path(key)).cuts if c.column[0] == column)
    assert passes_cut(pa.chunked_array([values]), cut).tolist() == passing


def test_the_redshift_of_sdss_is_by_eye_then_without_quasars_then_the_pipelines():
    columns = [[0.5, -9.0, 0.0, None], [0.6, 0.6, 0.0, np.nan], [0.7, 0.7, 0.7, 0.7]]
    arrays = [pa.chunked_array([pa.array(c, pa.float64())]) for c in columns]
    assert first_redshift(arrays, "1").tolist() == [0.5, 0.6, 0.7, 0.7]
    velocity = pa.chunked_array([pa.array([29979.2458])])
    assert first_redshift([velocity], "km/s")[0] == pytest.approx(0.1)


def test_a_cz_that_is_no_velocity_is_refused():
    with pytest.raises(DataError, match="must be c z in km/s, got values that all lie"):
        first_redshift([pa.chunked_array([pa.array([-0.93, 0.2, np.nan])])], "km/s")
    nothing = pa.chunked_array([pa.array([np.nan, 0.0])])
    assert np.isnan(first_redshift([nothing], "km/s")[0])


def test_angles_in_text_are_read_as_degrees_or_sexagesimal():
    hours = pa.chunked_array([["01 30 00.0", "23:59:59.999", None, ""]])
    assert angles(hours, is_hours=True)[:2] == pytest.approx([22.5, 359.9999958])
    assert np.isnan(angles(hours, is_hours=True)[2:]).all()
    degrees = pa.chunked_array([["-00 30 00", "+12 00 36.0"]])
    assert angles(degrees, is_hours=False) == pytest.approx([-0.5, 12.01])
    assert angles(pa.chunked_array([["-0.25"]]), is_hours=False).tolist() == [-0.25]


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12))
def test_the_first_row_of_an_id_is_no_repetition(ids):
    found = repeated_ids(pa.chunked_array([pa.array(ids, pa.string())]))
    assert found.tolist() == [i is not None and i in ids[:k] for k, i in enumerate(ids)]


def write_gama(path: Path, numbers: list[int], **columns: list[float]) -> None:
    """A small GAMA table as CSV; objects lie a degree apart."""
    table = {
        "CATAID": numbers,
        "RA": [float(n) for n in numbers],
        "DEC": [1.0] * len(numbers),
        "Z": [0.1] * len(numbers),
        "NQ": [4] * len(numbers),
        "SURVEY": ["GAMA"] * len(numbers),
        **columns,
    }
    pyarrow.csv.write_csv(pa.table(table), path)


def spec(folder: Path, text: str = "", table: str = "gama.csv") -> Path:
    (folder / "spec.toml").write_text(f'{text}\n[surveys.gama]\nfiles = ["{table}"]\n')
    return folder


def ids_of(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "catalog.parquet").to_pydict()
    return dict(zip(table["object_id"], table["sample_id"], strict=True))


def test_numbers_stay_with_objects_whatever_the_order_of_rows_and_when_some_are_added(tmp_path):
    write_gama(tmp_path / "gama.csv", [7, 30, 5])
    assert build(spec(tmp_path), tmp_path / "first", "--no-figure") == 0
    write_gama(tmp_path / "gama.csv", [5, 7, 30])
    assert build(spec(tmp_path), tmp_path / "again", "--no-figure") == 0
    first = ids_of(tmp_path / "first")
    assert ids_of(tmp_path / "again") == first
    assert sorted(first.values()) == ["0000000", "0000001", "0000002"]
    write_gama(tmp_path / "gama.csv", [1, 30, 8, 7])
    before = 'previous = "first/catalog.parquet"'
    assert build(spec(tmp_path, before), tmp_path / "more", "--no-figure") == 0
    more = ids_of(tmp_path / "more")
    assert {key: more[key] for key in ("7", "30")} == {key: first[key] for key in ("7", "30")}
    assert sorted({more["1"], more["8"]}) == ["0000003", "0000004"]


def test_objects_without_an_id_are_named_by_their_position(tmp_path):
    write_gama(tmp_path / "gama.csv", [0, 0, 3], RA=[10.0, 11.0, 12.0], DEC=[-0.5, 2.0, 3.0])
    assert build(spec(tmp_path), tmp_path / "out", "--no-figure") == 0
    assert set(ids_of(tmp_path / "out")) == {"J010.00000-00.50000", "J011.00000+02.00000", "3"}


def test_a_survey_of_ones_own_is_read_by_a_recipe_beside_the_spec(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'name = "Mine"\n[columns]\nid = ["n"]\nra = ["x"]\ndec = ["y"]\nredshift = [["cz"]]\n'
        '[units]\nredshift = "km/s"\n[[cuts]]\ncolumn = ["q"]\nabove = 1\nreason = "poor"\n'
    )
    text = "#from a query\nn,x,y,cz,q\n1,10,20,30000,2\n2,11,20,30000,1\n"
    (tmp_path / "mine.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "spec.toml").write_text(
        'order = ["own"]\n[surveys.own]\nrecipe = "mine.toml"\nfiles = "mine.csv.gz"\n'
    )
    assert build(tmp_path, tmp_path / "out", "--no-figure") == 0
    table = pq.read_table(tmp_path / "out" / "catalog.parquet").to_pylist()
    assert [(row["survey"], row["object_id"]) for row in table] == [("Mine", "1")]
    assert table[0]["redshift"] == pytest.approx(30000 / 299792.458)
    report = json.loads((tmp_path / "out" / "catalog.json").read_text())
    assert report["surveys"][0]["num_dropped"]["poor"] == 1


def write_map(path: Path, values: np.ndarray, ordering: str, per_row: int, frame: str) -> None:
    column = fits.Column(
        "EBV",
        f"{per_row if per_row > 1 else ''}E",
        array=values.reshape(-1, per_row) if per_row > 1 else values,
    )
    hdu = fits.BinTableHDU.from_columns([column])
    hdu.header["PIXTYPE"], hdu.header["ORDERING"], hdu.header["COORDSYS"] = (
        "HEALPIX",
        ordering,
        frame,
    )
    hdu.writeto(path)


@pytest.mark.parametrize("ordering", ["RING", "NESTED"])
@pytest.mark.parametrize(("frame", "per_row"), [("G", 1), ("C", 16)])
def test_reddening_is_that_of_the_maps_pixel(tmp_path, ordering, frame, per_row):
    grid = astropy_healpix.HEALPix(8, order=ordering.lower())
    values = np.arange(grid.npix, dtype=np.float32) / 100
    values[5] = -1.6375e30
    write_map(tmp_path / "map.fits", values, ordering, per_row, frame)
    random = np.random.default_rng(3)
    ra, dec = random.uniform(0, 360, 500), np.degrees(np.arcsin(random.uniform(-1, 1, 500)))
    task = DustTask(name="map", kind="healpix", value=str(tmp_path / "map.fits"))
    sky = SkyCoord(ra, dec, unit="deg")
    sky = sky.galactic if frame == "G" else sky
    at = sky.spherical
    pixels = grid.lonlat_to_healpix(at.lon, at.lat)
    wanted = np.where(pixels == 5, np.nan, values[pixels])
    np.testing.assert_array_equal(reddening(task, ra, dec), wanted.astype(np.float32))


# A class as those of the package dustmaps, and a function.
OWN_DUST = """
class Eastward:
    def query_equ(self, ra, dec):
        return ra / 1000


def northern(ra, dec):
    return dec / 1000
"""


def test_columns_of_reddening_come_from_functions_and_tables(tmp_path, monkeypatch):
    (tmp_path / "own_dust.py").write_text(OWN_DUST)
    monkeypatch.syspath_prepend(tmp_path)
    write_gama(tmp_path / "gama.csv", [3, 8], SFD=[0.25, 0.5])
    text = (
        '[ebv.east]\ncall = "own_dust:Eastward"\n'
        '[ebv.north]\ncall = "own_dust:northern"\n[ebv.sfd]\ncolumn = "SFD"\n'
        '[ebv.none]\ncolumn = "EBV"\n'
    )
    assert build(spec(tmp_path, text), tmp_path / "out", "--no-figure") == 0
    table = pq.read_table(tmp_path / "out" / "catalog.parquet").sort_by("ra").to_pydict()
    assert table["ebv_east"] == pytest.approx([0.003, 0.008])
    assert table["ebv_north"] == pytest.approx([0.001, 0.001])
    assert table["ebv_sfd"] == [0.25, 0.5]
    assert np.isnan(table["ebv_none"]).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seperation_arcsec = 3", "unknown entry 'seperation_arcsec'"),
        ("separation_arcsec = 0.1", "must be 1 to 3600, got 0.1"),
        ("redshift = [1.6, 0]", "must be a range such as"),
        ('order = ["sdss"]', "has to name each survey once"),
        ("redshift = 3", "wrong kind"),
        ("x = ", "is not TOML"),
        ('previous = "absent.parquet"', "the previous catalog"),
        ('[surveys.boss]\nfiles = "b.fits"', "recipe boss is not a file"),
        ('[surveys.desi]\nfiles = "b.fits"', "b.fits is not a file"),
        ('[surveys.desi]\nfiles = "gama.csv"', "has no column TARGETID, which the recipe of DESI"),
        ('[ebv.csfd]\nhealpix = "absent.fits"', "absent.fits is not a file"),
        ('[ebv.csfd]\nhealpix = "gama.csv"', "is not a FITS file"),
        ('[ebv.csfd]\ncall = "no_such_module:x"', "module 'no_such_module' not found"),
        ('[ebv.csfd]\ncall = "math:pi2"', "has no 'pi2'"),
        ('[ebv.csfd]\nhealpx = "x"', "unknown entry of ebv.csfd 'healpx'"),
    ],
)
def test_what_a_spec_has_wrong_is_one_sentence(tmp_path, capsys, text, says):
    write_gama(tmp_path / "gama.csv", [1, 2])
    assert build(spec(tmp_path, text), tmp_path / "out", "--no-figure") == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "catalog.json").exists()


def test_broken_tables_and_empty_results_are_faults_of_the_data(mock, tmp_path, capsys):
    content = (mock[0] / "gama.fits").read_bytes()
    (tmp_path / "gama.fits").write_bytes(content[: len(content) // 2])
    assert build(spec(tmp_path, table="gama.fits"), tmp_path / "out", "--no-figure") == 1
    assert "gama.fits is broken or truncated" in capsys.readouterr().err
    write_gama(tmp_path / "gama.csv", [1, 2], NQ=[1, 2])
    assert build(spec(tmp_path), tmp_path / "out", "--no-figure") == 1
    assert "no row of any survey passes the cuts" in capsys.readouterr().err
    (tmp_path / "gama.csv").write_text("CATAID,RA,DEC,Z,NQ,SURVEY\n1,10,north,0.1,4,GAMA\n")
    assert build(spec(tmp_path), tmp_path / "out", "--no-figure") == 1
    assert "gama.csv: a text stands where a number is wanted" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone_and_an_unfinished_one_is_taken(
    tmp_path, capsys
):
    write_gama(tmp_path / "gama.csv", [1, 2])
    out = tmp_path / "out"
    assert build(spec(tmp_path), out, "--no-figure") == 0
    assert build(spec(tmp_path), out, "--no-figure") == 2
    assert "is not empty" in capsys.readouterr().err
    whole = packing.content(out)
    # As a run leaves it that was killed before its last file.
    (out / "catalog.json").unlink()
    (out / "catalog.csv").write_text("half")
    assert build(spec(tmp_path), out, "--no-figure") == 0
    assert packing.content(out) == whole
    shutil.rmtree(out)
    out.write_text("")
    assert build(spec(tmp_path), out, "--no-figure") == 2


def test_pieces_of_a_table_add_up_to_the_whole(mock):
    for name in ("sdss.fits", "wigglez.csv"):
        table = open_table(mock[0] / name)
        column = "CLASS" if name == "sdss.fits" else "WiggleZ_Name"
        whole = pa.concat_tables(read_pieces(table, [column]))
        pieces = list(read_pieces(table, [column], rows_per_piece=100))
        assert pa.concat_tables(pieces)[column].to_pylist() == whole[column].to_pylist()
        if name == "sdss.fits":
            assert len(pieces) > 10


def test_recipes_are_listed_and_shown(capsys):
    assert main(["catalog", "recipes"]) == 0
    _, *recipes, queries = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in recipes] == list(BUILT_IN)
    assert queries == "queries of tables to match with: mgs, strm"
    assert main(["catalog", "recipes", "vipers"]) == 0
    assert "classFlag" in capsys.readouterr().out
    assert main(["catalog", "recipes", "vipres"]) == 2
    with pytest.raises(UsageError, match="known names are sdss"):
        load_recipe(Path("vipres"))
