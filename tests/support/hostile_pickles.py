"""Loads hostile pickles in a process of its own, with bounds on its time and memory.

Run as a script with the name of a case, or `fuzz SEED COUNT`; prints what became of each stream.
"""

from __future__ import annotations

import functools
import io
import random
import resource
import struct
import sys
from typing import Any

import numpy as np

from msdata.errors import SampleError
from msdata.sources.opcodes import cut_payloads
from msdata.sources.standins import PickledDict
from msdata.sources.unpickle import _GLOBALS, load_commands, plain

# Far above what any case here needs, far below what those that hang or grow would take.
MAX_CPU_S = 60
MAX_NBYTES = 2 << 30
PROTOCOL_4 = b"\x80\x04"


def name(module: str, attribute: str) -> bytes:
    """Pushes a global."""
    texts = (module.encode(), attribute.encode())
    return b"".join(b"\x8c" + struct.pack("B", len(t)) + t for t in texts) + b"\x93"


F8 = name("numpy", "dtype") + b"\x8c\x02f8\x89\x88\x87R"
ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray")
ARRAY += b"K\0\x85C\x01b\x87R"
# A tuple of the last one twice, sixty times: 2^60 values to hash, compare or print.
TUPLES = b")" + b"2\x86" * 60
LISTS = b"]" + b"".join(b"q%c0](h%ch%ce" % (n, n, n) for n in range(60))
MEGABYTE = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
TEXT = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)

CASES = {
    "key of an item": b"}" + TUPLES + b"K\x01s",
    "key of items": b"}(" + TUPLES + b"K\x01u",
    "key of a dict in one piece": b"(" + TUPLES + b"K\x01d",
    "key of an OrderedDict": name("collections", "OrderedDict")
    + b"]"
    + TUPLES
    + b"K\x01\x86a\x85R",
    "key of a nested dict": b"}\x8c\x01a}" + TUPLES + b"K\x01ss",
    "value of the dict": b"}\x8c\x01a" + LISTS + b"s",
    "the whole value": LISTS,
    "dtype": name("numpy", "dtype") + TUPLES + b"\x85R",
    "dtype of lists": name("numpy", "dtype") + LISTS + b"\x85R",
    "byte order": F8 + b"(K\x03" + TUPLES + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
    "fields of a dtype": F8 + b"(K\x03\x8c\x01<" + TUPLES + b"22tb",
    "shape": ARRAY + b"(K\x01" + TUPLES + F8 + b"\x89C\0tb",
    "shape of lists": ARRAY + b"(K\x01" + LISTS + b"\x85" + F8 + b"\x89C\0tb",
    "shape of huge numbers": ARRAY
    + b"(K\x01("
    + (b"\x8b" + struct.pack("<I", 1 << 16) + b"\x7f" * (1 << 16)) * 30
    + b"t"
    + F8
    + b"\x89C\0tb",
    "order": name("numpy.core.numeric", "_frombuffer") + b"(C\0" + F8 + b"K\0\x85" + TUPLES + b"tR",
    "axes": name("numpy.core.numeric", "_frombuffer")
    + b"(C\0"
    + F8
    + b"K\0\x85\x8c\x01K"
    + TUPLES
    + b"tR",
    "arguments of _reconstruct": name("numpy.core.multiarray", "_reconstruct")
    + name("numpy", "ndarray")
    + TUPLES
    + b"C\x01b\x87R",
    "codec": name("_codecs", "encode") + b"\x8c\x01a" + TUPLES + b"\x86R",
    "bytes of a tuple": name("builtins", "bytes") + TUPLES + b"\x85R",
    "array in itself": ARRAY + b"q\0(K\x01)" + F8 + b"\x89h\0tb",
    "array of objects in itself": ARRAY
    + b"q\0(K\x01K\x01\x85"
    + name("numpy", "dtype")
    + b"\x8c\x02O8\x89\x88\x87R\x89]h\0atb",
    "deep lists": b"]" + b"]" * 500_000 + b"a" * 500_000,
    "deep tuples": b")" + b"\x85" * 500_000,
    "deep dict": b"}\x8c\x01a" + b"]" * 500_000 + b"a" * 499_999 + b"s",
    "three million lists": b"](" + b"]" * 3_000_000 + b"e",
    "three million dicts": b"](" + b"}" * 3_000_000 + b"e",
    "copies of a text": TEXT
    + b"q\0"
    + name("_codecs", "encode")
    + b"q\x01]q\x02("
    + b"h\x01h\0\x8c\x06latin1\x86R" * 50_000
    + b"e",
    "copies of bytes": MEGABYTE
    + b"q\0"
    + name("builtins", "bytearray")
    + b"q\x01]("
    + b"h\x01h\0\x85R" * 50_000
    + b"e",
    "arrays of the same bytes": MEGABYTE
    + b"q\0"
    + name("numpy.core.numeric", "_frombuffer")
    + b"q\x01"
    + F8
    + b"q\x02J\0\0\x02\0\x85q\x03]("
    + b"h\x01(h\0h\x02h\x03\x8c\x01CtR" * 50_000
    + b"e",
    "memo": b"]r\xff\xff\x0f\x00",
}


def load_pickle(file):
    """Loads one pickled value from an open file, as object files are loaded."""
    view = memoryview(bytearray(file.read()))
    commands, payloads = cut_payloads(view)
    loaded = load_commands(commands, [view[span] for span in payloads])
    if isinstance(loaded, PickledDict):
        return {key: plain(value, key) for key, value in loaded.plain_dict().items()}
    return plain(loaded, "value")


def outcome(stream: bytes) -> str:
    """What reading a stream ends with; an exception of any other class than ours is let through."""
    try:
        loaded = load_pickle(io.BytesIO(stream))
    except SampleError as error:
        assert len(str(error)) < 300, str(error)[:1000]
        return f"refused: {error}"
    return f"loaded {type(loaded).__name__}"


def fuzz_stream(source: random.Random) -> bytes:
    """A stream that nests, copies and calls values, well formed; one in three is then damaged."""
    num_kept = [0]
    stream = bytearray(PROTOCOL_4 + _value(source, num_kept, depth=0) + b".")
    if source.random() < 0.3:
        stream[source.randrange(2, len(stream))] = source.randrange(256)
    return bytes(stream)


def _value(source: random.Random, num_kept: list[int], *, depth: int) -> bytes:
    """Opcodes that push one value; `num_kept` counts the values in the memo."""
    part = functools.partial(_value, source, num_kept, depth=depth + 1)
    kind = source.randrange(12 if depth < 12 else 5)
    if kind < 3:
        return source.choice([b"N", b"K\x01", b"\x8c\x01a", b"C\x03abc", b"\x89", b")", F8, ARRAY])
    if kind < 5:
        return b"h%c" % source.randrange(num_kept[0]) if num_kept[0] else b"K\x02"
    if kind == 5:
        made = part() + b"2\x86" * source.choice([1, 3, 40])
    elif kind == 6:
        made = b"(" + part() + b"2" * source.randrange(4) + source.choice([b"t", b"l"])
    elif kind == 7:
        made = b"](" + part() + part() + b"2e"
    elif kind == 8:
        made = b"}" + part() + part() + b"s"
    elif kind == 9:
        made = b"}(" + part() + part() + b"22u"
    elif kind == 10:
        called = source.choice([*_GLOBALS])
        made = name(*called) + source.choice([b")", part() + b"\x85", part() + part() + b"\x86"])
        made += b"R"
    else:
        made = ARRAY + b"(K\x01" + part() + F8 + b"\x89" + part() + b"tb"
    if num_kept[0] < 250:
        made += b"q%c" % num_kept[0]
        num_kept[0] += 1
    return made


def main() -> None:
    """Loads what the arguments name."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_NBYTES, MAX_NBYTES))
    if sys.argv[1] == "fuzz":
        source = random.Random(int(sys.argv[2]))
        count = int(sys.argv[3])
        ends = [outcome(fuzz_stream(source)).split(":")[0] for _ in range(count)]
        print({end: ends.count(end) for end in sorted(set(ends))})
        return
    for case, stream in CASES.items():
        print(f"{case}: {outcome(PROTOCOL_4 + stream + b'.')}", flush=True)


if __name__ == "__main__":
    main()


def assert_same(a: Any, b: Any) -> None:
    """Two objects are equal, bit for bit, in arrays that own their bytes."""
    assert a.keys() == b.keys()
    for key in b:
        if isinstance(b[key], np.ndarray):
            assert a[key].dtype == b[key].dtype
            assert a[key].shape == b[key].shape
            assert type(a[key]) is np.ndarray
            assert a[key].flags.writeable and a[key].flags.aligned
            assert a[key].tobytes() == b[key].tobytes()
        else:
            assert a[key] == b[key] and type(a[key]) is type(b[key])
