"""A simple baseline from the same pixels: nearest neighbors in colors measured on the cutouts.

What a network has to beat: fluxes in an aperture, colors of neighboring bands and one magnitude,
and the median redshift of the nearest training objects. Axes: N objects, B bands, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.augment.geometry import survey_names
from msdata.core.files import write_whole
from msdata.core.output_file import check_output, make_folder
from msdata.core.progress import ProgressLine
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from msdata.schema import Survey
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig, nmad
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import (
    OUTLIER_THRESHOLDS,
    Estimate,
    estimate_of,
    outlier_name,
)
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.predictions import Predictions, read_predictions
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.evaluation.report.page import page_with_section, section_body
from mstrain.evaluation.report.wording import HEADINGS, TextTable, estimate_text
from mstrain.evaluation.run_info import open_run

FORMAT_VERSION = 1
_MARK = b'"baseline": {'
METRICS = ("bias", "nmad", *map(outlier_name, OUTLIER_THRESHOLDS))
# An aperture of this radius, but of at least so many pixels and at most a share of the side.
_RADIUS_ARCSEC, _RADIUS_PIXELS, _RADIUS_SHARE = 3.0, 3.0, 0.2
# Objects whose distances to all training objects are in memory at once.
_PIECE = 256
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What the baseline does.

    Attributes:
        split: name of the split.
        num_neighbors: training objects whose median redshift is the estimate.
        max_objects: objects taken of each split, drawn uniformly.
        bootstrap: how intervals are made; its seed also draws the objects.
        has_report: also put a section into the report.
        is_quiet: show no progress.
    """

    split: str = "test"
    num_neighbors: int = 10
    max_objects: int = 20_000
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    has_report: bool = True
    is_quiet: bool = False

    def __post_init__(self) -> None:
        if self.num_neighbors < 1:
            raise UsageError(f"--neighbors must be at least 1, got {self.num_neighbors}")
        if self.max_objects <= self.num_neighbors:
            raise UsageError(
                f"--objects must be more than --neighbors ({self.num_neighbors}), got "
                f"{self.max_objects}"
            )


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What came of it.

    Attributes:
        result: plain values, as in the JSON file.
        json_path: `baseline-SPLIT.json`.
        report: the page with the section; None if none was drawn.
    """

    result: Mapping[str, Any]
    json_path: Path
    report: Path | None


def aperture_fluxes(
    images_NBHW: NDArray[Any], survey: Survey, radius_pixels: float | None = None
) -> Floats:
    """Flux within an aperture in the middle of each cutout, above the median of its surroundings.

    Args:
        images_NBHW: (N, B, height, width); pixels that are not finite count as sky.
        survey: tells the pixel scale.
        radius_pixels: of the aperture; None takes 3 arcsec, but at least 3 pixels and at most a
            fifth of the side.

    Returns:
        float64 (N, B), in the survey's units.
    """
    height, width = images_NBHW.shape[2:]
    if radius_pixels is None:
        wanted = _RADIUS_ARCSEC / (survey.pixel_scale_arcsec or _RADIUS_ARCSEC)
        radius_pixels = min(max(wanted, _RADIUS_PIXELS), _RADIUS_SHARE * min(height, width))
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    is_inside, is_sky = distance <= radius_pixels, distance > 2 * radius_pixels
    is_finite_NBHW = np.isfinite(images_NBHW)
    values = np.where(is_finite_NBHW, images_NBHW, np.nan)
    around_NBP = values[:, :, is_sky]
    if is_finite_NBHW.all():
        # Several times as fast as the median that leaves NaN out.
        sky_NB1 = np.median(around_NBP, axis=2, keepdims=True)
    else:
        is_empty_NB1 = np.isnan(around_NBP).all(axis=2, keepdims=True)
        sky_NB1 = np.nanmedian(np.where(is_empty_NB1, 0, around_NBP), axis=2, keepdims=True)
    above_NBP = np.nan_to_num(values[:, :, is_inside] - sky_NB1)
    return np.asarray(above_NBP.sum(axis=2, dtype=np.float64), np.float64)


def asinh_magnitudes(flux_NB: Floats, noise_B: Floats) -> Floats:
    """Magnitudes that fluxes below zero have, too, float64 (N, B).

    Args:
        flux_NB: float64 (N, B).
        noise_B: float64 (B,), the softening; see `flux_noise`.

    Source: Lupton, Gunn and Szalay 1999 (AJ 118, 1406).
    """
    return np.asarray(-2.5 / np.log(10) * np.arcsinh(flux_NB / (2 * noise_B)), np.float64)


def flux_noise(flux_NB: Floats) -> Floats:
    """A typical size of faint fluxes, float64 (B,), above 0: the softening of magnitudes."""
    faint_NB = np.abs(np.minimum(flux_NB, np.median(flux_NB, axis=0)))
    return np.asarray(np.maximum(1.4826 * np.median(faint_NB, axis=0), 1e-12), np.float64)


def color_features(magnitude_NB: Floats) -> Floats:
    """Colors of neighboring bands and the mean magnitude, float64 (N, B)."""
    colors = magnitude_NB[:, :-1] - magnitude_NB[:, 1:]
    return np.concatenate([colors, magnitude_NB.mean(axis=1, keepdims=True)], axis=1)


def neighbor_estimates(
    train_MF: Floats, redshift_M: Floats, test_NF: Floats, num_neighbors: int
) -> Floats:
    """Median redshift of the nearest training objects, float64 (N,).

    Args:
        train_MF: float64 (M, F), features of training objects; each counts in its own spread.
        redshift_M: float64 (M,).
        test_NF: float64 (N, F).
        num_neighbors: at most M.
    """
    center_F, spread_F = train_MF.mean(axis=0), train_MF.std(axis=0)
    spread_F[spread_F == 0] = 1
    train_MF = (train_MF - center_F) / spread_F
    test_NF = (test_NF - center_F) / spread_F
    square_M = (train_MF**2).sum(axis=1)
    found = []
    for start in range(0, len(test_NF), _PIECE):
        distance_PM = square_M - 2 * test_NF[start : start + _PIECE] @ train_MF.T
        near_PK = np.argpartition(distance_PM, num_neighbors - 1, axis=1)[:, :num_neighbors]
        found.append(np.median(redshift_M[near_PK], axis=1))
    return np.concatenate(found)


def measure_fluxes(
    split: Split, names: tuple[str, ...], config: BaselineConfig
) -> tuple[list[str], Floats, Floats]:
    """Ids, fluxes and redshifts of objects of known redshift, drawn uniformly from a split.

    Returns:
        N ids; float64 (N, B), bands of all arrays in order; float64 (N,).
    """
    ids: list[str] = []
    fluxes, redshifts = [], []
    total = min(len(split), config.max_objects)
    progress = ProgressLine(f"colors of {split.name}", total, is_quiet=config.is_quiet)
    alone = msdata.Topology()
    with msdata.Loader(
        split, _BATCH, seed=config.bootstrap.seed, topology=alone, columns=["redshift"]
    ) as loader:
        for batch in loader:
            found = [aperture_fluxes(batch[name], split.schema[name]) for name in names]
            keep = np.isfinite(np.asarray(batch["redshift"], np.float64))
            fluxes.append(np.concatenate(found, axis=1)[keep])
            redshifts.append(np.asarray(batch["redshift"], np.float64)[keep])
            ids += np.asarray(batch["sample_id"])[keep].tolist()
            progress.update(min(len(ids), total), len(ids) * split.sample_nbytes)
            if len(ids) >= config.max_objects:
                break
    progress.close(len(ids), len(ids) * split.sample_nbytes)
    count = min(len(ids), config.max_objects)
    return ids[:count], np.concatenate(fluxes)[:count], np.concatenate(redshifts)[:count]


def compare_estimates(
    network_N: Floats, baseline_N: Floats, truth_N: Floats, config: BootstrapConfig
) -> dict[str, dict[str, Estimate]]:
    """Metrics of both, and of the network minus the baseline, paired by object.

    Args:
        network_N: float64 (N,), estimates.
        baseline_N: float64 (N,).
        truth_N: float64 (N,).
        config: how intervals are made.

    Returns:
        "network", "baseline" and "difference": each of `METRICS`.
    """
    residuals = [scaled_residual(estimate, truth_N) for estimate in (network_N, baseline_N)]
    random = np.random.default_rng(config.seed)
    rows = [np.arange(len(truth_N))]
    rows += [random.integers(len(truth_N), size=len(truth_N)) for _ in range(config.num_replicates)]
    # (1 + R, 2, metrics).
    values = np.array([[_metrics(residual[row]) for residual in residuals] for row in rows])
    network, baseline = values[:, 0], values[:, 1]
    columns = {"network": network, "baseline": baseline, "difference": network - baseline}
    return {
        name: {
            metric: estimate_of(float(row[0]), row[1:], config)
            for metric, row in zip(METRICS, found.T, strict=True)
        }
        for name, found in columns.items()
    }


def _metrics(residual_N: Floats) -> list[float]:
    shares = [float((np.abs(residual_N) >= t).mean()) for t in OUTLIER_THRESHOLDS]
    return [float(residual_N.mean()), nmad(residual_N), *shares]


def run_baseline(run: Path, data: Path, out: Path, config: BaselineConfig) -> Baseline:
    """Compares an evaluated network with nearest neighbors in colors of the same cutouts.

    Args:
        run: the run's folder.
        data: the data set's folder.
        out: folder with the table of `mstrain evaluate`; gets the results.
        config: what and how.

    Raises:
        UsageError: the run, the data or the options do not go together, or nothing was evaluated.
        DataError: something is damaged, or too few objects have a redshift.
        StorageError: the file system refused.
    """
    opened = msdata.open(data)
    predictions = _check(opened, out, config)
    names = survey_names(opened.schema, open_run(run, "last").config.augment)
    _, train_flux, train_redshift = measure_fluxes(opened.split("train"), names, config)
    if len(train_redshift) <= config.num_neighbors:
        raise DataError(
            f"split 'train' of {data} must have more than {config.num_neighbors} objects of known "
            f"redshift, got {len(train_redshift)}"
        )
    ids, flux, redshift = measure_fluxes(opened.split(config.split), names, config)
    noise_B = flux_noise(train_flux)
    features = [color_features(asinh_magnitudes(f, noise_B)) for f in (train_flux, flux)]
    found = neighbor_estimates(features[0], train_redshift, features[1], config.num_neighbors)
    estimates = dict(
        zip(predictions.columns["sample_id"], predictions.columns["z_mean"], strict=True)
    )
    network = np.array([estimates[name] for name in ids], np.float64)
    compared = compare_estimates(network, found, redshift, config.bootstrap)
    result = {
        "format_version": FORMAT_VERSION,
        "origin": dict(predictions.origin),
        "baseline": {
            "num_train": len(train_redshift),
            "num_test": len(ids),
            "num_neighbors": config.num_neighbors,
            "level": config.bootstrap.level,
            "metrics": {n: {m: asdict(e) for m, e in f.items()} for n, f in compared.items()},
        },
    }
    json_path = out / f"baseline-{config.split}.json"
    write_whole(json_path, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
    report = out / "report.html" if config.has_report else None
    if report is not None:
        page = report.read_text(encoding="utf-8") if report.exists() else None
        body = section_body([_NOTE], [baseline_table(result)], [])
        title = "Against colors from the same pixels"
        write_whole(report, page_with_section(page, "baseline", title, body).encode())
    return Baseline(result=result, json_path=json_path, report=report)


def _check(data: msdata.Dataset, out: Path, config: BaselineConfig) -> Predictions:
    """Refuses what cannot end well, before pixels are read; gives the table of predictions."""
    for name in ("train", config.split):
        if name not in data.splits or not len(data.split(name)):
            raise UsageError(
                f"{data.path} must have samples in split {name!r}; it has "
                f"{', '.join(n for n in data.splits if len(data.split(n))) or 'none'}"
            )
    if config.split == "train":
        raise UsageError("--split must not be train: neighbors are taken from there")
    table = out / f"predictions-{config.split}.parquet"
    if not table.exists():
        raise UsageError(
            f"{table} not found; run 'mstrain evaluate RUN DATA --split {config.split}' first"
        )
    predictions = read_predictions(table)
    if predictions.origin["fingerprint"] != data.manifest.fingerprint:
        raise UsageError(
            f"{table} is of data set {predictions.origin['fingerprint']}, and {data.path} is "
            f"{data.manifest.fingerprint}; evaluate the run on this data set first"
        )
    check_output(out / f"baseline-{config.split}.json", _MARK)
    if config.has_report:
        check_installed()
        check_output(out / "report.html", PAGE_MARK)
    make_folder(out)
    return predictions


_NOTE = (
    "Baseline: the median redshift of the nearest training objects in colors of neighboring bands "
    "and the mean magnitude, measured in an aperture of 3 arcsec (at least 3 pixels) of the same "
    "cutouts. Differences are of the network minus the baseline, paired by object: below 0, the "
    "network is better."
)


def baseline_table(result: Mapping[str, Any]) -> TextTable:
    """Network, baseline and paired difference, a row each."""
    found = result["baseline"]
    rows = [
        [name, *(estimate_text(metric, Estimate(**values[metric])) for metric in METRICS)]
        for name, values in found["metrics"].items()
    ]
    return TextTable(
        caption=f"Network and {found['num_neighbors']} nearest neighbors in colors of "
        f"{found['num_train']:,} training objects, on the same {found['num_test']:,} objects, with "
        f"{found['level']:.0%} intervals",
        head=["estimate", *(HEADINGS[metric][0] for metric in METRICS)],
        rows=rows,
    )
