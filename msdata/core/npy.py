"""Reads the header of an array in `.npy` format, from strangers.

It stands alone because the sources and `msdata index` both read such arrays, each in its own place:
a file, a member of a tar or of a zip file, bytes in memory.
"""

from __future__ import annotations

import threading
import tokenize
import warnings
from typing import IO, Any

import numpy as np

# CPython 3.11's parser raises SystemError where several threads parse Python's literals at once.
PARSING = threading.Lock()
_BROKEN = (TypeError, SyntaxError, EOFError, RecursionError, MemoryError, tokenize.TokenError)


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Reads a header, and leaves the file at the first byte of the array.

    Args:
        file: at the first byte of the `.npy` content.

    Returns:
        Shape, whether the first axis varies fastest, and dtype.

    Raises:
        ValueError: it is not a header of a whole array.
    """
    try:
        with PARSING, warnings.catch_warnings():
            # Python 2's headers are read more slowly, which numpy warns of.
            warnings.simplefilter("ignore", UserWarning)
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, is_fortran, dtype = read(file)
    except _BROKEN as error:
        # All that the parser of its Python expression may raise.
        raise ValueError(f"cannot parse its header: {error}") from error
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape {shape} is negative")
    return shape, is_fortran, dtype
