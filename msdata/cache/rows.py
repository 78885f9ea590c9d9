"""What the processes that use an arena say of themselves: one row each, in the arena's file.

So whoever looks at the node (`msdata cache status`) needs nothing but the arena, and what a process
said goes with it: a row counts for as long as its process holds the lock on it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from msdata.cache.shared_file import is_role_taken, take_role
from msdata.core.checked_json import parse_json
from msdata.errors import DataError

NUM_ROWS = 128
ROW_NBYTES = 2048
# Numbers of roles that no shard's number reaches.
_FIRST_ROLE = 1 << 40
# Length and CRC-32 of the text after it: a reader may come in the middle of a write.
_HEAD = "<II"
_TRIES = 3


class Row:
    """This process's row; the lock on it ends with the descriptor.

    Args:
        fd: of the arena, from `shared_file.join`.
        start: where in the file the rows begin.
    """

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        free = (n for n in range(NUM_ROWS) if take_role(fd, _FIRST_ROLE + n))
        number = next(free, None)
        # More processes than rows: the last to come are not shown.
        self._at = None if number is None else start + number * ROW_NBYTES
        self.write({})

    def write(self, fields: Mapping[str, Any]) -> None:
        """Says something else.

        Args:
            fields: plain numbers and strings; what does not fit into a row is not said.

        Raises:
            OSError: the file system refused.
        """
        text = json.dumps(fields).encode()
        content = struct.pack(_HEAD, len(text), zlib.crc32(text)) + text
        if self._at is not None and len(content) <= ROW_NBYTES:
            os.pwrite(self._fd, content, self._at)


def read_rows(fd: int, start: int) -> list[dict[str, Any]]:
    """What the living processes say.

    Args:
        fd: of the arena, opened by itself: a descriptor's own locks count as free.
        start: where in the file the rows begin.
    """
    taken = (n for n in range(NUM_ROWS) if is_role_taken(fd, _FIRST_ROLE + n))
    found = (_read(fd, start + n * ROW_NBYTES) for n in taken)
    return [fields for fields in found if fields]


def _read(fd: int, at: int) -> dict[str, Any] | None:
    for _ in range(_TRIES):
        raw = os.pread(fd, ROW_NBYTES, at)
        if len(raw) < ROW_NBYTES:
            return None
        length, checksum = struct.unpack_from(_HEAD, raw)
        text = raw[struct.calcsize(_HEAD) :][:length]
        if zlib.crc32(text) == checksum and text:
            with suppress(DataError):
                return parse_json(text, "a row", cure="").read_as(dict[str, Any])
            return None
    return None
