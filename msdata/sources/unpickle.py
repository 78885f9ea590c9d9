"""Reads pickled dicts of arrays without ever executing what a pickle asks for.

The C unpickler runs, but every global it asks for is a stand-in from one short table: a pickle can
name `numpy.dtype` and gets a value object that knows numbers and text. Arrays are made here, from
bytes that are present in the file, so no small file can ask for a large array; what is copied of
them is counted. NumPy's own `__setstate__` is never reached with a pickle's arguments: it trusts
dtype flags. Nothing here walks through nested values, which may hold each other a million times
over: they are neither hashed, compared nor printed.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import numpy as np

from msdata.errors import SampleError
from msdata.sources.opcodes import DICT_GLOBAL
from msdata.sources.standins import (
    ObjectArray,
    PickledArray,
    PickledDict,
    PickledDtype,
    copy_budget,
    refused,
    said,
)

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


class _Global:
    """What a pickle gets for a global: callable, without attributes that BUILD could set."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name = name
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise refused(f"it asks to change {self._name}")


def _reconstruct(kind: object, shape: object, typecode: object) -> PickledArray:
    if kind is not _NDARRAY or shape != (0,) or typecode not in (b"b", "b"):
        raise SampleError("broken pickle: _reconstruct is not called as NumPy does")
    return PickledArray()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> PickledArray:
    made = PickledArray()
    made.fill(raw, dtype, shape, order if axes is None else "C", axes)
    return made


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    made = PickledArray()
    made.fill(_encode(raw, "latin1") if isinstance(raw, str) else raw, dtype, (), "C", None)
    if isinstance(made.value, ObjectArray):
        raise SampleError("broken pickle: a scalar of dtype object")
    return made.value[()]


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise refused(f"it asks for _codecs.encode with {said(encoding)}")
    copy_budget.spend(len(text))
    return text.encode("latin-1")


def _bytes(*args: Any) -> bytes:
    if not args:
        return b""
    if len(args) == 1 and isinstance(args[0], bytes | bytearray | memoryview):
        copy_budget.spend(len(args[0]))
        return bytes(args[0])
    if len(args) == 2 and isinstance(args[0], str):
        return _encode(*args)
    # A bare number would be a length: bytearray(10**12) in a file of 40 bytes.
    raise refused("it asks for bytes of a length, not of a value")


def _bytearray(*args: Any) -> bytearray:
    made = _bytes(*args)
    copy_budget.spend(len(made))
    return bytearray(made)


def _dict(*args: object) -> PickledDict:
    if args:
        raise SampleError("broken pickle: an OrderedDict in one piece, which no pickler writes")
    return PickledDict()


def _ndarray(*_args: object) -> NoReturn:
    raise refused("it asks for numpy.ndarray(...) itself")


_NDARRAY = _Global("numpy.ndarray", _ndarray)
_GLOBALS: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _NDARRAY,
    # A slice of a memory map keeps its class; its state is that of any array.
    ("numpy", "memmap"): _NDARRAY,
    ("numpy.core.memmap", "memmap"): _NDARRAY,
    ("numpy", "dtype"): _Global("numpy.dtype", PickledDtype),
    ("_codecs", "encode"): _Global("_codecs.encode", _encode),
    ("collections", "OrderedDict"): _Global("collections.OrderedDict", _dict),
    DICT_GLOBAL: _Global("dict", _dict),
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Global("_reconstruct", _reconstruct)
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Global("scalar", _scalar)
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _Global("_frombuffer", _frombuffer)
# Protocols 0 to 2 use Python 2's name of the module.
for _builtins in ("builtins", "__builtin__"):
    _GLOBALS[_builtins, "bytes"] = _Global("bytes", _bytes)
    _GLOBALS[_builtins, "bytearray"] = _Global("bytearray", _bytearray)


class _Unpickler(pickle.Unpickler):
    """The C unpickler with the table above for all its globals."""

    def find_class(self, module: str, name: str) -> Any:
        found = _GLOBALS.get((module, name))
        if found is None:
            raise refused("it asks for the global " + f"{module}.{name}"[:120])
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise refused("it asks for a persistent id")


def load_commands(commands: bytes, payloads: list[memoryview]) -> Any:
    """Loads a pickle that `cut_payloads` has taken apart.

    Args:
        commands: the pickle, with NEXT_BUFFER where a payload was.
        payloads: the payloads in order; arrays become views of them where they are writable and
            aligned.

    Returns:
        The pickled value; inside it, arrays are `PickledArray` and dicts `PickledDict` until
        `plain` takes them out.

    Raises:
        SampleError: the pickle is broken or holds unsupported values.
        UnsafePickleError: it asks for more than arrays, numbers, text and containers of them.
    """
    # Protocol 2 has each byte twice, as text and as an array of it; others once.
    copy_budget.left = 4 * (len(commands) + sum(map(len, payloads))) + _MIN_COPY_BUDGET
    try:
        return _Unpickler(io.BytesIO(commands), buffers=payloads).load()
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise SampleError(f"broken pickle: {reason}") from error


_MIN_COPY_BUDGET = 1 << 20
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
# Far more than any object's metadata; bounds the work that one file can cause.
_MAX_ITEMS = 10_000


def plain(value: Any, key: object) -> Any:
    """Takes an array out of its stand-in; checks that other values are plain.

    Args:
        value: a value of the loaded dict.
        key: its key, for the message.

    Returns:
        Array, number, text, None, or a container of plain values; an empty one in place of what
        is nested deeper, which is not pixels and must not cost the pixels beside it.

    Raises:
        SampleError: an object array.
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
    if isinstance(value, PickledDict):
        try:
            members = value.plain_dict(_PLAIN)
        except SampleError:
            return {}
        return members if _are_plain(members.values()) else {}
    if isinstance(value, list | tuple):
        return value if _are_plain(value) else type(value)()
    raise SampleError(f"value {key!r} is neither an array nor a number nor text")


def _are_plain(items: Collection[Any]) -> bool:
    return len(items) <= _MAX_ITEMS and all(isinstance(item, _PLAIN) for item in items)
