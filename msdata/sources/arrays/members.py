"""Decodes the content of small files: images and `.npy` arrays, from strangers.

It stands alone because it is the one place of the sources that decodes images with OpenCV.
"""

from __future__ import annotations

import io
import math
import struct

import numpy as np

from msdata.core.npy import read_npy_header
from msdata.errors import SampleError
from msdata.schema import Array

IMAGE_SUFFIXES = ("png", "jpg", "jpeg")
# An image, unpacked; more is a bomb.
_MAX_PIXELS = 1 << 28
_PNG_MAGIC, _JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
IMAGE_MAGICS = (_PNG_MAGIC, _JPEG_MAGIC)
# JPEG's markers of a frame, which hold its size.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode_image(content: bytes) -> Array:
    """The pixels of a PNG or JPEG image.

    Args:
        content: the whole file.

    Returns:
        uint8 (uint16 of 16-bit PNG), (channels, height, width): red, green, blue, alpha, or one
        gray channel. An EXIF orientation is not applied.

    Raises:
        SampleError: it is neither, truncated, or too large.
    """
    import cv2

    size = _image_size(content)
    if size is None:
        raise SampleError("it is neither a PNG nor a JPEG image, or is truncated")
    if math.prod(size) > _MAX_PIXELS:
        raise SampleError(
            f"it is an image of {size[0]} x {size[1]} pixels, more than {_MAX_PIXELS:,}"
        )
    try:
        found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise SampleError(f"the image is broken: {error}") from error
    if found is None:
        raise SampleError("the image is broken or truncated")
    pixels = np.asarray(found)
    if pixels.ndim == 2:
        return pixels[np.newaxis]
    # OpenCV has blue first.
    order = [2, 1, 0, 3][: pixels.shape[2]] if pixels.shape[2] >= 3 else [0]
    return np.ascontiguousarray(np.moveaxis(pixels[..., order], -1, 0))


def _image_size(content: bytes) -> tuple[int, int] | None:
    """Width and height, by the header; None where there is none."""
    if content[:8] == _PNG_MAGIC and len(content) >= 24:
        # libpng fills what is missing with zeros: a whole file ends with its last chunk.
        width, height = struct.unpack(">II", content[16:24])
        return (width, height) if b"IEND" in content[-16:] else None
    if content[:2] != _JPEG_MAGIC or b"\xff\xd9" not in content[-64:]:
        return None
    place = 2
    while place + 9 <= len(content):
        if content[place] != 0xFF:
            return None
        marker = content[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", content[place + 5 : place + 9])
            return width, height
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None


def decode_npy(content: bytes) -> Array:
    """The array of a `.npy` file; pickled objects are never loaded.

    Args:
        content: the whole file.

    Raises:
        SampleError: it is broken, or holds objects.
    """
    file = io.BytesIO(content)
    try:
        shape, is_fortran, dtype = read_npy_header(file)
    except ValueError as error:
        raise SampleError(f"its .npy header is broken: {error}") from error
    if dtype.kind not in "biufc":
        raise SampleError(f"it holds {dtype}, not numbers; pickled objects are not loaded")
    expected, nbytes = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if nbytes != expected:
        raise SampleError(f"an array of shape {shape} needs {expected} bytes, it has {nbytes}")
    flat = np.frombuffer(content, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")
