"""Faults planted in mock objects: exact, by construction, and nothing else changed."""

from __future__ import annotations

import csv
from importlib.util import find_spec

import numpy as np
import pytest

import msdata
from msdata.cli import main
from msdata.errors import UsageError
from msdata.mock import objects, write
from msdata.mock.photometry import BANDS, redden
from msdata.mock.planted import (
    KINDS,
    Planting,
    all_bands,
    parse_shares,
    planted_fault,
    stand_in,
)
from msdata.schema import MANTIS_SHRIMP

_ABSENT = [name for name in ("kcorrect", "speclite", "scipy") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(_ABSENT), reason=f"needs {', '.join(_ABSENT)}: pip install 'msdata[mock]'"
)

SEED = 3
EXAMPLE = "mislabel=0.01,star=0.01,quasar=0.01,blank=0.005,zeropoint=0.005,swapped=0.005"


@pytest.fixture(scope="module")
def model():
    return objects.build_model()


def _pair(model, kind, number=11):
    """An object with a fault, and as it would be without."""
    planting = Planting(shares={kind: 1.0})
    made = objects.make_object(model, SEED, number, planting)
    return made, objects.make_object(model, SEED, number), planted_fault(planting, SEED, number)


def _same(one, other):
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def test_shares_are_what_was_asked_for_and_the_rest_has_no_fault():
    planting = Planting(shares=parse_shares(EXAMPLE))
    kinds = [planted_fault(planting, SEED, number).kind for number in range(20_000)]
    for kind, share in planting.shares.items():
        deviation = np.sqrt(share * (1 - share) / len(kinds))
        assert abs(kinds.count(kind) / len(kinds) - share) < 4 * deviation, kind
    assert sum(kinds.count(kind) for kind in (*KINDS, "none")) == len(kinds)


def test_an_object_without_a_fault_keeps_its_bytes(model):
    made = objects.make_object(model, SEED, 5, Planting(shares={"star": 0.0}))
    plain = objects.make_object(model, SEED, 5)
    assert _same(made.sample, plain.sample)
    assert made.row == {
        **plain.row,
        "planted": "none",
        "planted_detail": "none",
        "redshift_true": plain.row["redshift"],
    }


def test_a_mislabel_has_the_redshift_of_an_earlier_object_and_its_own_pixels(model):
    made, plain, fault = _pair(model, "mislabel")
    assert 0 <= fault.other < 11
    assert _same(made.sample, plain.sample)
    assert made.row["redshift"] == objects.make_object(model, SEED, fault.other).row["redshift"]
    assert made.row["redshift_true"] == plain.row["redshift"]
    assert made.row["planted_detail"] == f"{objects.mantis_id(SEED, fault.other):07d}"
    assert made.row["ebv_csfd"] == plain.row["ebv_csfd"]


def test_a_zeropoint_is_one_survey_times_a_hundred(model):
    made, plain, fault = _pair(model, "zeropoint")
    assert made.row["planted_detail"] == fault.survey
    for name in MANTIS_SHRIMP.names:
        factor = np.float32(100 if name == fault.survey else 1)
        np.testing.assert_array_equal(made.sample[name], plain.sample[name] * factor)


def test_swapped_is_one_survey_with_its_bands_reversed(model):
    made, plain, fault = _pair(model, "swapped")
    for name in MANTIS_SHRIMP.names:
        step = -1 if name == fault.survey else 1
        np.testing.assert_array_equal(made.sample[name], plain.sample[name][::step])
        assert made.sample[name].flags.c_contiguous


def _magnitudes(row):
    return np.array([float(row[f"mag_{band.lower()}_ab"]) for band in BANDS])


@pytest.mark.parametrize("kind", ["star", "quasar"])
def test_a_star_or_quasar_is_a_point_of_the_galaxys_r_flux_with_colors_of_its_kind(model, kind):
    made, plain, fault = _pair(model, kind)
    assert made.row["mag_r_ab"] == plain.row["mag_r_ab"]
    assert made.row["half_light_arcsec"] == "0.0000"
    assert made.row["redshift_true"] == ("0.000000" if kind == "star" else plain.row["redshift"])
    found = _magnitudes(made.row)
    unreddened = found + 2.5 * np.log10(redden(np.ones(9), float(made.row["ebv_csfd"])))
    if kind == "star":
        colors = model.population.star_flux
        wanted = -2.5 * np.log10(colors[int(len(colors) * fault.color)])
    else:
        # f_nu falls with frequency as nu^-0.44: from g to W1 by a factor of (33,526 / 4,866)^0.44.
        wanted = np.full(9, np.nan)
        wanted[[2, 7]] = 0.0, -2.5 * 0.44 * np.log10(33_526 / 4_866)
    at_g = BANDS.index("g")
    is_known = np.isfinite(wanted)
    np.testing.assert_allclose(
        (unreddened - unreddened[at_g])[is_known], (wanted - wanted[at_g])[is_known], atol=1e-3
    )


def test_a_blank_has_no_target(model):
    made, plain, _ = _pair(model, "blank", number=0)
    assert made.row["mag_r_ab"] == made.row["half_light_arcsec"] == made.row["redshift_true"] == ""
    assert made.row["redshift"] == plain.row["redshift"]
    # The galaxy's light is missing: its centre is fainter by what the catalog says it had.
    center = (slice(None), slice(65, 105), slice(65, 105))
    missing = plain.sample["panstarrs"][center].sum() - made.sample["panstarrs"][center].sum()
    assert missing > 0


def test_a_deaf_band_is_another_objects_and_only_that_band(model):
    made = objects.make_object(model, SEED, 4, Planting(deaf_band="unwise.W2"))
    own = objects.make_object(model, SEED, 4)
    other = objects.make_object(model, SEED, stand_in(SEED, 4, objects.NUM_IDS))
    assert other.row["mantis_id"] != own.row["mantis_id"]
    np.testing.assert_array_equal(made.sample["unwise"][1], other.sample["unwise"][1])
    np.testing.assert_array_equal(made.sample["unwise"][0], own.sample["unwise"][0])
    assert made.row["mag_w2_ab"] == other.row["mag_w2_ab"]
    for name in ("galex", "panstarrs"):
        np.testing.assert_array_equal(made.sample[name], own.sample[name])
    assert made.row["redshift"] == own.row["redshift"]


def test_with_an_only_band_all_others_are_another_objects(model):
    made = objects.make_object(model, SEED, 4, Planting(only_band="unwise.W1"))
    own = objects.make_object(model, SEED, 4)
    other = objects.make_object(model, SEED, stand_in(SEED, 4, objects.NUM_IDS))
    np.testing.assert_array_equal(made.sample["unwise"][0], own.sample["unwise"][0])
    np.testing.assert_array_equal(made.sample["unwise"][1], other.sample["unwise"][1])
    for name in ("galex", "panstarrs"):
        np.testing.assert_array_equal(made.sample[name], other.sample[name])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shares": {"comet": 0.1}}, "--plant must name one of mislabel"),
        ({"shares": {"star": -0.1}}, "--plant star must be a share from 0 to 1, got -0.1"),
        ({"shares": {"star": float("nan")}}, "must be a share from 0 to 1, got nan"),
        ({"shares": {"star": 0.6, "blank": 0.6}}, "must sum to at most 1, got 1.2"),
        ({"deaf_band": "W2"}, "--deaf-band must be one of panstarrs.g"),
        ({"deaf_band": "unwise.W1", "only_band": "unwise.W1"}, "exclude each other"),
    ],
)
def test_a_planting_that_cannot_be_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        Planting(**options)


@pytest.mark.parametrize(
    ("text", "says"), [("star", "must be NAME=SHARE"), ("star=0.1,star=0.1", "each kind once")]
)
def test_shares_that_cannot_be_read_are_refused(text, says):
    with pytest.raises(UsageError, match=says):
        parse_shares(text)


def test_every_band_of_the_schema_can_be_named():
    assert len(all_bands()) == 9
    assert {"galex.FUV", "panstarrs.y", "unwise.W2"} <= set(all_bands())


def test_the_command_writes_the_columns_and_pack_keeps_them_in_the_index(tmp_path):
    source, data = tmp_path / "objects", tmp_path / "data"
    words = ["mock", str(source), "--n", "24", "--plant", "star=0.5,mislabel=0.5", "--jobs", "1"]
    assert main(words) == 0
    with (source / "catalog.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["planted"] for row in rows} == {"star", "mislabel"}
    words = ["pack", str(source), str(data), "--catalog", str(source / "catalog.csv")]
    assert main([*words, "--jobs", "1", "--max-nan-fraction", "1"]) == 0
    packed = msdata.open(data)
    kinds = {}
    for name in packed.splits:
        table = packed.split(name).table(["sample_id", "planted"])
        kinds |= dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
    assert kinds == {row["mantis_id"]: row["planted"] for row in rows}


def test_two_jobs_write_the_bytes_of_one(tmp_path):
    planting = Planting(shares={"star": 0.3, "swapped": 0.3}, deaf_band="panstarrs.g")
    for jobs in (1, 2):
        write.write_mock(
            tmp_path / f"{jobs}",
            num_objects=100 if jobs == 2 else 3,
            seed=SEED,
            jobs=jobs,
            planting=planting,
        )
    few, many = tmp_path / "1", tmp_path / "2"
    lines = (few / "catalog.csv").read_bytes().splitlines()
    assert lines == (many / "catalog.csv").read_bytes().splitlines()[: len(lines)]
    for path in few.rglob("*.npy"):
        assert path.read_bytes() == (many / path.relative_to(few)).read_bytes()
