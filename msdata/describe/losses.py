"""Describes what coding kept and lost: sizes, steps and the largest error of every band.

Reads the index alone: `info` and `card` show the same numbers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from msdata.core.text import table_lines
from msdata.dataset.dataset import Dataset
from msdata.dataset.manifest import Manifest

# What a band without a pixel to quantize is given; measured steps are hardly ever so round.
_STEP_OF_ZEROS = 1.0


@dataclass(frozen=True, kw_only=True)
class BandLoss:
    """The steps of one band over all samples, in the unit of its pixels.

    Attributes:
        band: its name, such as "panstarrs.g".
        num_unchanged: samples that keep its pixels bit for bit: their noise could not be measured.
        lowest_step: the smallest step; None if no sample has one.
        median_step: the median.
        highest_step: the largest.
        max_error: bound of the difference of any pixel: half of the largest step.
    """

    band: str
    num_unchanged: int
    lowest_step: float | None
    median_step: float | None
    highest_step: float | None
    max_error: float


@dataclass(frozen=True, kw_only=True)
class CodedArrayInfo:
    """How one array is stored.

    Attributes:
        name: its name.
        quantize: steps per noise; None if it is not quantized.
        compress: "none", "lz4" or "zstd".
        codes: widest dtype that it is stored as.
        nbytes: stored bytes of all samples.
        ratio: decoded bytes per stored byte.
        bands: its losses; empty if it is not quantized.
    """

    name: str
    quantize: float | None
    compress: str
    codes: str
    nbytes: int
    ratio: float
    bands: tuple[BandLoss, ...]


def coded_arrays(data: Dataset) -> tuple[CodedArrayInfo, ...]:
    """Summarizes the coding of every array; empty for a data set that is not coded."""
    splits = [data.split(name) for name in data.splits]
    infos = []
    for a, (name, stored) in enumerate(data.manifest.coding.items()):
        nbytes = sum(int(split.array_nbytes[:, a].sum()) for split in splits)
        steps = np.concatenate([split.steps(name) for split in splits])
        bands = data.schema[name].bands
        is_by_band = len(bands) == steps.shape[1]
        names = bands if is_by_band else [str(b) for b in range(steps.shape[1])]
        infos.append(
            CodedArrayInfo(
                name=name,
                quantize=stored.quantize,
                compress=stored.compress,
                codes=stored.codes,
                nbytes=nbytes,
                ratio=len(data) * data.schema[name].nbytes / max(1, nbytes),
                bands=tuple(
                    _band_loss(f"{name}.{band}", steps[:, b]) for b, band in enumerate(names)
                ),
            )
        )
    return tuple(infos)


def _band_loss(band: str, steps: Any) -> BandLoss:
    found = steps[(steps > 0) & (steps != _STEP_OF_ZEROS)]
    lowest, median, highest = (
        (float(found.min()), float(np.median(found)), float(found.max()))
        if len(found)
        else (None, None, None)
    )
    return BandLoss(
        band=band,
        num_unchanged=int(np.count_nonzero(steps == 0)),
        lowest_step=lowest,
        median_step=median,
        highest_step=highest,
        max_error=(highest or 0.0) / 2,
    )


ARRAY_HEAD = ("array", "steps per noise", "<compressed by", "<stored as", "bytes/sample", "ratio")
BAND_HEAD = ("band", "lowest step", "median", "highest", "largest error", "samples unchanged")


def array_rows(infos: tuple[CodedArrayInfo, ...], num_samples: int) -> list[tuple[str, ...]]:
    """Returns the cells of `ARRAY_HEAD` for each array."""
    return [
        (
            i.name,
            "-" if i.quantize is None else f"{i.quantize:g}",
            i.compress,
            i.codes,
            f"{i.nbytes / max(1, num_samples):,.0f}",
            f"{i.ratio:.2f}",
        )
        for i in infos
    ]


def band_rows(infos: tuple[CodedArrayInfo, ...]) -> list[tuple[str, ...]]:
    """Returns the cells of `BAND_HEAD` for each band of quantized arrays."""
    return [
        (
            b.band,
            *(
                "-" if step is None else f"{step:.4g}"
                for step in (b.lowest_step, b.median_step, b.highest_step)
            ),
            f"{b.max_error:.4g}",
            f"{b.num_unchanged:,}",
        )
        for i in infos
        for b in i.bands
    ]


def loss_sentences(infos: tuple[CodedArrayInfo, ...], manifest: Manifest) -> Iterator[str]:
    """Yields what coding did to the pixels, in sentences."""
    quantized = {i.name: i.quantize for i in infos if i.quantize is not None}
    if not quantized:
        yield "The arrays are compressed without loss."
    else:
        # The variance of an error that is uniform within a step.
        named = ", ".join(
            f"{name} {100 * (math.sqrt(1 + 1 / (12 * q * q)) - 1):.2g} %"
            for name, q in quantized.items()
        )
        yield (
            "No pixel differs from the original by more than half a step of its band; NaN and "
            f"zeros are exact. The steps add to the noise that they were measured by: {named}."
        )
    before = manifest.provenance.get("packed_from", {}).get("coding", {})
    said = {name: entry.get("quantize") for name, entry in before.items()}
    coarser = [name for name, q in said.items() if q not in (None, quantized.get(name))]
    if coarser:
        yield (
            f"The arrays {', '.join(coarser)} come from a data set that had quantized them with "
            "other steps: its errors add to these."
        )


def loss_lines(infos: tuple[CodedArrayInfo, ...], manifest: Manifest) -> Iterator[str]:
    """Yields the summary as text, line by line."""
    if not infos:
        return
    yield from table_lines(ARRAY_HEAD, array_rows(infos, manifest.num_samples))
    rows = band_rows(infos)
    if rows:
        yield ""
        yield from table_lines(BAND_HEAD, rows)
    yield from textwrap.wrap(" ".join(loss_sentences(infos, manifest)), 80)
