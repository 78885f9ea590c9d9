"""Random words as a function of (seed, epoch, stream, number), and permutations made of them.

NumPy's generators may change their streams from version to version and draw sequentially. Here
word i follows from i alone, by integer arithmetic, so an order is the same under every version of
NumPy and on every machine, and any part of it can be drawn by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
_CHUNK = 1 << 16  # words mixed at a time: 512 KiB stay in the second-level cache


def uniform_permutation(num_items: int, *, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    """The items 0, 1, ... sorted by a random key of each.

    The item's number replaces the low bits of its key: sorting values is faster and leaner than
    argsort, and equal keys (4 pairs in 4.3 M) fall in order of their number.

    Args:
        num_items: how many items.
        seed: as in `random_words`.
        epoch: as in `random_words`.
        stream: as in `random_words`.

    Returns:
        int64 (num_items,): a permutation of `range(num_items)`.
    """
    bits = max(1, (num_items - 1).bit_length())
    keys = random_words(num_items, seed=seed, epoch=epoch, stream=stream)
    keys >>= np.uint64(bits)
    keys <<= np.uint64(bits)
    # In chunks: the numbers all at once would be as large as the keys.
    for low in range(0, num_items, _CHUNK):
        high = min(low + _CHUNK, num_items)
        keys[low:high] |= np.arange(low, high, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << bits) - 1)
    return keys.view(np.int64)


def random_words(
    num_words: int, *, seed: int, epoch: int, stream: int, first: int = 0
) -> NDArray[np.uint64]:
    """Uniform 64-bit words, a counter-based function of (seed, epoch, stream, number).

    Args:
        num_words: how many.
        seed: any integer from 0; taken modulo 2**64.
        epoch: any integer from 0; taken modulo 2**64.
        stream: distinguishes purposes that draw words for the same seed and epoch.
        first: number of the first word.

    Returns:
        uint64 (num_words,).

    Raises:
        UsageError: a negative seed or epoch.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 14
    (SplitMix64): word i is mix64(start + (i + 1) * golden gamma).
    """
    if seed < 0 or epoch < 0:
        raise UsageError(f"seed and epoch must be at least 0, got {seed} and {epoch}")
    start = _mixed_start(seed, epoch, stream)
    words = np.arange(first + 1, first + num_words + 1, dtype=np.uint64)
    for low in range(0, num_words, _CHUNK):
        chunk = words[low : low + _CHUNK]
        chunk *= np.uint64(_GOLDEN)
        chunk += np.uint64(start)
        mix64(chunk)
    return words


def _mixed_start(seed: int, epoch: int, stream: int) -> int:
    # Mixed one after the other, so that (seed, epoch) and (seed + 1, epoch - 1) share nothing.
    word = np.zeros(1, dtype=np.uint64)
    for number in (seed, epoch, stream):
        word[0] = np.uint64((int(word[0]) + number % _WORD + _GOLDEN) % _WORD)
        mix64(word)
    return int(word[0])


def mix64(words: NDArray[np.uint64]) -> None:
    """Turn words (uint64, any shape) into unrelated-looking ones, in place; a bijection."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
