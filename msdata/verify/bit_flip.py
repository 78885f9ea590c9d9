"""Finds the bit that flipped, from a wrong CRC32C and the right one.

A CRC is linear: the two differ by the flipped bit's own polynomial, pushed through the register by
the bytes behind it. Pulled back byte by byte, a single bit shows itself; in half a megabyte any
other damage looks like one by chance once in a thousand times.

Source: Peterson and Brown 1961, "Cyclic Codes for Error Detection".
"""

from __future__ import annotations

from msdata.core.checksum import crc32c


def _step_tables() -> tuple[list[int], list[int]]:
    """Per byte value: the register after it, and the byte whose register has that top byte."""
    # Linear part alone: the constants in front and behind cancel in the difference of two CRCs.
    table = [crc32c(bytes((byte,))) ^ crc32c(b"\0") for byte in range(256)]
    by_top = [0] * 256
    for byte, register in enumerate(table):
        by_top[register >> 24] = byte
    return table, by_top


def locate_bit_flip(found: int, said: int, nbytes: int) -> int | None:
    """Where a single flipped bit explains a wrong checksum.

    Args:
        found: CRC32C of the bytes as they are.
        said: CRC32C of the bytes as they were.
        nbytes: how many bytes there are.

    Returns:
        Number of the byte that holds the flipped bit; None where no single bit explains it.
    """
    table, by_top = _step_tables()
    single = {table[1 << bit] for bit in range(8)}
    register = found ^ said
    for behind in range(nbytes):
        if register in single:
            return nbytes - 1 - behind
        byte = by_top[register >> 24]
        register = ((register ^ table[byte]) << 8 & 0xFFFFFFFF) | byte
    return None
