"""Whether pixels are of the kind that a network was trained on: their type, unit and statistics.

Shapes, bands and pixel scales must be equal, see `run_info.schema_difference`. What is
compared here may differ where the user says that it does no harm. Each band's noise, level and
brightness are measured on a draw of samples and held against those that the run keeps. The limits
are wide enough for other parts of the sky and other magnitudes of the same survey, and narrow
enough for other units.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msdata
from msdata.augment.statistics import (
    FILE_NAME,
    BandStatistics,
    Statistics,
    parse_statistics,
    read_statistics,
)
from msdata.dataset.dataset import Split
from msdata.describe.stats import measure
from msdata.errors import DataError, UsageError
from msdata.schema import Schema
from mstrain.models.model_file import companion, is_model_file

if TYPE_CHECKING:
    from mstrain.evaluation.run_info import TrainedRun

# Samples of a split that are looked at: a few hundred megabytes, seconds of reading.
NUM_SAMPLES = 256
# Greatest factor between noises of the sky; the second where most pixels are equal (few photons),
# as noise then depends on objects. Greatest distance of medians, in noises. All were measured, see
# docs/design/training.md.
MAX_NOISE_FACTOR, MAX_COUNTING_FACTOR = 2.0, 5.0
MAX_LEVEL_SHIFT = 2.0
# Few samples scatter: limits are wider by this over the root of their number, and a bright galaxy
# may fill most of the cutouts of a handful.
_SCATTER = 2.0
_MIN_SAMPLES_FOR_LEVEL = 5
# A band that so few samples of the training lacked is one that the network needs.
_MAX_MISSING = 0.01
# From the 5th to the 25th percentile of a Gaussian; sources lie above.
_LOWER_SPREAD = 0.9704
ANYWAY = "--any-pixels"


def statistics_for_run(split: Split) -> Statistics:
    """What a run keeps of the pixels that it is trained on.

    Args:
        split: "train" of the data set; what `msdata stats` measured of it is taken.

    Raises:
        DataError: a shard is missing or truncated.
    """
    try:
        return read_statistics(split.dataset.path)
    except (UsageError, DataError):
        # None yet, or of former data: a few samples are enough to compare with.
        return measure(split, max_samples=NUM_SAMPLES)


def statistics_of_run(run: Path, *, fingerprint: str | None = None) -> Statistics:
    """Statistics of the pixels that a run was trained on.

    Args:
        run: the run's folder, or a model file.
        fingerprint: fingerprint of the training's data set; None accepts any.

    Raises:
        UsageError: the run kept none.
        DataError: they are damaged, or of another data set.
    """
    if not is_model_file(run):
        return read_statistics(run, fingerprint=fingerprint)
    found = companion(run, FILE_NAME)
    if found is None:
        raise UsageError(f"{run} holds no {FILE_NAME}: the run it was exported from had none")
    return parse_statistics(found, fingerprint=fingerprint)


def pixel_differences(run: TrainedRun, data: msdata.Dataset, splits: Sequence[str]) -> list[str]:
    """In what the pixels of splits are others than those of the training; empty for nothing.

    The data set is one that `check_data` accepts.

    Raises:
        DataError: the run's statistics are damaged, or a shard of the data is.
    """
    if data.manifest.fingerprint == run.fingerprint:
        return []
    surveys = run.config.augment.surveys
    found = list(_declared(run.schema, data.schema, surveys))
    try:
        trained = statistics_of_run(run.path, fingerprint=run.fingerprint)
    except UsageError:
        missing = run.path / FILE_NAME
        return [*found, f"{missing} is missing, so that statistics of pixels cannot be compared"]
    for name in splits:
        measured = measure(data.split(name), max_samples=NUM_SAMPLES)
        where = f" (split {name!r})" if len(splits) > 1 else ""
        found += [text + where for text in statistics_differences(trained, measured, surveys)]
    return found


def check_pixels(
    run: TrainedRun, data: msdata.Dataset, splits: Sequence[str], *, is_told: bool
) -> list[str]:
    """Refuses pixels of another kind than the training's, and returns the differences.

    They are said on stderr instead where the user was told (`is_told`) that they do no harm.

    Raises:
        UsageError: there are differences.
        DataError: see `pixel_differences`.
    """
    found = pixel_differences(run, data, splits)
    if found and not is_told:
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        raise UsageError(
            f"the pixels of {data.path} must be as those that {run.path} was trained on, got: "
            f"{shown}; pack the data in the training's unit, or give {ANYWAY} if this is meant"
        )
    for text in found:
        print(f"mstrain: WARNING: other pixels than in training: {text}", file=sys.stderr)
    return found


def _declared(ours: Schema, theirs: Schema, surveys: Sequence[str] | None) -> Iterator[str]:
    """Differences of what the schemas say of pixels."""
    for name in ours.names if surveys is None else surveys:
        for field in ("dtype", "unit", "zero_points_ab"):
            was, now = getattr(ours[name], field), getattr(theirs[name], field)
            if was != now:
                yield f"{field} of {name!r} was {was!r}, now {now!r}"


def statistics_differences(
    trained: Statistics, found: Statistics, surveys: Sequence[str] | None = None
) -> Iterator[str]:
    """In what bands differ by more than samples of one survey do.

    Args:
        trained: statistics of the training.
        found: statistics of other data with the same arrays and bands.
        surveys: arrays that count; None for all.
    """
    for array, bands in trained.arrays.items():
        if surveys is not None and array not in surveys:
            continue
        for name, was in bands.items():
            label = array if name == array else f"{array}.{name}"
            now = found.arrays[array][name]
            num_seen = found.num_samples - now.num_missing
            if was.num_pixels and now.num_pixels and num_seen:
                yield from (f"{label}: {text}" for text in _band_differences(was, now, num_seen))
            elif was.num_missing < _MAX_MISSING * trained.num_samples:
                yield f"{label}: no sample has a pixel, nearly all of the training had"


def _band_differences(was: BandStatistics, now: BandStatistics, num_seen: int) -> Iterator[str]:
    wider = 1 + _SCATTER / math.sqrt(num_seen)
    noises, limit = (_noise(was), _noise(now)), MAX_NOISE_FACTOR**wider
    if not all(noises):
        noises, limit = (was.sky_sigma, now.sky_sigma), MAX_COUNTING_FACTOR**wider
    ratio = noises[1] / noises[0]
    if not 1 / limit <= ratio <= limit:
        yield f"noise {ratio:.3g} times the training's (limit {limit:.2g})"
    shift, limit = (
        (now.quantiles["0.5"] - was.quantiles["0.5"]) / noises[0],
        MAX_LEVEL_SHIFT * wider,
    )
    if num_seen >= _MIN_SAMPLES_FOR_LEVEL and not abs(shift) <= limit:
        yield f"median {shift:+.3g} noises from the training's (limit {limit:.2g})"


def _noise(band: BandStatistics) -> float:
    """Standard deviation of the pixels below the sources; 0 where most pixels are equal."""
    return (band.quantiles["0.25"] - band.quantiles["0.05"]) / _LOWER_SPREAD
