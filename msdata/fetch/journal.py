"""The manifest of a fetch: one line per settled object, in a file that only ever grows.

A line is written and on the disk before the next object counts, and after the object's own file is.
So whatever kills the process, at most the last line is torn; it is ignored and its object fetched
again. Each slice writes a journal of its own and reads all of them: the next run may cut the slices
differently. SQLite would do the same, but not on parallel file systems with unreliable locks.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msdata.core.checked_json import open_regular
from msdata.core.files import open_known, refusals, take_lock
from msdata.errors import MsdataError
from msdata.fetch.targets import Slice, Target

FOLDER = ".fetch"
# An object is there; it cannot be had; its service did not deliver, a later run tries again.
FETCHED, REFUSED, UNSETTLED = "fetched", "refused", "unsettled"
# One for all entries without: millions of empty dicts are not nothing.
_NO_NOTES: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What became of an object.

    Attributes:
        sample_id: which.
        state: FETCHED, REFUSED or UNSETTLED.
        ra: right ascension it was looked for at, degrees; None where it has none.
        dec: declination of that position, degrees.
        nbytes: size of its file.
        crc32c: checksum of its file.
        service: the one that failed it.
        reason: why it failed.
        notes: such as sky cell, NaN pixels, bands without coverage.
    """

    sample_id: str
    state: str
    ra: float | None
    dec: float | None
    nbytes: int = 0
    crc32c: int = 0
    service: str = ""
    reason: str = ""
    notes: Mapping[str, Any] = field(default_factory=lambda: _NO_NOTES)

    def is_of(self, target: Target) -> bool:
        """Whether it tells of the object at that very position."""
        if not target.has_position:
            return self.ra is None
        return (self.ra, self.dec) == target.position


def read_entries(
    out: Path, wanted: Container[str] | None = None, *, keep_notes: bool = True
) -> dict[str, Entry]:
    """The last entry of each object, from all journals.

    Args:
        out: the folder that is fetched into.
        wanted: ids to look for, such as a slice's; None for all, gigabytes of millions.
        keep_notes: without notes and reasons an entry takes 400 bytes instead of 1,000.

    Raises:
        StorageError: the file system refused.
    """
    found: dict[str, Entry] = {}
    for path in sorted((out / FOLDER).glob("journal*.jsonl")):
        cure = "remove it, its objects are fetched again"
        with refusals("read", path), open_regular(path, cure) as file:
            for line in file:
                _take(line, found, wanted, keep_notes=keep_notes)
    return found


def _take(
    line: bytes, found: dict[str, Entry], wanted: Container[str] | None, *, keep_notes: bool
) -> None:
    # A line may be torn; so is the one that another slice is writing just now.
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        fields = json.loads(line)
        if wanted is not None and fields["sample_id"] not in wanted:
            return
        if not keep_notes:
            fields.pop("notes", None)
            fields.pop("reason", None)
        entry = Entry(**fields)
        if not _is_sound(entry):
            return
        before = found.get(entry.sample_id)
        # Of two slices' entries one that has the object counts more.
        if before is None or before.state != FETCHED or entry.state == FETCHED:
            found[entry.sample_id] = entry


def _is_sound(entry: Entry) -> bool:
    """Whether an entry holds what `Journal.add` writes; checked by hand, for there are millions."""
    places = (entry.ra, entry.dec)
    texts = (entry.sample_id, entry.service, entry.reason)
    return (
        entry.state in (FETCHED, REFUSED, UNSETTLED)
        and all(isinstance(text, str) for text in texts)
        and all(p is None or (isinstance(p, int | float) and abs(p) <= 360) for p in places)
        and isinstance(entry.nbytes, int)
        and 0 <= entry.nbytes < 1 << 63
        and isinstance(entry.crc32c, int)
        and 0 <= entry.crc32c < 1 << 32
        and isinstance(entry.notes, dict)
    )


class Journal:
    """Adds to a slice's journal; a context manager. One process at a time has it.

    Args:
        out: the folder that is fetched into.
        part: the slice.
    """

    def __init__(self, out: Path, part: Slice) -> None:
        self._out = out
        self._path = out / FOLDER / f"journal{part.suffix}.jsonl"
        self._fd = -1

    def __enter__(self) -> Journal:
        """Opens the journal.

        Raises:
            MsdataError: another process has it.
            StorageError: the file system refused.
        """
        with refusals("write", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = open_known(self._path, os.O_RDWR | os.O_APPEND)
            if not take_lock(self._fd):
                os.close(self._fd)
                raise MsdataError(
                    f"another 'msdata fetch' is at work on {self._out} with the same --slice; wait "
                    "for it, or fetch another slice"
                )
            size = os.fstat(self._fd).st_size
            if size and os.pread(self._fd, 1, size - 1) != b"\n":
                os.write(self._fd, b"\n")
        return self

    def __exit__(self, *of_error: object) -> None:
        os.close(self._fd)

    def add(self, entry: Entry) -> None:
        """Writes an entry and waits until it is on the disk.

        Raises:
            StorageError: the file system refused.
        """
        fields = {k: v for k, v in asdict(entry).items() if v not in ("", 0, {})}
        line = json.dumps({**fields, "ra": entry.ra, "dec": entry.dec}) + "\n"
        with refusals("write", self._path):
            written = os.write(self._fd, line.encode())
            if written != len(line):
                raise OSError(errno.ENOSPC, "short write")
            os.fsync(self._fd)
