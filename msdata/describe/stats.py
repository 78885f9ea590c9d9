"""Measures the statistics of a data set's bands, over as many samples as are needed.

The samples are a uniform draw of the split: the beginning of the loader's first epoch. Pixels are
counted in whole numbers, so the result is the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.config import AugmentConfig
from msdata.augment.geometry import band_names, survey_names
from msdata.augment.statistics import NUM_BINS, Statistics, count_values, summarise
from msdata.dataset.dataset import Split
from msdata.loader.loader import Loader
from msdata.schema import Survey
from msdata.topology import Topology

# A thousandth of the light of 5,000 samples is hundreds of thousands of pixels in every band.
DEFAULT_MAX_SAMPLES = 5000
_BATCH_SIZE = 64
_PREFETCH = 2


class _BandCount:
    """One band's pixels by value, so far."""

    def __init__(self, survey: Survey, band: int) -> None:
        self._survey = survey
        self._band = band
        self._counts: NDArray[np.int64] = np.zeros(NUM_BINS, np.int64)
        self._num_missing = 0

    def add(self, batch: dict[str, Any]) -> None:
        """Counts the pixels of a batch, but those of samples without coverage."""
        image_NHW = batch[self._survey.name][:, self._band]
        if self._survey.zero_is_no_coverage:
            is_seen = image_NHW.any(axis=(1, 2))
            self._num_missing += int(np.count_nonzero(~is_seen))
            image_NHW = image_NHW[is_seen]
        with np.errstate(over="ignore"):
            self._counts += count_values(image_NHW.astype(np.float32, copy=False))

    def result(self) -> Any:
        """The band's statistics."""
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
        split: whose samples.
        max_samples: at most so many of them, at least 1.
        jobs: threads.
        progress: told how many samples and bytes have been looked at so far.

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
            columns=(),
        ) as loader,
        ThreadPoolExecutor(jobs, "msdata-stats") as executor,
    ):
        for batch in loader:
            part = {s.name: batch[s.name][: wanted - done] for s in surveys}
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
