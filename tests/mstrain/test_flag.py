"""Flags of unusual objects: closed forms, nominal rates, where a flag pays, tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm

import msdata
import mstrain
from msdata.errors import DataError
from mstrain.cli import main
from mstrain.embedding.embeddings import EMBEDDING
from mstrain.embedding.flag import FlagConfig
from mstrain.embedding.outlying import fit_space, largest_sigma, neighbor_distance, sigma_of
from mstrain.embedding.risk import LEAST_RATIO, auroc, place_flag, risk_coverage
from mstrain.evaluation.list_table import (
    METADATA_KEY,
    Spool,
    SpooledRows,
    write_list_table,
)
from mstrain.evaluation.predictions import write_predictions

NUM = 4000
NONE = np.full(NUM, -1)


def distances(train: np.ndarray, *others: np.ndarray, k: int = 40, axes: int = 32):
    """Distances of others, (n, D) each, to the k-th neighbor in the training's space."""
    space = fit_space([train[:1000], train[1000:]], axes)
    reference = space.of(train)
    return [neighbor_distance(space.of(x), reference, k, NONE[: len(x)]) for x in others]


def tail(x: np.ndarray) -> np.ndarray:
    """A feature whose density only falls, and that rises with x: the rarest are on one side."""
    return -norm.logsf(x)[:, None]


@pytest.mark.parametrize("delta", [0.0, 1.5])
def test_shifted_objects_are_found_with_the_closed_form_auroc(delta: float) -> None:
    random = np.random.default_rng(1)
    train, inside, outside = random.normal(size=(3, NUM))
    outside += delta
    found = distances(tail(train), tail(inside), tail(outside))
    assert auroc(found[1], found[0]) == pytest.approx(norm.cdf(delta / np.sqrt(2)), abs=0.02)
    # Of a Gaussian both sides are rare: |x + delta| > |x'| where (x + delta - x')(x + delta + x')
    # is above 0, a product of two independent numbers N(delta, 2).
    found = distances(train[:, None], inside[:, None], outside[:, None])
    share = norm.cdf(delta / np.sqrt(2))
    expected = share**2 + (1 - share) ** 2
    assert auroc(found[1], found[0]) == pytest.approx(expected, abs=0.03)


def test_auroc_counts_equal_scores_half() -> None:
    assert auroc(np.array([1.0, 2.0]), np.array([0.0, 1.0, 1.0])) == pytest.approx(5 / 6)


def test_the_space_is_scaled_and_holds_the_variance_of_its_axes() -> None:
    random = np.random.default_rng(2)
    latent = random.normal(size=(500, 2))
    values = np.column_stack([latent[:, 0], 1000 * latent[:, 0] + 5e4, latent[:, 1], np.ones(500)])
    space = fit_space([values[:0], values[:200], values[200:]], 2)
    assert space.share == pytest.approx(1)
    scaled = (values - values.mean(axis=0)) / np.where(
        values.std(axis=0) > 0, values.std(axis=0), 1
    )
    found = space.of(values)
    assert found.shape == (500, 2)
    # Distances are kept.
    np.testing.assert_allclose(
        np.linalg.norm(found - found[0], axis=1), np.linalg.norm(scaled - scaled[0], axis=1), 1e-4
    )
    white = fit_space([values], 4, is_white=True).of(values)
    np.testing.assert_allclose(white.std(axis=0)[:2], 1, rtol=1e-4)
    assert white.std(axis=0)[2:].max() < 1e-3
    with pytest.raises(DataError, match="the same; was the network trained"):
        fit_space([np.ones((5, 3))], 2)


def test_an_object_is_no_neighbor_of_its_own() -> None:
    points = np.array([[0.0], [1.0], [3.0], [3.0]], np.float32)
    own = np.arange(4)
    assert neighbor_distance(points, points, 1, own).tolist() == [1, 1, 0, 0]
    assert neighbor_distance(points, points, 1, NONE[:4]).tolist() == [0, 0, 0, 0]
    assert neighbor_distance(points, points, 2, own).tolist() == [3, 2, 2, 2]


def test_objects_like_those_of_validation_have_the_nominal_rate() -> None:
    random = np.random.default_rng(3)
    train, validation, test = random.normal(size=(3, NUM, 8))
    found = distances(train, validation, test)
    sigma = sigma_of(found[1], found[0])
    own = sigma_of(found[0], found[0])
    for level in (0.0, 1.0, 2.0):
        nominal = norm.sf(level)
        spread = np.sqrt(nominal * (1 - nominal) / NUM)
        # Of validation objects by construction; both samples scatter for the others.
        assert (own >= level).mean() == pytest.approx(nominal, abs=2 / NUM)
        assert (sigma >= level).mean() == pytest.approx(nominal, abs=4 * spread)
    far = sigma_of(np.array([1e9, 0.0]), found[0])
    assert far[0] == largest_sigma(NUM) == pytest.approx(norm.isf(1 / (NUM + 1)))
    assert far[1] == -far[0]


def residuals(ratio: float, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Sigma, and residuals that are outliers `ratio` times as often beyond 1.645 sigma."""
    random = np.random.default_rng(seed)
    sigma = random.normal(size=20_000)
    share = np.where(sigma > norm.isf(0.05), 0.03 * ratio, 0.03)
    is_out = random.uniform(size=len(sigma)) < share
    return sigma, np.where(is_out, 0.3, random.normal(scale=0.01, size=len(sigma)))


def test_the_flag_is_put_where_outliers_are_three_times_as_frequent() -> None:
    sigma, residual = residuals(8)
    cuts = risk_coverage(sigma, residual, 0.05)
    placed = place_flag(cuts)
    assert placed is not None
    assert (placed.num_flagged, placed.num_kept) == (1000, 19_000)
    is_in = sigma >= placed.sigma
    is_out = np.abs(residual) >= 0.05
    assert placed.eta_flagged.value == is_out[is_in].mean()
    assert placed.eta_kept.value == is_out[~is_in].mean()
    assert placed.ratio.low < 8 < placed.ratio.high
    assert placed.nmad == pytest.approx(0.01, rel=0.1)
    # At a tenth the flagged hold half of the outliers' excess: (8 + 1) / 2.
    tenth = next(cut for cut in cuts if cut.num_flagged == 2000)
    assert tenth.ratio.low < 4.5 < tenth.ratio.high
    # No outlier is left among the kept.
    none = risk_coverage(sigma, np.where(sigma >= placed.sigma, 0.3, 0.0), 0.05)[-3]
    assert none.num_flagged == 4000
    assert none.ratio.value == none.ratio.high == np.inf
    assert none.pays


def test_no_flag_is_put_where_sigma_says_nothing() -> None:
    for seed in range(40):
        cuts = risk_coverage(*(part[:2000] for part in residuals(1, seed)), 0.05)
        assert place_flag(cuts) is None
    sigma, residual = residuals(1)
    assert place_flag(risk_coverage(sigma, np.zeros_like(residual), 0.05)) is None
    assert risk_coverage(sigma[:12], residual[:12], 0.05) == []
    assert LEAST_RATIO == 3


def write_table(path: Path, split: np.ndarray, values: np.ndarray, **columns: np.ndarray) -> Path:
    """A table as `mstrain embed` writes it."""
    values = values.astype(np.float16)
    origin = {"fingerprint": "f", "checkpoint_sha256": "s", "step": 3, "embedding_layer": "hidden"}
    ids = np.array([f"{path.stem}{n}" for n in range(len(split))], object)
    with Spool(path, 0, values.shape[1], np.float16) as spool:
        spool.open()
        spool.add(values)
        rows = SpooledRows([spool.finish(np.arange(len(ids)))], *values.shape, np.float16)
        made = {"sample_id": ids, "split": split.astype(object), **columns}
        write_list_table(path, made, EMBEDDING, rows, origin)
    return path


def test_planted_kinds_are_told_apart_and_tables_of_another_network_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(5)
    split = np.repeat(["train", "val"], [600, 200])
    known = write_table(tmp_path / "known.parquet", split, random.normal(size=(800, 6)))
    kind = np.array(["", "none"] * 40 + ["blank"] * 20, object)
    values = random.normal(size=(100, 6)) + 8.0 * (kind == "blank")[:, None]
    new = write_table(tmp_path / "new.parquet", np.repeat(["test"], 100), values, planted=kind)
    out = tmp_path / "ood.parquet"
    words = ["flag", str(known), str(out), "--of", str(new), "--kinds", "planted", "--json"]
    assert main([*words, "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["auroc"] == {"blank": [1.0, 20]}
    assert found["flag"] is None
    table = pq.read_table(out)
    assert table.column_names == ["sample_id", "ood_distance", "ood_sigma"]
    sigma = table["ood_sigma"].to_numpy()
    assert (sigma[80:] == found["largest_sigma"]).all()
    # The second time it replaces its own file; distances to some of the training rise.
    assert main([*words, "--device", "cpu", "--references", "60"]) == 0
    assert json.loads(capsys.readouterr().out)["num_references"] == 60
    again = pq.read_table(out)["ood_distance"].to_numpy()
    assert (again >= table["ood_distance"].to_numpy() - 1e-9).all()
    other = pq.read_table(new)
    metadata = json.loads(other.schema.metadata[METADATA_KEY]) | {"checkpoint_sha256": "t"}
    pq.write_table(
        other.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), tmp_path / "o.parquet"
    )
    for wrong, said in (
        (["--of", str(tmp_path / "o.parquet")], "must be embeddings of one layer of one network"),
        (
            ["--kinds", "split"],
            "must name a column with kinds, and empty or none for normal objects",
        ),
        (["--kinds", "plant"], "must name a column of text"),
        (["--k", "600"], "--k must be below the 600 training objects, got 600"),
    ):
        assert main(["flag", str(known), str(out), *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main(["flag", str(new), str(out)]) == 2
    assert "must have rows of split 'train', and 20 or more of 'val'" in capsys.readouterr().err
    known.write_bytes(known.read_bytes()[:-1000])
    assert main(["flag", str(known), str(out)]) == 2
    assert pq.read_table(out)["ood_distance"].to_numpy().tolist() == again.tolist()


def write_table_of_predictions(path: Path, ids: list[str], estimate: np.ndarray, step: int) -> Path:
    """Predictions of objects at redshift 1."""
    density = np.ones((len(ids), 2), np.float32)
    columns = {
        "sample_id": np.array(ids, object),
        "redshift": np.ones(len(ids)),
        "z_mean": estimate,
    }
    with Spool(path, 0, 2) as spool:
        spool.open()
        spool.add(density)
        rows = SpooledRows([spool.finish(np.arange(len(ids)))], len(ids), 2)
        origin = {"fingerprint": "f", "step": step}
        write_predictions(path, columns, rows, np.array([0.5, 1.0, 1.5]), origin)
    return path


def test_a_flag_is_put_by_predictions_and_its_columns_are_added_to_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(6)
    split = np.repeat(["train", "val", "test"], [300, 100, 200])
    values = random.normal(size=(600, 6))
    values[580:] += 9
    known = write_table(tmp_path / "known.parquet", split, values)
    ids, estimate = [f"known{n}" for n in range(600)], np.ones(600)
    # Of the odd 20 three quarters are wrong; so is all of the training, which does not count.
    estimate[585:], estimate[:300] = 1.5, 1.5
    paths = [
        write_table_of_predictions(tmp_path / f"p{step}.parquet", ids, estimate, step)
        for step in (3, 4)
    ]
    out = tmp_path / "ood.parquet"
    found = mstrain.flag(known, out, predictions=paths[0], config=FlagConfig(k=3))
    assert found.num_measured == 300
    assert found.flag is not None
    assert 20 <= found.flag.num_flagged <= 30
    assert found.flag.eta_kept.value == 0
    flagged = pq.read_table(out)["is_flagged"].to_numpy()
    assert flagged[580:].all()
    assert flagged.sum() == found.num_flagged
    assert main(["flag", str(known), str(out), "--predictions", str(paths[0]), "--whiten"]) == 0
    assert "the flag is put at sigma" in capsys.readouterr().out
    assert main(["flag", str(known), str(out), "--predictions", str(paths[1])]) == 2
    assert "must be of the same data and network, their step differ" in capsys.readouterr().err
    with msdata.Writer(tmp_path / "DATA") as writer:
        for n in range(600):
            writer.write(f"known{n}", {"image": np.ones((2, 2), np.float32)})
    report = msdata.add_columns(tmp_path / "DATA", out)
    assert report.columns == ("ood_distance", "ood_sigma", "is_flagged")
    assert report.num_missing == 0
