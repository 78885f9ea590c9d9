"""Takes a pickle's byte stream apart before anything is executed.

One pass over the opcodes, without a stack: it ends at STOP, so a truncated stream and bytes behind
the pickle are seen; it refuses opcodes that data never need (persistent ids, extension codes,
classes' `__new__`), memo indices whose table alone would fill the memory (CPython before 3.14
allocates it at once), and streams of megabytes of opcodes, each of which may make an object.

Dicts are rewritten to lists of pairs, so that the unpickler hashes no keys: the hash of a tuple
that holds another one twice, which holds a third one twice, and so on, never ends.

Large payloads are cut out: the C unpickler then sees a stream of about a kilobyte and meets each
payload as an out-of-band buffer, so pixels stay where `read` put them.
The walk costs about 15 µs per object; letting the unpickler copy 0.6 MB costs more, under the GIL.
"""

from __future__ import annotations

import pickle
import pickletools

from msdata.errors import SampleError
from msdata.sources.standins import refused

# Below this size the unpickler's own copy is cheaper than a buffer object.
MIN_PAYLOAD_NBYTES = 1024
# A memo index above this makes the unpickler allocate 16 bytes per index for one tiny opcode.
MAX_MEMO_INDEX = 1 << 20
# A byte of opcodes makes up to some hundred bytes of objects; cutouts' dicts have a kilobyte.
MAX_COMMANDS_NBYTES = 1 << 21
# What stands for a dict in the rewritten stream; the unpickler's table knows it.
DICT_GLOBAL = ("msdata", "dict")

_COUNTED_1, _COUNTED_4, _COUNTED_8, _LINE, _TWO_LINES, _FRAME, _MEMO_LONG, _STOP = range(-8, 0)
_UNKNOWN, _OF_DICTS = -9, -10
_MAKE_DICT = b"c" + "\n".join(DICT_GLOBAL).encode() + b"\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
# A dict's list gets one tuple of keys and values for each of its opcodes.
_REWRITTEN = {
    pickle.EMPTY_DICT[0]: _MAKE_DICT,
    pickle.DICT[0]: pickle.POP_MARK + _MAKE_DICT,
    pickle.SETITEM[0]: pickle.TUPLE2 + pickle.APPEND,
    pickle.SETITEMS[0]: pickle.TUPLE + pickle.APPEND,
}

_REFUSED = {
    pickle.PERSID[0]: "a persistent id",
    pickle.BINPERSID[0]: "a persistent id",
    pickle.EXT1[0]: "a copyreg extension code",
    pickle.EXT2[0]: "a copyreg extension code",
    pickle.EXT4[0]: "a copyreg extension code",
    pickle.INST[0]: "an instance of a class (INST)",
    pickle.OBJ[0]: "an instance of a class (OBJ)",
    pickle.NEWOBJ[0]: "an instance of a class (NEWOBJ)",
    pickle.NEWOBJ_EX[0]: "an instance of a class (NEWOBJ_EX)",
    pickle.EMPTY_SET[0]: "a set",
    pickle.FROZENSET[0]: "a set",
    pickle.ADDITEMS[0]: "a set",
    pickle.NEXT_BUFFER[0]: "an out-of-band buffer",
    pickle.READONLY_BUFFER[0]: "an out-of-band buffer",
}


def _argument_table() -> tuple[int, ...]:
    """Bytes of argument of each opcode, or one of the negative classes above."""
    counts = {
        pickletools.TAKEN_FROM_ARGUMENT1: _COUNTED_1,
        pickletools.TAKEN_FROM_ARGUMENT4: _COUNTED_4,
        pickletools.TAKEN_FROM_ARGUMENT4U: _COUNTED_4,
        pickletools.TAKEN_FROM_ARGUMENT8U: _COUNTED_8,
        pickletools.UP_TO_NEWLINE: _LINE,
    }
    table = dict.fromkeys(_REWRITTEN, _OF_DICTS)
    table |= {pickle.GLOBAL[0]: _TWO_LINES, pickle.FRAME[0]: _FRAME, pickle.STOP[0]: _STOP}
    table[pickle.LONG_BINPUT[0]] = _MEMO_LONG
    for opcode in _OPCODES:
        nbytes = opcode.arg.n if opcode.arg else 0
        table.setdefault(ord(opcode.code), counts.get(nbytes, nbytes))
    known = table.keys() - _REFUSED.keys()
    return tuple(table[code] if code in known else _UNKNOWN for code in range(256))


# Those of the protocols up to 5.
_OPCODES = [opcode for opcode in pickletools.opcodes if opcode.proto <= 5]
_ARGUMENT = _argument_table()
# What takes something from the stack or the memo cannot come first: such a file is not a pickle at
# all, however much one of its letters looks like an order.
_NEVER_FIRST = frozenset(
    ord(opcode.code)
    for opcode in _OPCODES
    if opcode.stack_before or opcode.name.endswith(("GET", "PUT"))
)
_ZIP = b"PK\x03\x04"
_PAYLOAD = frozenset((pickle.BINBYTES[0], pickle.BINBYTES8[0], pickle.BYTEARRAY8[0]))
_PUT = pickle.PUT[0]
_MARK, _DICT = pickle.MARK[0], pickle.DICT[0]


def cut_payloads(
    view: memoryview, start: int = 0, max_nbytes: int = MAX_COMMANDS_NBYTES
) -> tuple[bytes, list[slice]]:
    """Splits a pickle into its commands and its large payloads.

    Args:
        view: bytes of the whole file, format "B".
        start: where the pickle begins.
        max_nbytes: what may be left of it without the payloads.

    Returns:
        The pickle without FRAME opcodes, each large payload replaced by NEXT_BUFFER and dicts by
        calls of `DICT_GLOBAL`; and where the payloads stand in `view`, in order.

    Raises:
        SampleError: the stream is truncated, too long, not a pickle, or has bytes behind its end.
        UnsafePickleError: it uses an opcode that arrays and numbers never need.
    """
    pieces: list[bytes | memoryview] = []
    payloads: list[slice] = []
    position, kept_from, size, argument = start, start, len(view), _ARGUMENT
    _check_first(view, start)
    while True:
        if position >= size:
            raise SampleError(f"truncated pickle: it ends at byte {size} without a STOP")
        code = view[position]
        kind = argument[code]
        if kind >= 0:
            position += 1 + kind
        elif kind == _STOP:
            break
        elif kind == _FRAME:
            pieces.append(view[kept_from:position])
            position = kept_from = position + 9
        elif kind in (_LINE, _TWO_LINES):
            position = _after_lines(view, position, kind)
        elif kind == _MEMO_LONG:
            _check_memo_index(int.from_bytes(view[position + 1 : position + 5], "little"))
            position += 5
        elif kind == _OF_DICTS:
            if code == _DICT and view[position - 1] != _MARK:
                raise SampleError("broken pickle: a dict in one piece, which no pickler writes")
            pieces += (view[kept_from:position], _REWRITTEN[code])
            position = kept_from = position + 1
        elif kind == _UNKNOWN:
            raise _refusal(code, position)
        else:
            body, end = _counted_value(view, position, kind)
            if end - body >= MIN_PAYLOAD_NBYTES and code in _PAYLOAD:
                pieces += (view[kept_from:position], pickle.NEXT_BUFFER)
                payloads.append(slice(body, end))
                kept_from = end
            position = end
    if position + 1 != size:
        raise SampleError(f"{size - position - 1} bytes follow the end of the pickle")
    pieces.append(view[kept_from:])
    commands = b"".join(pieces)
    if len(commands) > max_nbytes:
        raise SampleError(f"the pickle has more than {max_nbytes >> 20} MiB beside its arrays")
    return commands, payloads


def _check_first(view: memoryview, start: int) -> None:
    """Refuses at once what only looks like a pickle."""
    if view[start : start + 4] == _ZIP:
        raise SampleError("not a pickle: a zip archive, as savez and torch.save write them")
    if start < len(view) and view[start] in _NEVER_FIRST:
        raise SampleError(f"not a pickle: it begins with the byte 0x{view[start]:02x}")


def _counted_value(view: memoryview, position: int, kind: int) -> tuple[int, int]:
    """Where the value of an opcode at `position` begins and ends whose length stands before it."""
    body = position + (2 if kind == _COUNTED_1 else 5 if kind == _COUNTED_4 else 9)
    end = body + int.from_bytes(view[position + 1 : body], "little")
    if end > len(view):
        raise SampleError(
            f"truncated pickle: a value of {end - body} bytes at byte {body} "
            f"in a file of {len(view)}"
        )
    return body, end


def _after_lines(view: memoryview, position: int, kind: int) -> int:
    """Position behind a text opcode of protocol 0 at `position`."""
    begin = position + 1
    end = _find_newline(view, begin)
    if view[position] == _PUT:
        digits = bytes(view[begin:end]).strip()
        _check_memo_index(int(digits) if digits.isdigit() and len(digits) < 20 else -1)
    if kind == _TWO_LINES:
        end = _find_newline(view, end + 1)
    return end + 1


def _find_newline(view: memoryview, begin: int) -> int:
    # A memoryview cannot search; windows keep a long text from being copied for every line.
    step = 256
    while begin < len(view):
        window = bytes(view[begin : begin + step])
        found = window.find(b"\n")
        if found >= 0:
            return begin + found
        begin += step
        step = min(step * 4, 1 << 20)
    raise SampleError(f"truncated pickle: a line without an end at byte {len(view)}")


def _check_memo_index(index: int) -> None:
    if not 0 <= index <= MAX_MEMO_INDEX:
        raise refused("it asks for a memo table of an absurd size")


def _refusal(code: int, position: int) -> SampleError:
    if code in _REFUSED:
        return refused(f"it asks for {_REFUSED[code]}")
    return SampleError(f"not a pickle: byte {position} is 0x{code:02x}, which is not an opcode")
