"""CRC32C (Castagnoli), the checksum of samples: 30 GB/s in hardware, the one storage systems use.

Source: RFC 3720, section 12.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import crc32c as _crc32c


def crc32c(buffer: Any, start: int = 0) -> int:
    """CRC32C of a contiguous buffer, going on from `start`.

    Args:
        buffer: bytes, memoryview or C-contiguous array.
        start: CRC32C of the bytes before, 0 at the beginning.

    Returns:
        The checksum, 0 <= crc < 2**32.
    """
    return int(_crc32c.crc32c(buffer, start))


def crc32c_of_parts(parts: Iterable[Any]) -> int:
    """CRC32C of several buffers as if they were one."""
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return crc
