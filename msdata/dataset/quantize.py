"""What quantization means, in NumPy: steps, codes, specials. coding.c computes the same bits.

It stands alone as the reference that tests hold the C module to, and the fallback without it.

A pixel x of a band with step s > 0 has the code sign(x) * (floor(|x| / s) + 1) and decodes to the
middle of its bin, so only +0.0 has code 0 and comes back as 0. The lowest eight codes of the
integer type stand for what is not a number on this scale (`SPECIALS`). A band of step 0 keeps its
float32 bits. All arithmetic is float32, with one rounding per operation.

Source: Pence, White & Seaman 2010 (PASP 122, 1065) for steps in units of the noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Kinds of stored arrays: as they are, int16, int32.
PLAIN, SHORT, LONG = range(3)
SPECIALS = np.array(
    # NaN, -NaN, the NaNs of all bits, -0.0, inf, -inf; the last is reserved.
    [
        0x7FC00000,
        0xFFC00000,
        0x7FFFFFFF,
        0xFFFFFFFF,
        0x80000000,
        0x7F800000,
        0xFF800000,
        0x7FC00000,
    ],
    np.uint32,
)
# From twice this on, float32's rounding could change the code of a decoded pixel.
MAX_CODE = 1 << 21
MAX_SHORT_CODE = 32760
_SIGMA_PIXELS, _MIN_SIGMA_PIXELS, _MAX_LAG = 2048, 32, 24
# So many differences per step in sigma: noise has one below a step, but for 1 in 100,000 planes.
_COUNTS_PER_STEP = np.float32(20)
_SIGMA_PER_MAD = np.float32(1.4826)
_SIGMA_PER_LAG = np.float32(1.0483564)  # 1.4826 / sqrt(2)


def noise_step(plane: Floats, quantize: np.float32) -> np.float32:
    """Measures the noise of a plane from about two thousand of its pixels.

    It is the smaller of two: from the median absolute deviation of pixels, and from that of
    differences between pixels 24 apart, or half a side, which a large galaxy widens less. Noise of
    real images is correlated over several pixels, so that a shorter lag would find less of it.
    Of mock planes it is 1 % below the same of all pixels, with a scatter of 2 %.

    Args:
        plane: float32 (pixels,).
        quantize: steps per sigma.

    Returns:
        sigma / quantize; 0 if too few pixels are finite and not zero, or if they are counts, whose
        differences are all larger than that.
    """
    places = np.arange(0, len(plane), len(plane) // _SIGMA_PIXELS | 1)
    places = places[_is_pixel(plane[places])][: 2 * _SIGMA_PIXELS]
    if len(places) < _MIN_SIGMA_PIXELS:
        return np.float32(0)
    pixels = plane[places]
    sigma = _median_magnitude(pixels - _lower_median(pixels)) * _SIGMA_PER_MAD
    lag = min(math.isqrt(len(plane)) // 2, _MAX_LAG)
    pairs = places[places + lag < len(plane)]
    pairs = pairs[_is_pixel(plane[pairs + lag])]
    lags = np.abs(plane[pairs] - plane[pairs + lag])
    if len(pairs) >= _MIN_SIGMA_PIXELS:
        sigma = min(sigma, _median_magnitude(lags) * _SIGMA_PER_LAG)
    step = sigma / quantize
    is_counts = len(pairs) >= _COUNTS_PER_STEP * quantize and not ((lags > 0) & (lags < step)).any()
    return np.float32(0) if is_counts else step


def _is_pixel(values: Floats) -> NDArray[np.bool_]:
    return np.isfinite(values) & (values != 0)  # type: ignore[no-any-return]


def _lower_median(values: Floats) -> np.float32:
    return np.partition(values, (len(values) - 1) // 2)[(len(values) - 1) // 2]  # type: ignore[no-any-return]


def _median_magnitude(values: Floats) -> np.float32:
    """Median of magnitudes by their upper 16 bits: 0.8 % are enough, and C is four times faster."""
    halves = (values.view(np.int32) & 0x7FFFFFFF) >> 16
    middle = (len(values) - 1) // 2
    return (np.partition(halves, middle)[middle : middle + 1] << 16).view(np.float32)[0]  # type: ignore[no-any-return]


def is_sound_step(step: Any) -> Any:
    """Whether steps are 0, or so far from the ends of float32 that nothing overflows."""
    return (step == 0) | ((step >= np.float32(2.0**-100)) & (step <= np.float32(2.0**100)))


def measure(planes: Floats, steps: Floats, quantize: float) -> int:
    """Measures or checks the steps of an array's planes.

    Args:
        planes: float32 (planes, pixels).
        steps: float32 (planes,), filled with sigma / quantize; with `quantize` 0 the steps to use.
            A step that its plane cannot have becomes 0, that of a plane of zeros and NaN 1.
        quantize: steps per sigma.

    Returns:
        The narrowest kind that holds the array: SHORT; LONG if codes are too large or a step is 0;
        PLAIN if no plane has codes, whose steps are all 0.
    """
    if quantize > 0:
        with np.errstate(over="ignore", invalid="ignore"):
            steps[:] = [noise_step(plane, np.float32(quantize)) for plane in planes]
    found = [_settle(plane, steps[p : p + 1]) for p, plane in enumerate(planes)]
    if all(kind == SHORT for kind, _ in found):
        return SHORT
    if any(kind != PLAIN and not is_blank for kind, is_blank in found):
        return LONG
    steps[:] = 0
    return PLAIN


def _settle(plane: Floats, step: Floats) -> tuple[int, bool]:
    """Checks one plane's step, in place; returns the plane's kind, and whether it is blank."""
    magnitude = plane.view(np.uint32) & 0x7FFFFFFF
    finite = magnitude < 0x7F800000
    is_known = np.isin(plane[~finite].view(np.uint32), SPECIALS).all()
    most = np.max(magnitude, where=finite, initial=0).astype(np.uint32).view(np.float32)
    is_blank = bool(most == 0 and is_known)
    if is_blank and not step[0] > 0:
        step[0] = 1
    if is_known and is_sound_step(step[0]) and step[0] != 0:
        with np.errstate(over="ignore"):
            ratio = most / step[0]
        if ratio < MAX_CODE - 1:
            return (SHORT if ratio < MAX_SHORT_CODE - 1 else LONG), is_blank
    step[0] = 0
    return PLAIN, is_blank


def quantize(planes: Floats, steps: Floats, *, is_short: bool) -> NDArray[Any]:
    """Converts pixels to codes.

    Args:
        planes: float32 (planes, pixels).
        steps: float32 (planes,), from `measure`.
        is_short: whether to make int16; else int32.

    Returns:
        int16 or int32 (planes, pixels).
    """
    kind = np.int16 if is_short else np.int32
    codes = np.empty(planes.shape, kind)
    for plane, step, out in zip(planes, steps, codes, strict=True):
        bits = plane.view(np.uint32)
        if step == 0:
            out[:] = bits.view(np.int32).astype(kind)
            continue
        special = np.isin(bits, SPECIALS)
        pixels = np.where(special, np.float32(0), plane)
        # Truncated: a magnitude's floor.
        magnitude = np.abs(pixels / step).astype(np.int32) + 1
        out[:] = np.where(pixels == 0, 0, np.where(pixels < 0, -magnitude, magnitude))
        number = np.argmax(bits[special][:, None] == SPECIALS, axis=1)
        out[special] = np.iinfo(kind).min + number
    return codes


def dequantize(codes: NDArray[Any], steps: Floats) -> Floats:
    """Converts codes to pixels; the inverse of `quantize`.

    Args:
        codes: int16 or int32 (..., planes, pixels); float32 is what `PLAIN` arrays have for codes.
        steps: float32 (..., planes).

    Returns:
        float32, the shape of `codes`.
    """
    if codes.dtype == np.float32:
        return codes.copy()
    lowest = np.iinfo(codes.dtype).min
    wide = codes.astype(np.int32)
    step = steps[..., None]
    pixels = (wide * np.int32(2) - np.sign(wide)).astype(np.float32) * (np.float32(0.5) * step)
    special = wide < lowest + len(SPECIALS)
    pixels[special] = SPECIALS.view(np.float32)[wide[special] - lowest]
    if (steps == 0).any():
        pixels = np.where(step == 0, wide.view(np.float32), pixels)
    return pixels


def zigzag(codes: NDArray[Any]) -> NDArray[Any]:
    """Interleaves codes of both signs, so that small ones have small words: 0, -1, 1, -2, ..."""
    return ((codes << 1) ^ (codes >> (8 * codes.itemsize - 1))).view(f"u{codes.itemsize}")


def unzigzag(words: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `zigzag`."""
    return ((words >> 1) ^ -(words & 1)).view(f"i{words.itemsize}")
