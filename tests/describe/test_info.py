"""msdata info: the numbers are those of the index, as text and as JSON."""

import json

import numpy as np
import pyarrow as pa
import pytest

from msdata.cli import main
from msdata.dataset.index import write_index
from msdata.dataset.manifest import Manifest, ShardInfo
from msdata.describe.info import describe
from msdata.describe.info_command import info_lines
from msdata.describe.overlap import nearest_separation, unit_vectors
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

SIZES = {"train": 700, "val": 100, "test": 200}
NUM_SAMPLES = sum(SIZES.values())


def index_columns(schema: Schema, rng: np.random.Generator) -> dict:
    missing = np.array(["", "galex.FUV", "galex.NUV,galex.FUV"], object)
    columns = {
        "sample_id": pa.array([str(i) for i in range(NUM_SAMPLES)]),
        "split": pa.array([name for name, n in SIZES.items() for _ in range(n)]),
        "shard": np.zeros(NUM_SAMPLES, np.int32),
        **{f"offset_{n}": np.arange(NUM_SAMPLES) for n in schema.names},
        "nbytes": np.full(NUM_SAMPLES, schema.sample_nbytes),
        "crc32c": np.zeros(NUM_SAMPLES, np.uint32),
        "missing_bands": pa.array(missing[rng.choice(3, NUM_SAMPLES, p=[0.5, 0.2, 0.3])]),
    }
    for prefix in ("filled", "nan"):
        for name in schema.names:
            columns[f"{prefix}_{name}"] = rng.poisson(0.2, NUM_SAMPLES).astype(np.int32)
    return columns


def write_data(folder, schema: Schema, **columns) -> pa.Table:
    table = pa.table({**index_columns(schema, np.random.default_rng(0)), **columns})
    digest = write_index(folder, table, schema)
    shards = tuple(
        ShardInfo(
            split=s, name="shard-000000.tar", num_samples=n, nbytes=n * 600_000, frame_crc32c=0
        )
        for s, n in SIZES.items()
    )
    Manifest(
        container="tar",
        schema=schema,
        shards=shards,
        seed=7,
        index_sha256=digest,
        provenance={"msdata": "0.1.0", "settings": {"chunked": False}},
    ).write(folder)
    return table


@pytest.fixture
def labeled(tmp_path):
    rng = np.random.default_rng(1)
    redshift = rng.gamma(2, 0.2, NUM_SAMPLES)
    redshift[5] = np.nan
    ebv = pa.array([None if i % 4 == 0 else i / 1000 for i in range(NUM_SAMPLES)], pa.float64())
    table = write_data(
        tmp_path,
        MANTIS_SHRIMP,
        redshift=redshift,
        ebv=ebv,
        field=pa.array([None, *["S"] * (NUM_SAMPLES - 1)]),
        count=np.arange(NUM_SAMPLES),
        seen=pa.array([True] * NUM_SAMPLES),
    )
    return tmp_path, table


def test_counts_sizes_and_pixels_are_those_of_the_index(labeled):
    folder, table = labeled
    info = describe(folder)
    assert {s.name: s.num_samples for s in info.splits} == SIZES
    assert [s.nbytes for s in info.splits] == [n * 600_000 for n in SIZES.values()]
    for array in info.arrays:
        filled = table[f"filled_{array.name}"].to_numpy()
        assert array.num_filled_pixels == filled.sum()
        assert array.num_filled_samples == np.count_nonzero(filled)
        assert array.num_nan_pixels == table[f"nan_{array.name}"].to_numpy().sum()
    texts = table["missing_bands"].to_pylist()
    galex = next(a for a in info.arrays if a.name == "galex")
    assert galex.num_missing == {b: sum(b in t for t in texts) for b in ("NUV", "FUV")}


def test_every_redshift_is_in_one_bin_of_its_split(labeled):
    folder, table = labeled
    histogram = describe(folder).redshifts
    sums = {name: int(c.sum()) for name, c in histogram.counts.items()}
    assert sums == {**SIZES, "train": SIZES["train"] - 1}
    assert histogram.edges[0] <= np.nanmin(table["redshift"].to_numpy())


def test_nulls_and_limits_of_the_columns_are_counted(labeled):
    columns = {c.name: c for c in describe(labeled[0]).columns}
    assert columns["ebv"].num_null == NUM_SAMPLES // 4
    assert columns["redshift"].num_null == 1
    assert columns["field"].num_null == 1
    assert (columns["count"].minimum, columns["count"].maximum) == (0, NUM_SAMPLES - 1)
    assert columns["seen"].maximum is None


def test_the_text_fits_the_terminal_and_says_the_essential(labeled):
    info = describe(labeled[0])
    text = "\n".join(info_lines(info, 80))
    # A path is as long as it is.
    lines = [line for line in text.splitlines()[:40] if str(labeled[0]) not in line]
    assert max(map(len, lines)) <= 80
    for word in (info.manifest.fingerprint, "5x170x170", "20.08, 18.82", "seed         7", "####"):
        assert word in text


def test_a_data_set_without_labels_and_bands_is_described_too(tmp_path):
    write_data(tmp_path, Schema(name="inferred", arrays=(Survey(name="cube", shape=(2, 2, 2, 2)),)))
    info = describe(tmp_path)
    assert info.redshifts is None
    text = "\n".join(info_lines(info, 80))
    assert "no catalog columns" in text
    assert "2x2x2x2" in text


def test_the_json_stands_alone_on_stdout(labeled, capsys):
    assert main(["info", str(labeled[0]), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_samples"] == NUM_SAMPLES
    assert result["redshifts"]["counts"].keys() == SIZES.keys()
    assert main(["info", str(labeled[0])]) == 0
    assert capsys.readouterr().out.startswith("data set")
    assert main(["info", str(labeled[0] / "none")]) == 2


def test_test_objects_within_a_cutout_of_a_training_object_are_counted(tmp_path, capsys):
    # Training objects a degree apart; one test object beside each of the first four.
    ra, dec = np.arange(NUM_SAMPLES) % 300.0, np.zeros(NUM_SAMPLES)
    dec[700:] = 50.0
    for row, arcsec in ((800, 41.0), (801, 45.0), (802, 70.0), (803, 100.0)):
        ra[row], dec[row] = row - 800, arcsec / 3600
    # An object without a position, and one on the other side of right ascension 0.
    ra[804], (ra[805], dec[805]) = np.nan, (359.9999, 0.0)
    write_data(tmp_path, MANTIS_SHRIMP, ra=ra, dec=dec)
    assert main(["info", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["overlaps"]
    by = {(o["split"], o["array"]): o for o in found}
    assert {key: o["num_objects"] for key, o in by.items()} == {
        **{("val", name): 0 for name in MANTIS_SHRIMP.names},
        ("test", "panstarrs"): 2,
        ("test", "galex"): 3,
        ("test", "unwise"): 4,
    }
    assert by["test", "panstarrs"]["side_arcsec"] == 42.5
    assert by["test", "unwise"]["num_positions"] == 199
    assert main(["info", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("test") and line.endswith("2.01 %") for line in lines) == 1


def test_nearest_separations_are_those_of_all_pairs_at_the_poles_too():
    rng = np.random.default_rng(0)
    points, others = (
        np.stack([rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))], axis=1)
        for n in (400, 3000)
    )
    points[0], others[0] = (10.0, 90.0), (200.0, 89.5)
    cosine = unit_vectors(points) @ unit_vectors(others).T
    expected = np.degrees(np.arccos(np.minimum(cosine, 1))).min(axis=1)
    found = nearest_separation(points, others, 1.5)
    is_near = expected < 1.5
    assert 50 < is_near.sum() < 350
    np.testing.assert_allclose(found[is_near], expected[is_near], atol=1e-6)
    assert np.isinf(found[~is_near]).all()
    assert nearest_separation(points[:0], others, 1.0).shape == (0,)
    assert np.isinf(nearest_separation(points, others[:0], 1.0)).all()
