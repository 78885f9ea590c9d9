"""One object's file: a pickled dict of arrays, bare or inside an object-array `.npy`.

The content decides, not the suffix: upstream's `.npy` files are pickles behind an `.npy` header.
The file is read by one system call into one buffer, whose start is shifted so that the largest
array stands aligned: NumPy's loops and OpenCV copy arrays that are not.
"""

from __future__ import annotations

import ast
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from msdata.errors import SampleError, StorageError
from msdata.schema import Sample
from msdata.sources.opcodes import cut_payloads
from msdata.sources.unpickle import ObjectArray, PickledArray, load_commands, plain

# An object of upstream's has 0.6 MB; a thousand times that is a mistake, not a cutout.
MAX_OBJECT_NBYTES = 1 << 30
_NPY_MAGIC = b"\x93NUMPY"
# Object-array headers have 118 bytes; the cap bounds what the literal parser is given.
_MAX_HEADER_NBYTES = 4096
_CACHE_LINE_NBYTES = 64


class ObjectReader:
    """Reads object files; keeps nothing but where the largest array began in the last one.

    Objects of one data set have their pixels at the same offset, so that offset tells how to place
    the next file. A wrong guess costs one copy, so threads share it without a lock.
    """

    def __init__(self) -> None:
        self._payload_offset = 0

    def read(self, path: str | Path) -> Sample:
        """Reads one object.

        Args:
            path: the file.

        Returns:
            The object's dict: name -> array, number or text, as stored (dtype, byte order,
            layout); arrays are aligned and writable, the large ones share one buffer.

        Raises:
            SampleError: the file is no pickled dict of arrays, is broken or unsafe; the message
                is the reason.
            StorageError: the file system refused.
        """
        view = _read_file(path, self._payload_offset)
        commands, spans = cut_payloads(view, _pickle_start(view))
        if spans:
            largest = max(spans, key=lambda span: span.stop - span.start)
            self._payload_offset = largest.start
        return _as_sample(load_commands(commands, [view[span] for span in spans]))


def read_object(path: Path) -> dict[str, Any]:
    """Reads one object file; see `ObjectReader.read`, which is faster over many files."""
    return ObjectReader().read(path)


def _read_file(path: str | Path, aligned_offset: int) -> memoryview:
    """The file's bytes in a fresh buffer in which `aligned_offset` starts a cache line."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if not 0 < size <= MAX_OBJECT_NBYTES:
                raise SampleError("the file is empty" if size == 0 else f"it has {size} bytes")
            buffer = np.empty(size + _CACHE_LINE_NBYTES, np.uint8)
            shift = -(buffer.ctypes.data + aligned_offset) % _CACHE_LINE_NBYTES
            view = memoryview(buffer)[shift : shift + size]
            num_read = 0
            while num_read < size:
                got = os.preadv(descriptor, [view[num_read:]], num_read)
                if got == 0:
                    raise SampleError(f"truncated while it was read: {num_read} of {size} bytes")
                num_read += got
            return view
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _pickle_start(view: memoryview) -> int:
    """Where the pickle begins: 0, or behind the header of an object-array `.npy`."""
    if view[:6] != _NPY_MAGIC:
        return 0
    if len(view) < 12:
        raise SampleError("truncated .npy header")
    count_nbytes = 2 if view[6] == 1 else 4
    body = 8 + count_nbytes
    end = body + int.from_bytes(view[8:body], "little")
    if end - body > _MAX_HEADER_NBYTES:
        raise SampleError(f"an .npy header of {end - body} bytes; a pickled dict's has 118")
    if end > len(view):
        raise SampleError("truncated .npy header")
    _check_header(bytes(view[body:end]))
    return end


# All files of a data set have the same header, so it is parsed once.
@lru_cache(maxsize=64)
def _check_header(header: bytes) -> None:
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
        descr, shape = fields["descr"], fields["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise SampleError("broken .npy header") from error
    if descr != "|O":
        raise SampleError(f"a plain .npy array (dtype {str(descr)[:40]}), not a pickled dict")
    if shape not in ((), (1,)):
        raise SampleError(f"an object array of shape {str(shape)[:40]}, not one dict")


def _as_sample(loaded: Any) -> Sample:
    """The dict inside what was unpickled, with its arrays taken out of their stand-ins."""
    if type(loaded) is PickledArray:
        loaded = loaded.value
        if isinstance(loaded, ObjectArray):
            if len(loaded.items) != 1:
                raise SampleError(f"an object array of {len(loaded.items)} items, not one dict")
            loaded = loaded.items[0]
    if type(loaded) is not dict:
        raise SampleError(f"the pickle holds {_kind(loaded)}, not a dict of arrays")
    if not loaded:
        raise SampleError("the dict is empty")
    for key in loaded:
        if type(key) is not str:
            raise SampleError(f"the dict has the key {str(key)[:40]!r}, which is not text")
    return {key: plain(value, key) for key, value in loaded.items()}


def _kind(loaded: object) -> str:
    if isinstance(loaded, np.ndarray | PickledArray):
        return "an array"
    return f"a value of type {type(loaded).__name__}"
