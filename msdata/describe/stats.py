"""`msdata stats`: measures the statistics of a data set's bands, with its options and its table.

The samples are a uniform draw of the split: the start of the loader's first epoch. Pixel counts are
integers, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.config import AugmentConfig
from msdata.augment.geometry import band_names, survey_names
from msdata.augment.statistics import (
    FILE_NAME,
    MARK,
    NUM_BINS,
    BandStatistics,
    Statistics,
    count_values,
    summarise,
)
from msdata.core.options import add_jobs, num_jobs
from msdata.core.output_file import check_output
from msdata.core.progress import ProgressLine
from msdata.core.text import table_lines
from msdata.dataset.dataset import Split, open_dataset
from msdata.errors import UsageError
from msdata.loader.loader import Loader
from msdata.schema import Schema, Survey
from msdata.topology import Topology

# A thousandth of the pixels of 5,000 samples are hundreds of thousands in every band.
DEFAULT_MAX_SAMPLES = 5000
_BATCH_SIZE = 64
_PREFETCH = 2
WHEN_INTERRUPTED = "nothing was written"
_SHOWN_QUANTILES = ("0.01", "0.5", "0.99", "0.999")


class _BandCount:
    """Counts one band's pixels by value."""

    def __init__(self, survey: Survey, band: int) -> None:
        self._survey = survey
        self._band = band
        self._counts: NDArray[np.int64] = np.zeros(NUM_BINS, np.int64)
        self._num_missing = 0
        bands = survey.bands
        self._name = f"{survey.name}.{bands[band]}" if bands else survey.name

    def add(self, batch: dict[str, Any]) -> None:
        """Counts the pixels of a batch, except those of samples without coverage or filled."""
        image_NHW = batch[self._survey.name][:, self._band]
        missing = batch["missing_bands"]
        is_seen = np.array([self._name not in (text or "").split(",") for text in missing])
        if self._survey.zero_is_no_coverage:
            is_seen &= image_NHW.any(axis=(1, 2))
        self._num_missing += int(np.count_nonzero(~is_seen))
        image_NHW = image_NHW[is_seen]
        with np.errstate(over="ignore"):
            self._counts += count_values(image_NHW.astype(np.float32, copy=False))

    def result(self) -> Any:
        """Returns the band's statistics."""
        return summarise(self._counts, num_missing=self._num_missing)


def measure(
    split: Split,
    *,
    max_samples: int = DEFAULT_MAX_SAMPLES,
    jobs: int = 1,
    progress: Callable[[int, int], None] = lambda num_samples, nbytes: None,
) -> Statistics:
    """Measures a split.

    Args:
        split: the split to measure.
        max_samples: largest number of samples, at least 1.
        jobs: number of threads.
        progress: called with the numbers of samples and bytes read so far.

    Raises:
        UsageError: no array is an image.
        DataError: a shard is missing or truncated.
    """
    surveys = [split.schema[name] for name in survey_names(split.schema, AugmentConfig())]
    counts = {s.name: {b: _BandCount(s, i) for i, b in enumerate(band_names(s))} for s in surveys}
    bands = [count for of_survey in counts.values() for count in of_survey.values()]
    wanted = min(max_samples, len(split))
    done = 0
    alone = Topology(num_nodes=1, ranks_per_node=1, rank=0)
    with (
        Loader(
            split,
            min(_BATCH_SIZE, wanted),
            topology=alone,
            threads=jobs,
            prefetch=_PREFETCH,
            across_epochs=False,
            columns=("missing_bands",),
        ) as loader,
        ThreadPoolExecutor(jobs, "msdata-stats") as executor,
    ):
        for batch in loader:
            names = ("missing_bands", *(s.name for s in surveys))
            part = {name: batch[name][: wanted - done] for name in names}
            list(executor.map(lambda band, part=part: band.add(part), bands))
            done += len(part[surveys[0].name])
            progress(done, done * split.sample_nbytes)
            if done == wanted:
                break
    return Statistics(
        fingerprint=split.dataset.manifest.fingerprint,
        split=split.name,
        num_samples=done,
        arrays={
            name: {band: count.result() for band, count in of_survey.items()}
            for name, of_survey in counts.items()
        },
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata stats`."""
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--split", help="the split to measure (default: train, or the first one)")
    parser.add_argument(
        "--max-samples",
        type=int,
        default=DEFAULT_MAX_SAMPLES,
        help="number of samples, drawn at random (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, help=f"the .json file to write (default: {FILE_NAME} in the data set)"
    )
    add_jobs(parser, "threads")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress line")


def run(args: argparse.Namespace) -> int:
    """Measures a data set's bands and writes the statistics; returns the exit code."""
    jobs = num_jobs(args.jobs)
    if args.max_samples < 1:
        raise UsageError(f"--max-samples must be at least 1, got {args.max_samples}")
    if args.out is not None and args.out.suffix != ".json":
        raise UsageError(f"--out must be a .json file, got {args.out}")
    path = args.data / FILE_NAME if args.out is None else args.out
    data = open_dataset(args.data)
    if not path.parent.is_dir():
        raise UsageError(f"the folder of --out does not exist: {path.parent}; make it first")
    default = "train" if "train" in data.splits else data.splits[0]
    split = data.split(default if args.split is None else args.split)
    total = min(args.max_samples, len(split))
    line = ProgressLine("stats", total, is_quiet=args.quiet)
    check_output(path, MARK)
    statistics = measure(split, max_samples=total, jobs=jobs, progress=line.update)
    line.close(total, total * split.sample_nbytes)
    statistics.write(path)
    if args.json:
        found = {**statistics.to_json(), "depths_ab": depths(statistics, data.schema)}
        print(json.dumps({**found, "path": str(path)}))
        return 0
    for text in statistics_lines(statistics, data.schema):
        print(text)
    print(f"wrote {path}")
    return 0


def depths(statistics: Statistics, schema: Schema) -> dict[str, float]:
    """Depth of each band: the AB magnitude of five times the noise of a square arc second.

    It takes the noise of pixels as independent; resampled images are less deep than it says.

    Args:
        statistics: of the data set.
        schema: its schema.

    Returns:
        Magnitudes by "ARRAY.BAND", without bands whose pixel scale or zero-point is not known.
    """
    found = {}
    for survey in schema.arrays:
        scale, zero_points = survey.pixel_scale_arcsec, survey.zero_points_ab
        if scale is None or zero_points is None or survey.name not in statistics.arrays:
            continue
        bands = statistics.arrays[survey.name]
        for (name, band), zero_point in zip(bands.items(), zero_points, strict=True):
            found[f"{survey.name}.{name}"] = zero_point - 2.5 * math.log10(
                5 * band.sky_sigma / scale
            )
    return found


def statistics_lines(statistics: Statistics, schema: Schema) -> Iterator[str]:
    """Yields the result as a table, one row per band."""
    deep = depths(statistics, schema)
    yield f"{statistics.num_samples:,} samples of {statistics.split}, {statistics.fingerprint}"
    head = ("band", "mean", "std", "sky noise", *(f"{float(q):.1%}" for q in _SHOWN_QUANTILES))
    rows = [
        (f"{array}.{name}", *_cells(band), _magnitude(deep.get(f"{array}.{name}")))
        for array, bands in statistics.arrays.items()
        for name, band in bands.items()
    ]
    yield from table_lines((*head, "NaN", "no coverage", "depth [AB]"), rows)
    if deep:
        yield "depth: five times the noise of a square arc second, AB; pixels taken as independent"


def _magnitude(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cells(band: BandStatistics) -> list[str]:
    values = [band.mean, band.std, band.sky_sigma, *(band.quantiles[q] for q in _SHOWN_QUANTILES)]
    return [*(f"{value:.4g}" for value in values), f"{band.num_nan:,}", f"{band.num_missing:,}"]
