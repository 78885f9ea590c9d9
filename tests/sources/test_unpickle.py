"""Pickles are read as data: every protocol NumPy writes, and nothing that runs code."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_pickles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msdata.errors import SampleError, UnsafePickleError

REFUSED = "refused and nothing was executed"


DTYPES = ["f4", "f8", ">f4", ">f8", "f2", "i1", "u1", "i2", ">i4", "i8", "u8", "b1", "c8", ">c16"]
DTYPES += ["U5", "S3"]


def _load(data: bytes) -> Any:
    return hostile_pickles.load_pickle(io.BytesIO(data))


def _layouts(array: np.ndarray) -> dict[str, Any]:
    return {
        "c": array,
        "f": np.asfortranarray(array),
        "view": array[:, ::2],
        "back": array[::-1],
        "turned": np.stack([array, array]).transpose(1, 0, 2),
        "none": array[:0],
        "zero_dim": array.reshape(-1)[0].copy() + np.zeros((), array.dtype),
        "scalar": array.reshape(-1)[0],
    }


@settings(max_examples=150, deadline=None)
@given(
    protocol=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
    side=st.sampled_from([1, 2, 7, 40]),
    old_names=st.booleans(),
)
def test_every_protocol_dtype_and_layout_comes_back_equal(
    protocol: int, dtype: str, side: int, old_names: bool
) -> None:
    array = np.arange(side * side).reshape(side, side).astype(dtype)
    sample = _layouts(array) | {"z": 0.25, "n": 10**12, "t": "text", "b": b"", "no": None}
    data = pickle.dumps(sample, protocol=protocol)
    if old_names and protocol < 4:  # NumPy 1 wrote `numpy.core`; later protocols count its letters
        data = data.replace(b"numpy._core.", b"numpy.core.")
    hostile_pickles.assert_same(_load(data), sample)


@pytest.mark.parametrize("protocol", [4, 5])
def test_module_names_of_numpy_1_are_known_to_framed_protocols(protocol: int) -> None:
    data = pickle.dumps({"a": np.arange(3.0)}, protocol=protocol)
    new, old = (
        struct.pack("B", len(name)) + name
        for name in (b"numpy._core.", b"numpy.core.")
        for name in [name + (b"numeric" if protocol == 5 else b"multiarray")]
    )
    frame = struct.unpack("<Q", data[3:11])[0]
    changed = data[:3] + struct.pack("<Q", frame - 1) + data[11:].replace(new, old)
    hostile_pickles.assert_same(_load(changed), {"a": np.arange(3.0)})


def test_ordered_dicts_memory_maps_and_bytearrays_are_read(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(4, 4))
    for protocol in range(6):
        sample = collections.OrderedDict(a=mapped[1:], raw=bytearray(b"xyz" * 1000))
        loaded = _load(pickle.dumps(sample, protocol=protocol))
        hostile_pickles.assert_same(
            loaded, {"a": np.zeros((3, 4), np.float32), "raw": b"xyz" * 1000}
        )


class _Call:
    """Pickles as a call of `function`, which a plain unpickler would make."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_os_system_is_refused_by_name_and_does_not_run(protocol: int, tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    for evil in (
        _Call(os.system, f"touch {sentinel}"),
        _Call(eval, f"open({str(sentinel)!r}, 'w')"),
        _Call(getattr, _Call(__import__, "os"), "system"),
    ):
        data = pickle.dumps({"a": np.zeros(3), "b": evil}, protocol=protocol)
        with pytest.raises(UnsafePickleError, match=rf"asks for the global \S+; it was {REFUSED}"):
            _load(data)
    assert not sentinel.exists()


def _global(module: str, name: str) -> bytes:
    return b"".join(
        b"\x8c" + struct.pack("B", len(text)) + text.encode() for text in (module, name)
    ) + (b"\x93")


def _call(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x04" + _global(module, name) + b"(" + arguments + b"tR."


HOSTILE = {
    "dotted name": b"\x80\x04" + _global("numpy", "ndarray.__class__.__subclasses__") + b".",
    "dotted module": b"\x80\x04" + _global("numpy.core.multiarray", "np.os.system") + b".",
    "codec": _call("_codecs", "encode", b"\x8c\x03abc\x8c\x03zip"),
    "huge bytearray": _call("builtins", "bytearray", b"\x8a\x06\0\0\0\0\0\x01"),
    "huge bytes": _call("__builtin__", "bytes", b"\x8a\x06\0\0\0\0\0\x01"),
    "huge ndarray": _call("numpy", "ndarray", b"J\0\0\0\x40J\0\0\0\x40\x86"),
    "extension 1": b"\x80\x02\x82\x01.",
    "extension 4": b"\x80\x02\x84\x01\0\0\0.",
    "persistent id": b"Pabc\n.",
    "binary persistent id": b"\x80\x02K\x01Q.",
    "instance": b"(S'id'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'id'\no.",
    "newobj": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "newobj_ex": b"\x80\x04" + _global("numpy", "dtype") + b")}\x92.",
    "build on a function": b"\x80\x04"
    + _global("_codecs", "encode")
    + b"N}\x8c\x0c__defaults__)s\x86b.",
    "build on the array type": b"\x80\x04" + _global("numpy", "ndarray") + b"}b.",
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "memo as text": b"}p99999999999\n.",
    "set": b"\x80\x04\x8f.",
    "buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(name: str) -> None:
    with pytest.raises(UnsafePickleError, match=REFUSED):
        _load(HOSTILE[name])


_F8 = _global("numpy", "dtype") + b"\x8c\x02f8\x89\x88\x87R"
_MADE = _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray")
BROKEN = {
    "huge shape": _MADE + b"K\0\x85C\x01b\x87R(K\x01J\0\0\0\x40\x85" + _F8 + b"\x89C\x01xtb.",
    "negative shape": _MADE
    + b"K\0\x85C\x01b\x87R(K\x01J\xff\xff\xff\xff\x85"
    + _F8
    + b"\x89C\0tb.",
    "huge reconstruct": _MADE + b"J\0\0\0\x40\x85C\x01b\x87R.",
    "huge frombuffer": _global("numpy._core.numeric", "_frombuffer")
    + b"(C\x08abcdefgh"
    + _F8
    + b"J\0\0\0\x40\x85\x8c\x01CtR.",
    "huge item": _global("numpy", "dtype") + b"\x8c\x0cV99999999999\x89\x88\x87R.",
    "dtype of a class": _global("numpy", "dtype") + b"\x8c\x09f4,object\x89\x88\x87R.",
    "scalar of no bytes": _global("numpy.core.multiarray", "scalar") + _F8 + b"C\0\x86R.",
    "stack underflow": b"R.",
    "build on a dict": b"}}\x8c\x01aK\x01sb.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_impossible_pickle_is_a_sample_error(name: str) -> None:
    with pytest.raises(SampleError):
        _load(b"\x80\x04" + BROKEN[name])


def test_flags_in_a_dtypes_state_cannot_make_pointers_of_bytes() -> None:
    state = b"(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    array = _MADE + b"K\0\x85C\x01b\x87R(K\x01K\x01\x85" + _F8 + state + b"\x89C\x08abcdefghtb."
    assert _load(b"\x80\x04" + array).dtype == np.dtype("<f8")


def test_structured_and_object_arrays_inside_the_dict_are_refused() -> None:
    with pytest.raises(SampleError, match="array 'o' has dtype object"):
        _load(pickle.dumps({"o": np.array([1, "x"], object)}))
    with pytest.raises(SampleError, match="neither numbers nor text"):
        _load(pickle.dumps({"s": np.zeros(2, [("a", "f4")])}))


def test_what_is_nested_deeper_is_emptied_and_costs_nothing_beside_it() -> None:
    nested = {"l": [np.zeros(2)], "t": ([1],), "d": {"header": {"exptime": 3.0}}}
    loaded = _load(pickle.dumps({**nested, "n": [1, None], "x": 1.5}))
    assert loaded == {"l": [], "t": (), "d": {}, "n": [1, None], "x": 1.5}


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_cut_anywhere_is_refused(protocol: int) -> None:
    data = pickle.dumps({"a": np.arange(600.0), "b": "text"}, protocol=protocol)
    for end in [*range(0, len(data), 61), len(data) - 1]:
        with pytest.raises(SampleError, match=r"truncated pickle|broken pickle"):
            _load(data[:end])
    with pytest.raises(SampleError, match="3 bytes follow the end"):
        _load(data + b"abc")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_pickle_loads_or_is_a_sample_error(data: st.DataObject) -> None:
    protocol = data.draw(st.integers(0, 5))
    stream = bytearray(pickle.dumps({"a": np.arange(200.0), "z": 1.5}, protocol=protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SampleError):
        _load(bytes(stream))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello world, this is a text\n" * 9, "begins with the byte 0x68"),
        (b"id,redshift\n1,0.3\n", "begins with the byte 0x69"),
        (b"PK\x03\x04" + bytes(90), "a zip archive, as savez and torch.save write them"),
    ],
)
def test_a_file_of_another_kind_is_not_taken_for_an_attack(content: bytes, says: str) -> None:
    with pytest.raises(SampleError, match=rf"^not a pickle: .*{says}") as caught:
        _load(content)
    assert not isinstance(caught.value, UnsafePickleError)


def _in_its_own_process(*arguments: str) -> str:
    script = Path(__file__).parents[1].joinpath("support", "hostile_pickles.py")
    ran = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return ran.stdout


def test_small_pickles_cost_neither_time_nor_memory_beyond_their_size() -> None:
    # Its limits of processor time and memory end the process where one case hangs or grows.
    ends = dict(line.split(": ", 1) for line in _in_its_own_process("all").splitlines())
    assert ends.keys() == hostile_pickles.CASES.keys()
    harmless = {"key of a nested dict", "value of the dict", "the whole value", "memo"}
    harmless |= {"deep lists", "deep tuples", "deep dict"}
    assert {case for case, end in ends.items() if end.startswith("loaded")} == harmless
    copied = {case for case, end in ends.items() if "many times the bytes" in end}
    assert copied == {"copies of a text", "copies of bytes", "arrays of the same bytes"}


def test_streams_of_nested_copied_and_called_values_load_or_are_refused() -> None:
    ends = _in_its_own_process("fuzz", "12", "5000")
    assert "'refused'" in ends and "'loaded dict'" in ends


def test_a_dict_of_a_pack_is_not_told_from_one_with_the_names_of_its_stand_in() -> None:
    named = b"\x80\x02}X\x01\0\0\0acmsdata\ndict\n)Rs."
    assert _load(named) == {"a": {}}


def test_keys_of_nested_dicts_that_are_not_plain_empty_the_dict_alone() -> None:
    sample = {"d": {(1, 2): 3}, "e": {1: 2, "b": None}, "x": np.zeros(2)}
    loaded = _load(pickle.dumps(sample))
    assert loaded["d"] == {} and loaded["e"] == {1: 2, "b": None}
    assert np.array_equal(loaded["x"], np.zeros(2))


def test_long_dicts_come_back_in_order() -> None:
    for protocol in range(6):
        sample = {f"k{i}": i for i in range(2500)}
        assert list(_load(pickle.dumps(sample, protocol=protocol)).items()) == list(sample.items())
