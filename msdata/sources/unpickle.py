"""Reads pickled dicts of arrays without ever executing what a pickle asks for.

The C unpickler runs, but every global it asks for is a stand-in from one short table: a pickle can
name `numpy.dtype` and gets a value object that knows numbers and text. Arrays are made here, from
bytes that are present in the file, so no small file can ask for a large array. NumPy's own
`__setstate__` is never reached with a pickle's arguments: it trusts dtype flags.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

import numpy as np

from msdata.errors import SampleError, UnsafePickleError
from msdata.schema import Array
from msdata.sources.opcodes import cut_payloads

# What the unpickler raises for a stream that is broken, whether by accident or with intent.
_BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
_DTYPE = re.compile(r"[biufcSUO][0-9]{1,9}")
_BYTE_ORDERS = ("<", ">", "|", "=")


class _Global:
    """What a pickle gets for a global: callable, without attributes that BUILD could set."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name = name
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise UnsafePickleError(
            f"it asks to change {self._name}; it was refused and nothing was executed"
        )


class PickledDtype:
    """Stands for a `numpy.dtype`: numbers, text, and `O` for the array that wraps the dict."""

    __slots__ = ("_spec", "dtype")

    def __init__(self, spec: object, *_flags: object) -> None:
        if not isinstance(spec, str) or not _DTYPE.fullmatch(spec):
            raise SampleError(f"dtype {str(spec)[:40]!r} is neither numbers nor text")
        self._spec = spec
        self.dtype = np.dtype(spec[0] if spec[0] == "O" else spec)

    def __setstate__(self, state: Any) -> None:
        _version, order, base, names, fields = state[:5]
        if (base, names, fields) != (None, None, None) or len(state) > 8:
            raise SampleError(f"dtype {self._spec!r} is structured; only numbers and text are read")
        if order not in _BYTE_ORDERS:
            raise SampleError(f"byte order {str(order)[:40]!r} of a dtype is unknown")
        if order != "|":
            self.dtype = self.dtype.newbyteorder(order)


class PickledArray:
    """Stands for a `numpy.ndarray` until its state arrives."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, is_fortran, raw = state[-4:]
        self.value = _array(raw, dtype, shape, "F" if is_fortran else "C")


class ObjectArray:
    """An array of dtype object: its items and shape; valid only around the whole dict."""

    __slots__ = ("items", "shape")

    def __init__(self, items: list[Any], shape: tuple[int, ...]) -> None:
        self.items = items
        self.shape = shape


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> Array | ObjectArray:
    """Array over `raw`: a view where it is large and aligned, else a copy. Never grows it."""
    if not isinstance(dtype, PickledDtype) or not isinstance(shape, tuple) or order not in "CF":
        raise SampleError("broken pickle: an array's state is not one that NumPy writes")
    if len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise SampleError(f"an array has the impossible shape {str(shape)[:60]}")
    if dtype.dtype.hasobject:
        if not isinstance(raw, list) or math.prod(shape) != len(raw):
            raise SampleError("broken pickle: an object array's items do not fit its shape")
        return ObjectArray(raw, shape)
    if not isinstance(raw, bytes | bytearray | memoryview):
        raise SampleError("broken pickle: an array's data are not bytes")
    num_bytes = math.prod(shape) * dtype.dtype.itemsize
    if num_bytes != len(raw):
        raise SampleError(f"an array of {num_bytes} bytes has {len(raw)} bytes of data")
    if num_bytes == 0:
        return np.empty(shape, dtype.dtype, order)
    flat = np.frombuffer(raw, dtype.dtype)
    if not (flat.flags.aligned and flat.flags.writeable):
        flat = flat.copy()
    return flat.reshape(shape, order=order)


def _reconstruct(kind: object, shape: object, typecode: object) -> PickledArray:
    if kind is not _NDARRAY or shape != (0,) or typecode not in (b"b", "b"):
        raise SampleError("broken pickle: _reconstruct is not called as NumPy does")
    return PickledArray()


def _frombuffer(
    raw: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None
) -> PickledArray:
    made = PickledArray()
    made.value = _array(raw, dtype, shape, "C" if axis_order is not None else order)
    if axis_order is not None:
        made.value = made.value.transpose(axis_order)
    return made


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    if isinstance(raw, str):
        raw = raw.encode("latin-1")
    value = _array(raw, dtype, (), "C")
    if isinstance(value, ObjectArray):
        raise SampleError("broken pickle: a scalar of dtype object")
    return value[()]


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(
            f"it asks for _codecs.encode with {str(encoding)[:40]!r}; "
            "it was refused and nothing was executed"
        )
    return text.encode("latin-1")


def _bytes(*args: Any) -> bytes:
    if not args:
        return b""
    if len(args) == 1 and isinstance(args[0], bytes | bytearray | memoryview):
        return bytes(args[0])
    if len(args) == 2 and isinstance(args[0], str):
        return _encode(*args)
    # A bare number would be a length: bytearray(10**12) in a file of 40 bytes.
    raise UnsafePickleError(
        "it asks for bytes of a length, not of a value; it was refused and nothing was executed"
    )


def _ndarray(*_args: object) -> NoReturn:
    raise UnsafePickleError(
        "it asks for numpy.ndarray(...) itself; it was refused and nothing was executed"
    )


_NDARRAY = _Global("numpy.ndarray", _ndarray)
_GLOBALS: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _NDARRAY,
    # A slice of a memory map keeps its class; its state is that of any array.
    ("numpy", "memmap"): _NDARRAY,
    ("numpy.core.memmap", "memmap"): _NDARRAY,
    ("numpy", "dtype"): _Global("numpy.dtype", PickledDtype),
    ("_codecs", "encode"): _Global("_codecs.encode", _encode),
    ("collections", "OrderedDict"): _Global("collections.OrderedDict", dict),
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Global("_reconstruct", _reconstruct)
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Global("scalar", _scalar)
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _Global("_frombuffer", _frombuffer)
# Protocols 0 to 2 use Python 2's name of the module.
for _builtins in ("builtins", "__builtin__"):
    _GLOBALS[_builtins, "bytes"] = _Global("bytes", _bytes)
    _GLOBALS[_builtins, "bytearray"] = _Global("bytearray", lambda *a: bytearray(_bytes(*a)))


class _Unpickler(pickle.Unpickler):
    """The C unpickler with the table above for all its globals."""

    def find_class(self, module: str, name: str) -> Any:
        found = _GLOBALS.get((module, name))
        if found is None:
            asked = f"{module}.{name}"[:120]
            raise UnsafePickleError(
                f"it asks for the global {asked}; it was refused and nothing was executed"
            )
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UnsafePickleError(
            "it asks for a persistent id; it was refused and nothing was executed"
        )


def load_commands(commands: bytes, payloads: list[memoryview]) -> Any:
    """Loads a pickle that `cut_payloads` has taken apart.

    Args:
        commands: the pickle, with NEXT_BUFFER where a payload was.
        payloads: the payloads in order; arrays become views of them where they are writable and
            aligned.

    Returns:
        The pickled value; inside it, arrays are `PickledArray` until `plain` takes them out.

    Raises:
        SampleError: the pickle is broken or holds unsupported values.
        UnsafePickleError: it asks for more than arrays, numbers, text and containers of them.
    """
    try:
        return _Unpickler(io.BytesIO(commands), buffers=payloads).load()
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise SampleError(f"broken pickle: {reason}") from error


def load_pickle(file: BinaryIO) -> Any:
    """Loads one pickled value, such as a dict of arrays, from an open binary file.

    Args:
        file: positioned at the pickle, which must reach to the end of the file.

    Returns:
        The value: dict, array, number, text; arrays are writable and aligned, with the dtype,
        byte order and layout they were pickled with.

    Raises:
        SampleError: the pickle is truncated, broken or holds unsupported values.
        UnsafePickleError: it asks for more than arrays, numbers, text and containers of them.
    """
    view = memoryview(bytearray(file.read()))
    commands, payloads = cut_payloads(view)
    loaded = load_commands(commands, [view[span] for span in payloads])
    if type(loaded) is dict:
        return {key: plain(value, key) for key, value in loaded.items()}
    return plain(loaded, "value")


_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
# Far more than any object's metadata; bounds the work that one file can cause.
_MAX_ITEMS = 10_000


def plain(value: Any, key: object) -> Any:
    """Takes an array out of its stand-in; checks that other values are plain.

    Args:
        value: a value of the loaded dict.
        key: its key, for the message.

    Returns:
        Array, number, text, None, or a container of plain values.

    Raises:
        SampleError: an object array, or containers nested in containers.
    """
    if type(value) is PickledArray:
        value = value.value
        if isinstance(value, np.ndarray):
            return value
        raise SampleError(f"array {key!r} has dtype object; only numbers and text are read")
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if isinstance(value, list | tuple | dict) and len(value) <= _MAX_ITEMS:
        items = value.values() if isinstance(value, dict) else value
        if all(isinstance(item, _PLAIN) for item in items):
            return value
        raise SampleError(f"value {key!r} is a nested {type(value).__name__}; use arrays")
    raise SampleError(f"value {key!r} is neither an array nor a number nor text")
