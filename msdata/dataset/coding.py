"""Coded arrays: how an array's bytes stand in a shard if they are quantized or compressed.

`encode` gives the stored bytes of one array, `decode_into` and `RecordDecoder` the array again,
straight into a batch, by many threads at once. quantize.py has the meaning of codes, coding.c the
speed, blosc_chunk.py the compression.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c
from msdata.dataset import quantize as reference
from msdata.dataset.blosc_chunk import (
    chunk_fault,
    compress_array,
    decompress,
    decompressor,
    thread_room,
)
from msdata.dataset.quantize import LONG, PLAIN, SHORT, Floats
from msdata.errors import DataError, UsageError

try:
    from msdata.core import _coding
except ImportError:
    # Not built, or not for this machine: NumPy computes the same, slower.
    _coding = None  # type: ignore[assignment]
else:
    if getattr(_coding, "INTERFACE", 0) != 2:
        _coding = None  # type: ignore[assignment]

COMPRESSORS = ("none", "lz4", "zstd")
# Columns of a decoder's table: addresses and sizes of stored bytes, targets and steps; the kind.
SOURCE, NBYTES, TARGET, STEPS, KIND = range(5)
_KINDS = {SHORT: "<i2", LONG: "<i4"}
# What `RecordDecoder` makes: bytes as they are, pixels, codes.
_MAKES = {"<f4": 1, "<i2": 2, "<i4": 3}


@dataclass(frozen=True)
class ArrayCoding:
    """How one array of every sample is stored.

    Attributes:
        name: the array.
        shape: its shape.
        dtype: little-endian NumPy dtype string.
        quantize: steps per sigma of the noise; None keeps the values.
        compress: "none", "lz4" or "zstd".

    Raises:
        UsageError: an option is out of range, or the array cannot be quantized.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "<f4"
    quantize: float | None = None
    compress: str = "none"

    def __post_init__(self) -> None:
        if self.compress not in COMPRESSORS:
            raise UsageError(
                f"compress must be one of {', '.join(COMPRESSORS)}, got {self.compress!r}"
            )
        if self.quantize is None:
            return
        if not 0.01 <= self.quantize <= 10_000:
            raise UsageError(f"quantize must be from 0.01 to 10,000, got {self.quantize}")
        if self.dtype != "<f4":
            raise UsageError(
                f"cannot quantize {self.name!r}: its dtype must be <f4, got {self.dtype}; compress "
                "it without loss"
            )

    @property
    def num_planes(self) -> int:
        """Planes with a step of their own: the bands of (bands, height, width), else one."""
        is_by_band = len(self.shape) == 3 and self.shape[0] <= min(self.shape[1:])
        return self.shape[0] if is_by_band else 1

    def nbytes_of(self, kind: str) -> int:
        """Bytes of the array, or of its codes, before compression."""
        return math.prod(self.shape) * np.dtype(kind).itemsize


@dataclass(frozen=True)
class Encoded:
    """One array, ready to be stored.

    Attributes:
        data: the stored bytes.
        steps: float32 (planes,), 0 where a plane keeps its values; () if not quantized.
        kind: dtype of what was compressed: "<i2", "<i4", or the array's own.
        decoded_crc32c: checksum of what it decodes to, continued from `encode`'s `crc`.
    """

    data: Any
    steps: Floats
    kind: str
    decoded_crc32c: int


def wider(kind: str, other: str) -> str:
    """The narrowest kind that holds arrays of both kinds."""
    return kind if kind == other else "<i4"


def encode(
    array: NDArray[Any],
    coding: ArrayCoding,
    *,
    step: Floats | None = None,
    kind: str | None = None,
    crc: int = 0,
) -> Encoded:
    """Encodes one array; a function of its values, the options and the version of Blosc alone.

    Args:
        array: C-contiguous, of the coding's shape and dtype.
        coding: how to store it.
        step: float32 (planes,), the steps to use; None measures them.
        kind: the kind to make, at least as wide as the array's own; None makes that.
        crc: CRC32C of the decoded arrays before this one.

    Raises:
        UsageError: the array does not fit the coding, or the kind does not hold it.
        MissingPackageError: numcodecs is not installed.
    """
    if array.shape != coding.shape or array.dtype != np.dtype(coding.dtype):
        raise UsageError(
            f"array {coding.name!r} must have shape {coding.shape} and dtype {coding.dtype}, got "
            f"{array.shape} and {array.dtype.str}"
        )
    array = np.ascontiguousarray(array)
    steps = np.zeros(0, np.float32)
    content, decoded, found = array, array, PLAIN
    if coding.quantize is not None:
        planes = array.reshape(coding.num_planes, -1)
        steps = np.zeros(coding.num_planes, np.float32) if step is None else np.array(step, "<f4")
        measure = reference.measure if _coding is None else _coding.measure
        found = measure(planes, steps, coding.quantize if step is None else 0.0)
        content, decoded, found = _codes(planes, steps, found, coding, kind)
    own = _KINDS.get(found, coding.dtype)
    if kind not in (None, own):
        raise UsageError(f"kind {kind!r} does not hold array {coding.name!r}, which takes {own!r}")
    # Before the compression, while the pixels are in the processor's cache.
    crc = crc32c(decoded, crc)
    if coding.compress == "none":
        return Encoded(content.reshape(-1).view(np.uint8).data, steps, own, crc)
    return Encoded(compress_array(content, coding.compress), steps, own, crc)


def _codes(
    planes: Floats, steps: Floats, found: int, coding: ArrayCoding, kind: str | None
) -> tuple[NDArray[Any], Floats, int]:
    """The words to store, what they decode to, and their kind."""
    if kind == "<i4":
        found = LONG
    if found == PLAIN:
        return planes, planes, found
    is_compressed, is_short = coding.compress != "none", found == SHORT
    if _coding is not None:
        size = planes.size * (2 if is_short else 4)
        room = thread_room("codes", size) if is_compressed else np.empty(size, np.uint8)
        codes = room.view("<u2" if is_short else "<u4").reshape(planes.shape)
        decoded = thread_room("decoded", planes.nbytes).view("<f4").reshape(planes.shape)
        _coding.quantize(planes, steps, codes, decoded, is_short, is_compressed)
        return codes, decoded, found
    signed = reference.quantize(planes, steps, is_short=is_short)
    decoded = reference.dequantize(signed, steps)
    return (reference.zigzag(signed) if is_compressed else signed), decoded, found


def decode_into(
    data: Any, coding: ArrayCoding, steps: Floats, kind: str, out: NDArray[Any]
) -> None:
    """Decodes the stored bytes of one array.

    Args:
        data: the stored bytes.
        coding: how they are stored.
        steps: float32 (planes,); () if not quantized.
        kind: from `encode`.
        out: C-contiguous, of the coding's shape. Its dtype says what to make: that of the array, or
            int16 or int32 for codes, as wide as `kind` at least.

    Raises:
        DataError: the bytes are not such an array.
        UsageError: `out` does not fit.
    """
    if out.shape != coding.shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise UsageError(f"out must be C-contiguous and of shape {coding.shape}, got {out.shape}")
    source = np.frombuffer(data, np.uint8)
    steps = np.ascontiguousarray(steps, np.float32)
    decoder = RecordDecoder([coding], [out.dtype])
    number = kind_number(kind, coding)
    if number != PLAIN and len(steps) != coding.num_planes:
        raise DataError(
            f"array {coding.name!r} must have {coding.num_planes} steps, got {len(steps)}"
        )
    row = [source.ctypes.data, len(source), out.ctypes.data, steps.ctypes.data, number]
    if decoder.decode(np.array([row], np.int64), 0, 1) == 0:
        fault = decoder.fault(source, number) or "it does not decode"
        raise DataError(f"array {coding.name!r} is corrupt: {fault}")


def kind_number(kind: str, coding: ArrayCoding) -> int:
    """The number of a kind in a decoder's table.

    Raises:
        DataError: an array of this coding cannot have the kind.
    """
    if kind == coding.dtype:
        return PLAIN
    if coding.quantize is None or kind not in _KINDS.values():
        raise DataError(f"array {coding.name!r} cannot have kind {kind!r}")
    return SHORT if kind == "<i2" else LONG


class RecordDecoder:
    """Decodes arrays of records from memory to memory; used by all threads at once.

    Args:
        codings: the arrays of a record, in order.
        dtypes: what to make of each: the array's own dtype, or int16 or int32 for codes.

    Attributes:
        is_native: whether the C module decodes.

    Raises:
        UsageError: an array is not quantized, and codes are asked for.
        MissingPackageError: arrays are compressed, and numcodecs is not installed.
    """

    def __init__(self, codings: Sequence[ArrayCoding], dtypes: Sequence[Any]) -> None:
        self._codings = tuple(codings)
        self._dtypes = [np.dtype(dtype) for dtype in dtypes]
        self._specs = np.array(
            [_spec(c, d) for c, d in zip(codings, self._dtypes, strict=True)], np.int64
        )
        is_compressed = bool(self._specs[:, 4].any())
        self._decompress = decompressor() if is_compressed else 0
        self.is_native = _coding is not None and (not is_compressed or bool(self._decompress))
        sizes = [c.nbytes_of("<i4") for c in codings if c.quantize is not None]
        # Codes, a record that did not shrink, and what coding.c asks for behind them.
        self._scratch_nbytes = 2 * max(sizes, default=0) + 256

    def decode(self, table: NDArray[np.int64], first: int, stop: int) -> int:
        """Decodes rows of a table without the GIL.

        Args:
            table: int64 (rows, 5), C-contiguous; row r is array r % arrays of a record. The
                memory at its addresses must be as long as it says, and as the array is.
            first: first row.
            stop: end of the rows.

        Returns:
            The first row whose bytes are not sound, or `stop`. Nothing outside of the targets is
            written, whatever the bytes are.
        """
        if not self.is_native:
            return self._decode_by_numpy(table, first, stop)
        scratch = thread_room("codes", self._scratch_nbytes)
        return _coding.decode(table, first, stop, self._specs, scratch, self._decompress)

    def _decode_by_numpy(self, table: NDArray[np.int64], first: int, stop: int) -> int:
        for row in range(first, stop):
            a = row % len(self._codings)
            source, nbytes, target, steps, kind = table[row].tolist()
            coding, dtype = self._codings[a], self._dtypes[a]
            num_planes = coding.num_planes if coding.quantize is not None else 0
            out = _memory(target, coding.nbytes_of(dtype.str)).view(dtype)
            step = _memory(steps, 4 * num_planes).view(np.float32)
            if not self._decode_row(_memory(source, nbytes), kind, step, out, a):
                return row
        return stop

    def _decode_row(
        self, source: NDArray[np.uint8], kind: int, steps: Floats, out: NDArray[Any], a: int
    ) -> bool:
        if self.fault(source, kind, a):
            return False
        coding = self._codings[a]
        stored = np.dtype(_KINDS.get(kind, coding.dtype))
        if coding.compress != "none":
            room = np.empty(coding.nbytes_of(stored.str), np.uint8)
            if not decompress(source, room):
                return False
            source = room
        if kind == PLAIN:
            out.view(np.uint8)[:] = source
            return True
        if not reference.is_sound_step(steps).all() or (kind == SHORT and (steps == 0).any()):
            return False
        codes = source.view(stored)
        if coding.compress != "none":
            codes = reference.unzigzag(codes.view(f"<u{stored.itemsize}"))
        if out.dtype == np.float32:
            out[:] = reference.dequantize(codes.reshape(len(steps), -1), steps).reshape(-1)
        else:
            out[:] = widened(codes, out.dtype)
        return True

    def fault(self, source: NDArray[np.uint8], kind: int, a: int = 0) -> str:
        """What is wrong with an array's stored bytes, as far as lengths tell; else "".

        Args:
            source: the stored bytes.
            kind: the kind, from the table.
            a: number of the array in a record.
        """
        coding, make = self._codings[a], self._specs[a, 3]
        if kind != PLAIN and (coding.quantize is None or kind not in _KINDS or not make):
            return f"kind {kind} is not one of its kinds"
        if kind != SHORT and make == _MAKES["<i2"]:
            return "its codes take more than int16"
        expected = coding.nbytes_of(_KINDS.get(kind, coding.dtype))
        if coding.compress != "none":
            return chunk_fault(source, expected)
        return "" if len(source) == expected else f"{len(source)} bytes instead of {expected}"


def _spec(coding: ArrayCoding, dtype: np.dtype[Any]) -> list[int]:
    """A decoder's row of numbers on one array, as coding.c reads it."""
    own = np.dtype(coding.dtype)
    make = 0 if coding.quantize is None else _MAKES.get(dtype.str, -1)
    if make < 0 or (make == 0 and dtype != own):
        raise UsageError(f"cannot decode array {coding.name!r} of {own.str} to {dtype.str}")
    pixels = math.prod(coding.shape) // coding.num_planes
    return [coding.num_planes, pixels, own.itemsize, make, coding.compress != "none"]


def _memory(address: int, nbytes: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def widened(codes: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Codes as a wider kind: specials stay at the bottom of the type."""
    wide = codes.astype(dtype)
    if wide.dtype != codes.dtype:
        lowest = np.iinfo(codes.dtype).min
        is_special = codes < lowest + len(reference.SPECIALS)
        wide[is_special] += np.iinfo(wide.dtype).min - lowest
    return wide


def decode_codes(codes: NDArray[Any], steps: Floats) -> Floats:
    """Makes pixels of the codes that `Loader(decode=False)` hands out.

    Args:
        codes: int16 or int32 (n, bands, height, width), or (n, ...) with one step each; float32
            comes back as a copy.
        steps: float32 (n, planes).

    Returns:
        float32, the shape of `codes`.
    """
    flat = np.ascontiguousarray(codes).reshape(*steps.shape, -1)
    return reference.dequantize(flat, steps).reshape(codes.shape)
