"""Redshifts by a network from pixels, and by boosted trees from magnitudes, of the same objects.

    python -m benchmarks photoz --data bench-data

The trees get nine magnitudes measured on the same cutouts and E(B-V), which the network gets too;
how strong they are is chosen on the validation split. Beside them stand trees on the catalog's
magnitudes, which are the truth behind mock pixels, without noise: what no measurement can have.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import msdata
from benchmarks.harness import add_data, part_parser, write_part
from benchmarks.workloads import pack_mock, run_msdata, run_mstrain
from msdata.core.text import table_lines
from msdata.dataset.dataset import Dataset, Split
from msdata.schema import Survey
from mstrain.evaluation.baseline import aperture_fluxes, asinh_magnitudes, flux_noise
from mstrain.evaluation.metrics.bootstrap import nmad
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.predictions import read_predictions

Floats = NDArray[np.float64]

# Radii of apertures in arcsec: about three times the half width of each survey's PSF.
_RADIUS_ARCSEC = {"panstarrs": 3.0, "galex": 7.5, "unwise": 8.25}
_TRUE_MAGNITUDES = "mag_"
_EBV = "ebv_csfd"
_OUTLIER = 0.15
# Strengths of the trees to choose from: (loss, leaves).
_STRENGTHS = [(loss, n) for loss in ("absolute_error", "squared_error") for n in (8, 31)]


def measured_magnitudes(split: Split) -> Floats:
    """Nine magnitudes of each sample, measured on its cutouts; (samples, 9).

    Asinh magnitudes, softened by the size of faint fluxes.
    """
    parts: list[Floats] = []
    ids: list[str] = []
    with msdata.Loader(split, 64) as loader:
        for batch in loader:
            fluxes = [_fluxes(batch[a.name], a) for a in split.schema.arrays]
            parts.append(np.concatenate(fluxes, axis=1))
            ids += batch["sample_id"].tolist()
    fluxes_NB = np.concatenate(parts)[np.argsort(ids)]
    return asinh_magnitudes(fluxes_NB, flux_noise(fluxes_NB))


def _fluxes(images_NBHW: NDArray[np.float32], survey: Survey) -> Floats:
    assert survey.pixel_scale_arcsec is not None
    radius_pixels = _RADIUS_ARCSEC[survey.name] / survey.pixel_scale_arcsec
    return aperture_fluxes(images_NBHW, survey, radius_pixels)


def columns_by_id(split: Split, columns: Sequence[str]) -> Floats:
    """Columns of the index in the order of ids; (samples, columns)."""
    order = np.argsort(np.array(split.table(["sample_id"]).column(0).to_pylist()))
    return np.stack([split.numbers(c) for c in columns], axis=1)[order]


def network_estimates(run: Path, data: Path, split: str = "test") -> Floats:
    """Mean of the network's density for each sample of a split, in the order of ids."""
    run_mstrain("evaluate", run, data, "--quiet", "--split", split)
    found = read_predictions(run / f"predictions-{split}.parquet").columns
    return np.asarray(found["z_mean"][np.argsort(found["sample_id"])], np.float64)


def boosted_estimates(features: dict[str, Floats], redshift: dict[str, Floats]) -> Floats:
    """Redshifts of the test split by boosted trees, the strongest on the validation split.

    Args:
        features: (samples, features) by split.
        redshift: (samples,) by split.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    found = []
    for loss, leaves in _STRENGTHS:
        trees = HistGradientBoostingRegressor(
            loss=loss,
            learning_rate=0.05,
            max_leaf_nodes=leaves,
            max_iter=1000,
            early_stopping=True,
            n_iter_no_change=30,
            random_state=0,
        ).fit(features["train"], redshift["train"])
        residual = scaled_residual(trees.predict(features["val"]), redshift["val"])
        found.append((nmad(residual), trees))
    best = min(found, key=lambda pair: pair[0])[1]
    return np.asarray(best.predict(features["test"]), np.float64)


def quality(estimate_N: Floats, redshift_N: Floats) -> dict[str, float]:
    """NMAD, bias and share of outliers of point estimates."""
    residual = scaled_residual(estimate_N, redshift_N)
    return {
        "nmad": round(nmad(residual), 5),
        "bias": round(float(residual.mean()), 5),
        f"outliers_{_OUTLIER}": round(float((np.abs(residual) >= _OUTLIER).mean()), 5),
    }


def against_the_mean(run: Path, data: Dataset) -> dict[str, dict[str, float]]:
    """Quality of a network on the test split, and of always saying the mean redshift."""
    redshift = columns_by_id(data.split("test"), ["redshift"])[:, 0]
    mean = data.split("train").numbers("redshift").mean()
    return {
        "network": quality(network_estimates(run, data.path), redshift),
        "mean redshift": quality(np.full_like(redshift, mean), redshift),
    }


def compare(run: Path, data: Dataset) -> dict[str, dict[str, float]]:
    """Quality of all contestants on the test split."""
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    redshift = {n: columns_by_id(s, ["redshift"])[:, 0] for n, s in splits.items()}
    names = sorted(c for c in data.columns if c.startswith(_TRUE_MAGNITUDES))
    found = against_the_mean(run, data)
    for title, magnitudes in {
        "trees on magnitudes of the cutouts": measured_magnitudes,
        "trees on true magnitudes": lambda split: columns_by_id(split, names),
    }.items():
        features = {
            name: np.concatenate([magnitudes(split), columns_by_id(split, [_EBV])], axis=1)
            for name, split in splits.items()
        }
        found[title] = quality(boosted_estimates(features, redshift), redshift["test"])
    return found


def main(words: list[str]) -> int:
    """Runs the comparison; returns the exit code."""
    parser = part_parser("photoz", "A network on pixels beside boosted trees on magnitudes.")
    add_data(parser, 10_000)
    parser.add_argument("--recipe", default="demo", help="of mstrain train")
    parser.add_argument("settings", nargs="*", help="key=value, of the recipe")
    args = parser.parse_args(words)
    count, folder = args.objects, args.data
    data = pack_mock(folder / f"photoz-{count}", folder / f"objects-{count}", count)
    run_msdata("stats", data, "--quiet")
    run = folder / f"photoz-run-{count}-{args.recipe}"
    started_s = time.monotonic()
    run_mstrain("train", args.recipe, data, "--out", run, *args.settings)
    train_s = time.monotonic() - started_s
    found = compare(run, msdata.open(data))
    print("\n" + "\n".join(quality_lines(found)))
    facts = {"objects": args.objects, "recipe": args.recipe, "settings": args.settings}
    write_part("photoz", {**facts, "train_s": round(train_s), "test": found}, words, args.out)
    return 0


def quality_lines(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """The quality of contestants as a table."""
    names = list(next(iter(found.values())))
    rows = [[who, *(f"{v:.4f}" for v in values.values())] for who, values in found.items()]
    return table_lines(["on held-out objects", *names], rows)
