"""What a pickle builds in place of NumPy's dtypes and arrays.

Arrays are made here, from bytes that are present in the file, so no small file can ask for a large
array. NumPy's own `__setstate__` never meets a pickle's arguments: it trusts a dtype's flags.
"""

from __future__ import annotations

import math
import re
import threading
from typing import Any, Literal

import numpy as np

from msdata.errors import NOTHING_EXECUTED, SampleError, UnsafePickleError
from msdata.schema import Array

_DTYPE = re.compile(r"[biufcSUO][0-9]{1,9}")
_BYTE_ORDERS = ("<", ">", "|", "=")
_MAX_SIDE = 1 << 40

# dtype, shape, order ("C" or "F"), axes of a transposition or None.
Layout = tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"], tuple[int, ...] | None]


class CopyBudget(threading.local):
    """Bytes that a thread's pickle may still have made; one opcode can ask for a copy of megabytes.

    Attributes:
        left: bytes.
    """

    left = 0

    def spend(self, num_bytes: int) -> None:
        """Counts bytes that are made.

        Raises:
            SampleError: there are too many.
        """
        self.left -= num_bytes
        if self.left < 0:
            raise SampleError("broken pickle: it makes many times the bytes that it holds")


copy_budget = CopyBudget()


def said(value: object) -> str:
    """A pickle's value in a message: short, and no walk through what is nested."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    if isinstance(value, float | None) or (isinstance(value, int) and abs(value) < 1 << 64):
        return repr(value)
    if isinstance(value, tuple) and len(value) <= 4 and all(type(v) is int for v in value):
        return f"({', '.join(map(said, value))})"
    return f"<{type(value).__name__}>"


def refused(asked: str) -> UnsafePickleError:
    """The error to raise for a pickle that asks for something else than data.

    Args:
        asked: what it asks for, a sentence.
    """
    return UnsafePickleError(f"{asked}; {NOTHING_EXECUTED}")


class PickledDict(list[Any]):
    """Stands for a dict: a list of tuples of alternating keys and values, no key hashed yet."""

    __slots__ = ()

    def plain_dict(self, kinds: tuple[type, ...] = (str,)) -> dict[Any, Any]:
        """The dict.

        Args:
            kinds: types that keys may have; must be such whose hash is soon done.

        Raises:
            SampleError: a key is of another type.
        """
        made: dict[Any, Any] = {}
        for pairs in self:
            if not isinstance(pairs, tuple) or len(pairs) % 2:
                raise SampleError("broken pickle: a dict is not made of keys and values")
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                if not isinstance(key, kinds):
                    raise SampleError(f"the dict has the key {said(key)}, which is not text")
                made[key] = value
        return made


class PickledDtype:
    """Stands for a `numpy.dtype`: numbers, text, and `O` for the array that wraps the dict."""

    __slots__ = ("_spec", "dtype")

    def __init__(self, spec: object, *_flags: object) -> None:
        if not isinstance(spec, str) or not _DTYPE.fullmatch(spec):
            raise SampleError(f"dtype {said(spec)} is neither numbers nor text")
        self._spec = spec
        self.dtype = np.dtype(spec[0] if spec[0] == "O" else spec)

    def __setstate__(self, state: Any) -> None:
        _version, order, base, names, fields = state[:5]
        if (base, names, fields) != (None, None, None) or len(state) > 8:
            raise SampleError(f"dtype {self._spec!r} is structured; only numbers and text are read")
        if order not in _BYTE_ORDERS:
            raise SampleError(f"byte order {said(order)} of a dtype is unknown")
        if order != "|":
            self.dtype = self.dtype.newbyteorder(order)


class PickledArray:
    """Stands for a `numpy.ndarray`: what to make it of, once its state has arrived.

    Attributes:
        raw: its bytes; an out-of-band payload is here as the very object that was passed in.
        layout: how they make an array.
        value: the array, or an `ObjectArray`; None before the state has arrived.
    """

    __slots__ = ("layout", "raw", "value")

    def __init__(self) -> None:
        self.raw: Any = None
        self.layout: Layout | None = None
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, is_fortran, raw = state[-4:]
        self.fill(raw, dtype, shape, "F" if is_fortran else "C", None)

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any) -> None:
        """Makes the value; arguments as the pickle gives them, so all are checked."""
        if not isinstance(dtype, PickledDtype) or order not in ("C", "F"):
            raise SampleError("broken pickle: an array's state is not one that NumPy writes")
        if (
            not isinstance(shape, tuple)
            or len(shape) > 32
            or not all(type(n) is int and 0 <= n <= _MAX_SIDE for n in shape)
        ):
            raise SampleError(f"an array has the impossible shape {said(shape)}")
        if dtype.dtype.hasobject:
            if not isinstance(raw, list) or math.prod(shape) != len(raw):
                raise SampleError("broken pickle: an object array's items do not fit its shape")
            self.value = ObjectArray(raw, shape)
        else:
            self.raw, self.layout = raw, (dtype.dtype, shape, order, axes)
            self.value = make_array(raw, self.layout)
            copy_budget.spend(self.value.nbytes)


class ObjectArray:
    """An array of dtype object; valid only around the whole value, as `np.save` writes it."""

    __slots__ = ("items", "shape")

    def __init__(self, items: list[Any], shape: tuple[int, ...]) -> None:
        self.items = items
        self.shape = shape


def make_array(raw: bytes | bytearray | memoryview, layout: Layout) -> Array:
    """Array of the bytes of `raw`: a view where they are writable and aligned, else a copy.

    Args:
        raw: all of the array's bytes.
        layout: dtype, shape, order ("C" or "F") and the transposition, None for none.

    Returns:
        Writable, aligned array of the layout's dtype and (transposed) shape.

    Raises:
        SampleError: `raw` is not bytes, or not of the layout's size: no array is larger than what
            the file holds.
    """
    dtype, shape, order, axes = layout
    if not isinstance(raw, bytes | bytearray | memoryview):
        raise SampleError("broken pickle: an array's data are not bytes")
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes != len(raw):
        raise SampleError(f"an array of {num_bytes} bytes has {len(raw)} bytes of data")
    if num_bytes == 0:
        array = np.empty(shape, dtype, order)
    else:
        flat = np.frombuffer(raw, dtype)
        if not (flat.flags.aligned and flat.flags.writeable):
            flat = flat.copy()
        array = flat.reshape(shape, order=order)
    return array if axes is None else array.transpose(axes)
