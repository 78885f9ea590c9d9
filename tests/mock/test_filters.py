"""Passbands in numbers: where features of spectra cross them."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from msdata.cli import main
from msdata.mock.filters import find_crossings, load_filters

pytestmark = pytest.mark.skipif(
    find_spec("speclite") is None, reason="needs speclite: pip install 'msdata[mock]'"
)


@pytest.mark.parametrize(
    ("feature", "band", "z_low", "z_high"),
    [
        ("Lyman limit", "FUV", 0.47, 0.96),
        ("Lyman alpha", "NUV", 0.45, 1.33),
        ("4000 A break", "g", 0.00, 0.39),
        ("4000 A break", "r", 0.36, 0.74),
        ("4000 A break", "i", 0.71, 1.06),
        ("4000 A break", "z", 1.03, 1.32),
        ("4000 A break", "y", 1.29, 1.58),
        ("PAH 3.3 um", "W1", 0.00, 0.16),
        ("PAH 3.3 um", "W2", 0.22, 0.60),
        ("1.6 um bump", "W1", 0.74, 1.39),
    ],
)
def test_features_cross_the_bands_where_speclites_passbands_say(feature, band, z_low, z_high):
    found = {(c.feature, c.band): c for c in find_crossings(load_filters(), 2.5)}
    crossing = found[feature, band]
    assert (crossing.z_low, crossing.z_high) == (
        pytest.approx(z_low, abs=0.011),
        pytest.approx(z_high, abs=0.011),
    )


def test_crossings_end_at_the_greatest_redshift():
    found = find_crossings(load_filters(), 0.5)
    assert max(c.z_high for c in found) == 0.5
    assert ("4000 A break", "i") not in {(c.feature, c.band) for c in found}


def test_the_command_prints_the_tables_and_json(capsys):
    assert main(["filters"]) == 0
    assert "4000 A break  g" in capsys.readouterr().out
    assert main(["filters", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["band"] for one in found["filters"]][-1] == "W2"
    assert main(["filters", "--z-max", "nan"]) == 2
    assert "--z-max must be > 0, got nan" in capsys.readouterr().err
