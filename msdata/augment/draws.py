"""The random draws of augmentation, a function of (seed, epoch, sample id) alone.

If samples are drawn with replacement, the number of earlier draws in the epoch is a part of the
key, so that each draw is turned differently. A sample is turned alike on any number of ranks, in
any batch, at any place in it, so resuming needs no saved random state.

Legend: N samples, K blocks of four words, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.config import AugmentConfig
from msdata.errors import UsageError

Words = NDArray[np.uint64]

# Draws come in blocks of four 32-bit words. The use of a word never changes with the options:
# turning on noise leaves all angles unchanged.
_ORIENTATION_BLOCK = 0
_EXTRAS_BLOCK = 1
_FIRST_DROPOUT_BLOCK = 2
_WORDS_PER_BLOCK = 4

# The place between two pixels, in pixels from one of them, at which linear interpolation takes as
# much noise and adds as much width as on average over all places: (1 - f)^2 + f^2 = 2/3.
MEAN_PHASE = (1 - math.sqrt(1 / 3)) / 2

_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
# The low bits number a sample's blocks, the high bits its repeats.
_REPEAT_SHIFT = np.uint64(16)
_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The draws of each sample in a batch.

    An image is mirrored left to right first, then turned by `num_turns` quarter turns as by
    `np.rot90` (counter-clockwise where rows run downwards), then by `angle_rad` further.

    Attributes:
        is_mirrored: bool (N,).
        num_turns: int64 (N,), 0 to 3.
        angle_rad: float64 (N,), [0, pi/2).
        phase: float64 (N,), shift along rows and columns, in pixels, of images on a survey's own
            grid that are not turned, so that they are as smooth as those that are; see `no_draws`.
        noise: float64 (N,), standard deviation of the added noise over the sky noise.
        noise_place: float64 (N,), [0, 1): where in the noise bank the sample's noise starts.
        blur_arcsec: float64 (N,), standard deviation of the blur.
        is_dropped: bool (N, C), bands set to 0; C = 0 without dropout.
    """

    is_mirrored: NDArray[np.bool_]
    num_turns: NDArray[np.int64]
    angle_rad: NDArray[np.float64]
    phase: NDArray[np.float64]
    noise: NDArray[np.float64]
    noise_place: NDArray[np.float64]
    blur_arcsec: NDArray[np.float64]
    is_dropped: NDArray[np.bool_]

    @property
    def is_interpolated(self) -> NDArray[np.bool_]:
        """Bool (N,), whether pixels lie between those of any survey's grid."""
        is_between: NDArray[np.bool_] = (self.angle_rad != 0) | (self.phase != 0)
        return is_between

    def __len__(self) -> int:
        return len(self.is_mirrored)


def draw(
    seed: int,
    epoch: int,
    sample_ids: Sequence[str] | NDArray[Any],
    config: AugmentConfig,
    *,
    num_channels: int = 0,
    repeats: NDArray[np.int64] | None = None,
) -> Draws:
    """Draw for some samples in an epoch.

    Args:
        seed: any integer from 0; taken modulo 2**64.
        epoch: any integer from 0; taken modulo 2**32.
        sample_ids: (N,) ids, text or integers.
        config: selects the draws.
        num_channels: bands of all surveys, for dropout.
        repeats: int64 (N,), how often each sample came before in this epoch, taken modulo 2**16;
            None if each comes once.

    Raises:
        UsageError: seed or epoch is negative.
    """
    if seed < 0 or epoch < 0:
        raise UsageError(f"seed and epoch must be at least 0, got {seed} and {epoch}")
    num_dropout_blocks = -(-num_channels // _WORDS_PER_BLOCK) if config.band_dropout else 0
    num_blocks = _FIRST_DROPOUT_BLOCK + num_dropout_blocks
    hashes = id_hashes(sample_ids)
    words_NK4 = _philox_words(hashes, seed, epoch, num_blocks, repeats)
    uniform_NK4: NDArray[np.float64] = words_NK4.astype(np.float64) * 2.0**-32
    extras = uniform_NK4[:, _EXTRAS_BLOCK]
    dropout = uniform_NK4[:, _FIRST_DROPOUT_BLOCK:].reshape(
        len(words_NK4), num_dropout_blocks * _WORDS_PER_BLOCK
    )
    words_N4 = words_NK4[:, _ORIENTATION_BLOCK]
    if config.turned_by == "batch":
        words_N4 = np.broadcast_to(words_N4[:1], words_N4.shape)
    is_mirrored, num_turns, angle_rad = _orientations(words_N4, config)
    return Draws(
        is_mirrored=is_mirrored,
        num_turns=num_turns,
        angle_rad=angle_rad,
        phase=np.zeros(len(words_NK4)),
        noise=extras[:, 0] * config.noise,
        noise_place=extras[:, 1],
        blur_arcsec=extras[:, 2] * config.psf_blur_arcsec,
        is_dropped=_dropped(dropout[:, :num_channels], config.band_dropout),
    )


def no_draws(num_samples: int, config: AugmentConfig | None = None) -> Draws:
    """The draws of validation: none.

    A turned image is interpolated between pixels, which takes a third of the noise and widens
    stars a little. A network trained on those would meet other images in validation. So if
    training draws any angle, images that are not turned are interpolated as much: at one place
    between pixels, `MEAN_PHASE`, 0.2 pixels away.

    Args:
        num_samples: N.
        config: augmentation of the training; None leaves images unchanged.
    """
    phase = MEAN_PHASE if config is not None and config.rotation == "any" else 0.0
    zeros = np.zeros(num_samples)
    return Draws(
        is_mirrored=np.zeros(num_samples, bool),
        num_turns=np.zeros(num_samples, np.int64),
        angle_rad=zeros,
        phase=np.full(num_samples, phase),
        noise=zeros,
        noise_place=zeros,
        blur_arcsec=zeros,
        is_dropped=np.zeros((num_samples, 0), bool),
    )


def _orientations(
    words_N4: Words, config: AugmentConfig
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """Mirrored, quarter turns, angle beyond them."""
    is_mirrored = (words_N4[:, 0] & np.uint64(1)).astype(bool) & config.flips
    num_turns = (words_N4[:, 1] >> np.uint64(30)).astype(np.int64)
    # Half a step more, so that no angle is 0: all images of a batch are turned obliquely, or none.
    steps: NDArray[np.float64] = words_N4[:, 2].astype(np.float64) + 0.5
    angle_rad = steps * (math.pi / 2 * 2.0**-32)
    if config.rotation != "any":
        angle_rad = np.zeros(len(words_N4))
    if config.rotation == "none":
        # A mirrored image turned half is one with its rows flipped.
        num_turns = (num_turns & 2) * int(config.flips)
    return is_mirrored, num_turns, angle_rad


def _dropped(uniform_NC: NDArray[np.float64], probability: float) -> NDArray[np.bool_]:
    is_dropped = uniform_NC < probability
    # A sample without any light teaches nothing.
    is_dropped &= ~is_dropped.all(axis=1, keepdims=True)
    return is_dropped


def id_hashes(sample_ids: Sequence[str] | NDArray[Any]) -> Words:
    """64-bit hashes of ids; one id has one hash in an array of any width.

    Args:
        sample_ids: (N,) text or integers; 7 and "7" are the same id.

    Returns:
        uint64 (N,).

    Source: Fowler, Noll and Vo, FNV-1a (RFC 9923), over code points instead of bytes.
    """
    texts = np.ascontiguousarray(sample_ids, dtype=np.str_)
    hashes = np.full(texts.shape, _FNV_OFFSET, np.uint64)
    width = texts.dtype.itemsize // 4
    for code_N in texts.view(np.uint32).reshape(len(texts), width).T if len(texts) else ():
        mixed = (hashes ^ code_N) * np.uint64(_FNV_PRIME)
        # NumPy pads short texts with zeros, which must not count.
        hashes = np.where(code_N != 0, mixed, hashes)
    return hashes


def _philox_words(
    hashes: Words, seed: int, epoch: int, num_blocks: int, repeats: NDArray[np.int64] | None
) -> Words:
    """Random 32-bit words (N, K, 4): key = seed, counter = (id's hash, epoch, repeat and block)."""
    counters = np.empty((4, len(hashes), num_blocks), np.uint64)
    counters[0] = (hashes & _LOW_32)[:, None]
    counters[1] = (hashes >> _SHIFT_32)[:, None]
    counters[2] = epoch % 2**32
    counters[3] = np.arange(num_blocks, dtype=np.uint64)
    if repeats is not None:
        low = np.asarray(repeats).astype(np.uint64) % np.uint64(1 << 16)
        counters[3] += low[:, None] << _REPEAT_SHIFT
    return np.moveaxis(philox4x32(counters, seed % 2**64), 0, -1)


def philox4x32(counters: Words, key: int) -> Words:
    """The Philox-4x32-10 generator.

    Args:
        counters: uint64 (4, ...), each below 2**32.
        key: below 2**64.

    Returns:
        uint64 (4, ...), each below 2**32.

    Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3",
    section 3.3 and table 2.
    """
    c0, c1, c2, c3 = counters
    key_0, key_1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        product_0 = c0 * np.uint64(0xD2511F53)
        product_1 = c2 * np.uint64(0xCD9E8D57)
        c0 = (product_1 >> _SHIFT_32) ^ c1 ^ np.uint64(key_0)
        c2 = (product_0 >> _SHIFT_32) ^ c3 ^ np.uint64(key_1)
        c1, c3 = product_1 & _LOW_32, product_0 & _LOW_32
        key_0 = (key_0 + 0x9E3779B9) % 2**32
        key_1 = (key_1 + 0xBB67AE85) % 2**32
    return np.stack((c0, c1, c2, c3))
