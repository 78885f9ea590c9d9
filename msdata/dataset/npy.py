"""The `.npy` v1.0 header, written by hand: NumPy's own pads to 64 bytes, we want a fixed length.

Source: NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays", version 1.0.
"""

from __future__ import annotations

from msdata.schema import Survey

_MAGIC = b"\x93NUMPY\x01\x00"
_ALIGNMENT = 64


def npy_header(array: Survey) -> bytes:
    """The header before the C-ordered bytes of one array.

    Args:
        array: the array's shape and dtype.

    Returns:
        Magic, version, length and the padded dict literal; a multiple of 64 bytes long.
    """
    shape = repr(tuple(array.shape))
    text = f"{{'descr': '{array.dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    unpadded = len(_MAGIC) + 2 + len(text) + 1
    padded = -(-unpadded // _ALIGNMENT) * _ALIGNMENT
    body = text + " " * (padded - unpadded) + "\n"
    return _MAGIC + len(body).to_bytes(2, "little") + body.encode("latin1")
