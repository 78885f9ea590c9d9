"""Computes CRC32C (Castagnoli), the checksum of samples: 30 GB/s in hardware.

Source: RFC 3720, section 12.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any

import numpy as np

try:
    from msdata.core._stream_fill import copy_crc32c as _copy_crc32c
except ImportError:
    # Not built, or this CPU lacks the instructions.
    _copy_crc32c = None  # type: ignore[assignment]


def _compiled_crc32c() -> Callable[[Any, int], int]:
    """Loads the function from the compiled part of the package `crc32c`.

    Importing the package looks up its version in the metadata of all installed packages: 40 ms per
    process, twice as long as importing NumPy.
    """
    package = find_spec("crc32c")
    spec = package and PathFinder.find_spec("_crc32c", package.submodule_search_locations)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.crc32c  # type: ignore[no-any-return]
    import crc32c

    return crc32c.crc32c


_crc32c = _compiled_crc32c()


def crc32c(buffer: Any, start: int = 0) -> int:
    """Computes the CRC32C of a contiguous buffer, continuing from `start`.

    Args:
        buffer: bytes, memoryview or C-contiguous array.
        start: CRC32C of the preceding bytes, 0 at the start.

    Returns:
        The checksum, 0 <= crc < 2**32.
    """
    return _crc32c(buffer, start)


def crc32c_of_parts(parts: Iterable[Any]) -> int:
    """Computes the CRC32C of several buffers as if they were one."""
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return crc


def copy_crc32c(record: Any, parts: Sequence[Any]) -> int | None:
    """Copies a record into pieces and computes the CRC32C of the copy.

    Args:
        record: a C-contiguous buffer.
        parts: writable uint8 arrays, filled one after the other.

    Returns:
        CRC32C of the pieces; None if the record has another size.
    """
    found = np.frombuffer(record, np.uint8)
    if len(found) != sum(len(part) for part in parts):
        return None
    if _copy_crc32c is not None:
        return _copy_crc32c(found, parts)
    start = 0
    for part in parts:
        part[:] = found[start : start + len(part)]
        start += len(part)
    return crc32c_of_parts(parts)
