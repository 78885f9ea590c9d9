"""Prepares an object's dict for a shard: conforms to the schema, fills NaN, notes coverage.

Nothing here touches a file. Whatever makes an object unusable is a `SampleError` whose message is
the reason that `rejected.csv` shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msdata.core.stretch import sky_and_noise
from msdata.errors import SampleError, UsageError
from msdata.schema import Array, Schema, Survey
from msdata.sources.source import PackedSample

# OpenCV's radius, in pixels, of the neighborhood of each filled pixel; upstream's value.
INPAINT_RADIUS = 3
# OpenCV's Telea adds a term of up to sqrt(2) to what it fills, whatever the pixels' unit: bands are
# filled with their noise at this value, where the term is a thousandth of it.
_INPAINT_NOISE = 1024.0
# OpenCV sums up to 45 weighted float32 pixels; brighter ones might overflow.
_INPAINT_PEAK = 1e30
# The noise of a sky needs no more pixels, and only these are sorted.
_NOISE_PIXELS = 1024
# Stays in the cache nearest to the processor; more than 10,000 make OpenBLAS start its threads.
_SUMMED_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How objects are prepared.

    Attributes:
        inpaint: names of the arrays whose NaN pixels are filled.
        max_nan_fraction: reject an object if more than this fraction of any band is NaN.
        fill: pixels of the arrays that an object lacks, and of its bands that are NaN throughout;
            None rejects the object.
    """

    inpaint: tuple[str, ...] = ()
    max_nan_fraction: float = 0.01
    fill: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_nan_fraction <= 1:
            raise UsageError(f"--max-nan-fraction must be 0 to 1, got {self.max_nan_fraction}")


class Prepared(NamedTuple):
    """An object after preparation.

    Attributes:
        arrays: C-contiguous little-endian arrays in the schema's order.
        num_filled: per array, pixels filled in each band; empty if none was; their sum where an
            earlier pack filled them.
        num_nan: per array, NaN pixels left in each band; empty if none is.
        missing_bands: names of bands that were filled or lack coverage, as "galex.FUV".
        scalars: the schema's numbers from the object's dict; None where it holds None.
    """

    arrays: tuple[Array, ...]
    num_filled: tuple[tuple[int, ...], ...]
    num_nan: tuple[tuple[int, ...], ...]
    missing_bands: tuple[str, ...]
    scalars: Mapping[str, float | int | None]


def prepare(sample: Mapping[str, Any], schema: Schema, preparation: Preparation) -> Prepared:
    """Prepares one object for a shard.

    Args:
        sample: the object's dict; arrays of any byte order and layout. Not changed.
        schema: the schema that it must match.
        preparation: how to treat NaN.

    Returns:
        The prepared object; its arrays may share memory with `sample`.

    Raises:
        SampleError: an array is missing and not to be filled, has another shape or dtype, holds
            infinities, a band has too many NaN pixels, or all bands are missing.
    """
    _refuse_strangers(sample, schema)
    done = [_prepare_array(sample, survey, preparation) for survey in schema.arrays]
    missing = [band for _, _, _, bands in done for band in bands]
    if preparation.fill is not None and len(missing) == sum(a.num_bands for a in schema.arrays):
        raise SampleError("it has no band of any survey")
    lacks_array = preparation.fill is not None and any(n not in sample for n in schema.names)
    return Prepared(
        arrays=tuple(array for array, *_ in done),
        num_filled=tuple(filled for _, filled, *_ in done),
        num_nan=tuple(nan for _, _, nan, _ in done),
        missing_bands=tuple(missing),
        scalars={
            name: None if lacks_array and name not in sample else _scalar(sample, name)
            for name in schema.scalars
        },
    )


def _prepare_array(
    sample: Mapping[str, Any], survey: Survey, preparation: Preparation
) -> tuple[Array, tuple[int, ...], tuple[int, ...], list[str]]:
    """One array of an object; pixels filled and pixels NaN by band, and bands that are missing."""
    fill = preparation.fill
    if fill is not None and survey.name not in sample:
        array = _filler(survey, fill)
        return array, (), count_nan(array, survey), _band_names(survey)
    array = conform(sample, survey)
    is_filled = survey.name in preparation.inpaint
    num_nan = count_nan(array, survey, is_stack=is_filled)
    if not num_nan and not isinstance(sample, PackedSample):
        return array, (), (), uncovered_bands(array, survey)
    names = _band_names(survey)
    num_filled: tuple[int, ...] = ()
    missing: set[str] = set()
    if isinstance(sample, PackedSample):
        missing = {*sample.missing_bands} & {*names}
        if sample.num_filled.get(survey.name):
            num_filled = (sample.num_filled[survey.name],)
    if num_nan:
        is_blank = np.equal(num_nan, array.size // len(num_nan))
        is_named = len(num_nan) == len(names)
        is_blank &= is_named and (fill is not None or np.isin(names, [*missing]))
        some_nan = tuple(np.where(is_blank, 0, num_nan).tolist())
        if any(some_nan) and (survey.bands or is_filled):
            _check_nan(some_nan, survey, preparation.max_nan_fraction)
        if any(some_nan) and is_filled:
            array, num_filled = inpaint(array, is_blank), some_nan
            num_nan = tuple(np.where(is_blank, num_nan, 0).tolist())
        missing |= {n for n, blank in zip(names, is_blank, strict=is_named) if blank}
        if fill is not None and not math.isnan(fill) and is_blank.any():
            array = np.array(array)
            array.reshape(len(is_blank), -1)[is_blank] = fill
            num_nan = tuple(np.where(is_blank, 0, num_nan).tolist())
    missing |= {*uncovered_bands(array, survey)}
    return array, num_filled, num_nan if any(num_nan) else (), [n for n in names if n in missing]


def _filler(survey: Survey, value: float) -> Array:
    """An array of one value.

    Raises:
        SampleError: its dtype does not hold the value.
    """
    try:
        if survey.numpy_dtype.kind in "fc" or survey.numpy_dtype.type(value) == value:
            return np.full(survey.shape, value, survey.numpy_dtype)
    except (ValueError, OverflowError):
        pass
    raise SampleError(
        f"it has no array {survey.name!r}, whose dtype {survey.dtype} does not hold {value:g}; "
        "fill it with --missing fill=0"
    )


def _band_names(survey: Survey) -> list[str]:
    """Names of an array's bands as `missing_bands` lists them."""
    return [f"{survey.name}.{band}" for band in survey.bands] or [survey.name]


def _refuse_strangers(sample: Mapping[str, Any], schema: Schema) -> None:
    """Refuses entries that an inferred schema does not have; a named schema picks its own."""
    if schema.name != "inferred" or len(sample) == len(schema.arrays) + len(schema.scalars):
        return
    known = {*schema.names, *schema.scalars}
    for name, value in sample.items():
        # Shards leave out text and the like, also in arrays without axes.
        is_array = isinstance(value, np.ndarray) and value.ndim > 0
        if name not in known and (is_array or is_number(value)):
            raise SampleError(f"it has an entry {name!r} that the schema lacks")


def is_number(value: Any) -> bool:
    """Whether an entry of an object's dict is one real number."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iuf"
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def conform(sample: Mapping[str, Any], survey: Survey) -> Array:
    """One array of an object in the schema's dtype, little-endian and C-contiguous.

    Args:
        sample: the object's dict.
        survey: the shape and dtype that the array must have.

    Returns:
        The array; shares the object's memory if nothing had to change.

    Raises:
        SampleError: it is missing, not an array, of another shape, or does not fit the dtype.
    """
    if survey.name not in sample:
        raise SampleError(f"it has no array {survey.name!r}")
    array = sample[survey.name]
    if not isinstance(array, np.ndarray):
        raise SampleError(f"{survey.name!r} is a {type(array).__name__}, not an array")
    if array.shape != survey.shape:
        raise SampleError(
            f"array {survey.name!r} has shape {array.shape} instead of {survey.shape}"
        )
    wanted = survey.numpy_dtype
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    return _cast(array, survey, wanted)


def _cast(array: Array, survey: Survey, wanted: np.dtype[Any]) -> Array:
    if array.dtype.kind not in "biufc":
        raise SampleError(f"array {survey.name!r} has dtype {array.dtype}, not numbers")
    safe = np.can_cast(array.dtype, wanted, "safe")
    rounds = survey.casts_to_dtype and array.dtype.kind in "biuf"
    if not safe and not rounds:
        raise SampleError(
            f"array {survey.name!r} has dtype {array.dtype}, which does not fit {wanted}"
        )
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=wanted)
    if not safe and bool(np.any(np.isinf(cast) & np.isfinite(array))):
        raise SampleError(f"array {survey.name!r} has values beyond the range of {wanted}")
    return cast


def count_nan(array: Array, survey: Survey, *, is_stack: bool = False) -> tuple[int, ...]:
    """Counts the NaN pixels of each band; empty if none is NaN.

    Args:
        array: the array.
        survey: its description.
        is_stack: its first axis is the band, even if bands have no names.

    Raises:
        SampleError: an array with bands, or one to be filled, holds an infinity, which no survey
            delivers.
    """
    if array.dtype.kind not in "fc":
        return ()
    if _is_finite(array):
        return ()
    if (survey.bands or is_stack) and bool(np.any(np.isinf(array))):
        raise SampleError(f"array {survey.name!r} holds infinite pixels")
    bands = array.reshape(len(array) if is_stack else survey.num_bands, -1)
    counts = tuple(int(n) for n in np.count_nonzero(np.isnan(bands), axis=1))
    return counts if any(counts) else ()


def _is_finite(array: Array) -> bool:
    """Whether all values are finite.

    A sum of squares is finite only where all values are, and takes a fifth of the time that looking
    at each does. Where it is not, large values may be why: each is looked at.
    """
    if array.dtype.char in "fd":
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(flat), _SUMMED_AT_ONCE):
                part = flat[start : start + _SUMMED_AT_ONCE]
                if not math.isfinite(np.dot(part, part)):
                    break
            else:
                return True
    return bool(np.isfinite(array).all())


def _check_nan(num_nan: tuple[int, ...], survey: Survey, max_fraction: float) -> None:
    """Refuses bands with too many NaN pixels."""
    pixels = int(np.prod(survey.shape[1:], dtype=np.int64))
    names = survey.bands or tuple(map(str, range(len(num_nan))))
    for band, count in zip(names, num_nan, strict=True):
        if count > max_fraction * pixels:
            raise SampleError(
                f"{100 * count / pixels:.2f} % of {survey.name} band {band} is NaN, more than "
                f"{100 * max_fraction:g} %"
            )


def inpaint(image_BHW: NDArray[np.float32], is_blank_B: Any = False) -> NDArray[np.float32]:
    """Fills the NaN pixels of each band from their neighborhood.

    The fill scales with the pixels' unit and moves with their zero: the unit of each band is its
    noise, and its zero is its sky.

    Args:
        image_BHW: float32 (bands, height, width), without infinities. Not changed.
        is_blank_B: bool (bands,), those to leave alone.

    Returns:
        A copy without NaN; pixels that were not NaN keep their bits.

    Raises:
        SampleError: a band is NaN throughout.

    Source: Telea 2004, "An Image Inpainting Technique Based on the Fast Marching Method".
    """
    filled = image_BHW.copy()
    for band, is_blank in zip(filled, np.broadcast_to(is_blank_B, len(filled)), strict=True):
        mask = np.isnan(band)
        if is_blank or not mask.any():
            continue
        if mask.all():
            raise SampleError("a band is NaN throughout, so it cannot be filled")
        band[mask] = _painted(band, mask)
    return filled


def _painted(band_HW: NDArray[np.float32], mask_HW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values for the masked pixels of a band, in its unit; between its smallest and its largest."""
    import cv2

    # Both pass over NaN.
    low, high = float(np.fmin.reduce(band_HW, None)), float(np.fmax.reduce(band_HW, None))
    if low == high:
        return np.full(np.count_nonzero(mask_HW), low)
    thinned = band_HW.reshape(-1)[:: max(1, band_HW.size // _NOISE_PIXELS)].astype(np.float64)
    thinned = thinned[~np.isnan(thinned)]
    sky, noise = sky_and_noise(thinned) if thinned.size else (low, 0.0)
    # The thinned pixels may all be equal, or all NaN.
    noise = noise or high - low
    scale = min(_INPAINT_NOISE / noise, _INPAINT_PEAK / max(high - sky, sky - low))
    # In a band's first rows OpenCV looks under the mask: NaN would spread, the sky does no harm.
    scaled = band_HW.astype(np.float64)
    scaled -= sky
    scaled *= scale
    scaled[mask_HW] = 0
    painted = cv2.inpaint(
        scaled.astype(np.float32), mask_HW.view(np.uint8), INPAINT_RADIUS, cv2.INPAINT_TELEA
    )
    return np.clip(sky + painted[mask_HW].astype(np.float64) / scale, low, high)


def uncovered_bands(array: Array, survey: Survey) -> list[str]:
    """Names of the bands that are zero throughout: the survey did not observe there."""
    if not survey.zero_is_no_coverage:
        return []
    flat = array.reshape(survey.num_bands, -1)
    return [
        f"{survey.name}.{band}"
        for band, row in zip(survey.bands, flat, strict=True)
        if not row[0] and not row.any()
    ]


def _scalar(sample: Mapping[str, Any], name: str) -> float | int | None:
    value = sample.get(name)
    if value is None and name in sample:
        return None
    if not is_number(value):
        raise SampleError(f"it has no number {name!r}")
    number: Any = value
    if np.asarray(number).dtype.kind == "f":
        return float(number)
    whole = int(number)
    if not -(1 << 63) <= whole < 1 << 64:
        raise SampleError(f"its number {name!r} has more than 64 bits")
    return whole
