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
import torch
from numpy.typing import NDArray

import msdata
from benchmarks.harness import add_data, part_parser, write_part
from benchmarks.workloads import make_objects, run_msdata, run_mstrain
from msdata.augment import read_statistics
from msdata.augment.statistics import FILE_NAME
from msdata.core.text import table_lines
from msdata.dataset.dataset import Dataset, Split
from msdata.schema import Survey
from mstrain.data.batches import evaluation_batches
from mstrain.evaluation.baseline import aperture_fluxes, asinh_magnitudes, flux_noise
from mstrain.evaluation.metrics.bootstrap import nmad
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.models.heads import bin_edges, density
from mstrain.training.checkpoint import load_model

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


def network_estimates(run: Path, data: Dataset, split: str) -> Floats:
    """Mean of the network's density for each sample of a split, in the order of ids."""
    model, config = load_model(run)
    statistics = read_statistics(run / FILE_NAME) if config.augment.needs_statistics else None
    edges = bin_edges(config.model)
    masses = (edges[1:] ** 2 - edges[:-1] ** 2) / 2
    ids: list[str] = []
    means = []
    with torch.no_grad():
        for batch in evaluation_batches(data, split, config, statistics=statistics):
            p = density(model(batch.images, batch.ebv), config.model)
            means.append((p * masses).sum(1))
            ids += batch.sample_id.tolist()
    return np.asarray(torch.cat(means).numpy()[np.argsort(ids)], np.float64)


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


def against_the_mean(run: Path, data: Dataset, split: str = "test") -> dict[str, dict[str, float]]:
    """Quality of a network on a split, and of always saying the training split's mean redshift."""
    redshift = columns_by_id(data.split(split), ["redshift"])[:, 0]
    mean = data.split("train").numbers("redshift").mean()
    return {
        "network": quality(network_estimates(run, data, split), redshift),
        "mean redshift": quality(np.full_like(redshift, mean), redshift),
    }


def compare(run: Path, data: Dataset) -> dict[str, dict[str, float]]:
    """Quality of all contestants on the test split."""
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    redshift = {n: columns_by_id(s, ["redshift"])[:, 0] for n, s in splits.items()}
    ebv = {n: columns_by_id(s, [_EBV]) for n, s in splits.items()}
    names = sorted(c for c in data.columns if c.startswith(_TRUE_MAGNITUDES))
    magnitudes = {
        "trees on magnitudes of the cutouts": {
            n: measured_magnitudes(s) for n, s in splits.items()
        },
        "trees on true magnitudes": {n: columns_by_id(s, names) for n, s in splits.items()},
    }
    found = against_the_mean(run, data)
    for name, by_split in magnitudes.items():
        features = {n: np.concatenate([m, ebv[n]], axis=1) for n, m in by_split.items()}
        found[name] = quality(boosted_estimates(features, redshift), redshift["test"])
    return found


def main(words: list[str]) -> int:
    """Runs the comparison; returns the exit code."""
    parser = part_parser("photoz", "A network on pixels beside boosted trees on magnitudes.")
    add_data(parser, 10_000)
    parser.add_argument("--recipe", default="demo", help="of mstrain train")
    parser.add_argument("settings", nargs="*", help="key=value, of the recipe")
    args = parser.parse_args(words)
    data = args.data / f"photoz-{args.objects}"
    if not (data / "dataset.json").exists():
        objects = make_objects(args.data, args.objects)
        run_msdata("pack", objects, data, "--catalog", objects / "catalog.csv", "--resume")
    run_msdata("stats", data, "--quiet")
    run = args.data / f"photoz-run-{args.objects}-{args.recipe}"
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
