"""A tree of object files, in folders of any depth: one pickled dict of arrays per file.

A file holds a bare pickle or an object-array `.npy`. The content decides, not the suffix:
upstream's `.npy` files are pickles behind an `.npy` header.
The file is read by one system call into one buffer, whose start is shifted so that the largest
array stands aligned: NumPy's loops and OpenCV copy arrays that are not.
"""

from __future__ import annotations

import ast
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.core.files import storage_error
from msdata.core.npy import PARSING
from msdata.errors import DataError, SampleError, UsageError
from msdata.schema import Sample, Schema
from msdata.sources.listing import list_tree
from msdata.sources.opcodes import cut_payloads
from msdata.sources.standins import Layout, ObjectArray, PickledArray, PickledDict, make_array
from msdata.sources.unpickle import load_commands, plain

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".npy", ".pkl", ".pickle")
_UNFINISHED = (".tmp", ".part", ".partial")
# Tables that often lie beside the objects, and are pickled too.
_NOT_OBJECTS = ("exists_mask", "train_indices", "val_indices", "test_indices")

# An object of upstream's has 0.6 MB; a thousand times that is a mistake, not a cutout.
MAX_OBJECT_NBYTES = 1 << 30
_NPY_MAGIC = b"\x93NUMPY"
# Object-array headers have 118 bytes; the cap bounds what the literal parser is given.
_MAX_HEADER_NBYTES = 4096
_CACHE_LINE_NBYTES = 64
_MAX_KEY_LETTERS = 200
# Numbers of the rows of a whole catalog are pickled as one list.
_MAX_NBYTES_OF_TABLES = 1 << 28
# Not blocking: a link to a named pipe would wait for a writer that never comes.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, kw_only=True)
class _Template:
    """What files of one data set share: all but the payloads, byte for byte.

    Attributes:
        num_bytes: size of the file.
        spans: the payloads.
        skeleton: all bytes outside of the payloads.
        layouts: payload and layout of each key.
    """

    num_bytes: int
    spans: tuple[slice, ...]
    skeleton: bytes
    layouts: tuple[tuple[str, int, Layout], ...]


class ObjectReader:
    """Reads object files; remembers how the last one was built.

    A pickle's meaning depends on its bytes alone, so a file that equals the last one outside of its
    payloads needs no unpickling: that takes 10 µs less Python of the 35 µs per file. Threads share
    the memory without a lock, since it is replaced whole.
    """

    def __init__(self) -> None:
        self._template: _Template | None = None
        # Where the largest array began in the last file: tells how to place the next one.
        self._payload_offset = 0

    def read(self, path: str | Path) -> Sample:
        """Reads one object.

        Args:
            path: the file.

        Returns:
            The object's dict: name -> array, number or text, as stored (dtype, byte order,
            layout); arrays are aligned and writable, the large ones share one buffer.

        Raises:
            SampleError: the file is not a pickled dict of arrays, is broken or unsafe; the message
                is the reason.
            StorageError: the file system refused.
        """
        template = self._template
        view = None if template is None else _read_expected(path, template, self._payload_offset)
        if template is not None and view is not None:
            return {
                key: make_array(view[template.spans[index]], layout)
                for key, index, layout in template.layouts
            }
        view = _read_file(path, self._payload_offset)
        commands, spans = cut_payloads(view, _pickle_start(view))
        if spans:
            self._payload_offset = max(spans, key=lambda span: span.stop - span.start).start
        payloads = [view[span] for span in spans]
        members = _members(load_commands(commands, payloads))
        self._template = _template(view, spans, payloads, members)
        return {key: plain(value, key) for key, value in members.items()}


def read_object(path: Path) -> dict[str, Any]:
    """Reads one object file; see `ObjectReader.read`, which is faster over many files."""
    return ObjectReader().read(path)


def load_file(path: Path) -> Any:
    """Loads a pickled value from a file of any size below the cap; arrays stay stand-ins.

    Raises:
        SampleError: the file is not a pickle, or is broken or unsafe.
        StorageError: the file system refused.
    """
    view = _read_file(path, 0)
    start = _pickle_start(view, is_one=False)
    commands, spans = cut_payloads(view, start, _MAX_NBYTES_OF_TABLES)
    return load_commands(commands, [view[span] for span in spans])


def _outside(view: memoryview, spans: Sequence[slice]) -> bytes:
    """The bytes of `view` that stand in none of the ascending `spans`."""
    starts = [0, *(span.stop for span in spans)]
    stops = [*(span.start for span in spans), len(view)]
    return b"".join([view[a:b] for a, b in zip(starts, stops, strict=True)])


def _template(
    view: memoryview, spans: list[slice], payloads: list[memoryview], members: dict[str, Any]
) -> _Template | None:
    """How `members` were made of the payloads; None where other values stand among them."""
    number_of = {id(payload): number for number, payload in enumerate(payloads)}
    layouts = []
    for key, value in members.items():
        if (
            type(value) is not PickledArray
            or value.layout is None
            or id(value.raw) not in number_of
        ):
            return None
        layouts.append((key, number_of[id(value.raw)], value.layout))
    return _Template(
        num_bytes=len(view),
        spans=tuple(spans),
        skeleton=_outside(view, spans),
        layouts=tuple(layouts),
    )


def _read_expected(path: str | Path, template: _Template, aligned_offset: int) -> memoryview | None:
    """The bytes of a file that is like the template, in three system calls; None for any other."""
    size = template.num_bytes
    view = _aligned_view(size + 1, aligned_offset)
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            # One byte more than expected would show that the file is longer.
            num_read = os.preadv(descriptor, [view], 0)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    if num_read != size or _outside(view[:size], template.spans) != template.skeleton:
        return None
    return view


def _aligned_view(size: int, aligned_offset: int) -> memoryview:
    """A fresh buffer in which `aligned_offset` starts a cache line."""
    buffer = np.empty(size + _CACHE_LINE_NBYTES, np.uint8)
    shift = -(buffer.ctypes.data + aligned_offset) % _CACHE_LINE_NBYTES
    return memoryview(buffer.data)[shift : shift + size]


def _read_file(path: str | Path, aligned_offset: int) -> memoryview:
    """The file's bytes in a fresh buffer in which `aligned_offset` starts a cache line."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            size = os.fstat(descriptor).st_size
            if not 0 < size <= MAX_OBJECT_NBYTES:
                raise SampleError("the file is empty" if size == 0 else f"it has {size} bytes")
            view = _aligned_view(size, aligned_offset)
            num_read = 0
            while num_read < size:
                got = os.preadv(descriptor, [view[num_read:]], num_read)
                if got == 0:
                    raise SampleError(f"truncated while it was read: {num_read} of {size} bytes")
                num_read += got
            return view
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error("read", Path(path), error) from error


def _pickle_start(view: memoryview, *, is_one: bool = True) -> int:
    """Where the pickle begins: 0, or behind the header of an object-array `.npy`."""
    if view[:6] != _NPY_MAGIC:
        return 0
    if len(view) < 12:
        raise SampleError("truncated .npy header")
    count_nbytes = 2 if view[6] == 1 else 4
    body = 8 + count_nbytes
    end = body + int.from_bytes(view[8:body], "little")
    if end - body > _MAX_HEADER_NBYTES:
        raise SampleError(f"an .npy header of {end - body} bytes; a pickled dict's has 118")
    if end > len(view):
        raise SampleError("truncated .npy header")
    shape = _object_shape(bytes(view[body:end]))
    if is_one and shape not in ((), (1,)):
        raise SampleError(f"an object array of shape {str(shape)[:40]}, not one dict")
    return end


# All files of a data set have the same header, so it is parsed once.
@lru_cache(maxsize=64)
def _object_shape(header: bytes) -> Any:
    try:
        with PARSING:
            fields = ast.literal_eval(header.decode("latin-1").strip())
        descr, shape = fields["descr"], fields["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise SampleError("broken .npy header") from error
    if descr != "|O":
        raise SampleError(f"a plain .npy array (dtype {str(descr)[:40]}), not a pickled dict")
    return shape


def _members(loaded: Any) -> dict[str, Any]:
    """The dict inside what was unpickled; its arrays are still `PickledArray`."""
    if type(loaded) is PickledArray and isinstance(loaded.value, ObjectArray):
        items = loaded.value.items
        if len(items) != 1:
            raise SampleError(f"an object array of {len(items)} items, not one dict")
        loaded = items[0]
    if not isinstance(loaded, PickledDict):
        is_array = isinstance(loaded, np.ndarray | PickledArray)
        found = "an array" if is_array else f"a value of type {type(loaded).__name__}"
        raise SampleError(f"the pickle holds {found}, not a dict of arrays")
    members = loaded.plain_dict()
    # The list may hold itself, and nothing collects cycles in a worker.
    loaded.clear()
    if not members:
        raise SampleError("the dict is empty")
    for key in members:
        # Half a surrogate pair, which no file format takes for a name, cannot be encoded.
        if len(key) > _MAX_KEY_LETTERS or key != key.encode(errors="ignore").decode():
            raise SampleError(f"the dict has the key {key[:40]!r}, which cannot name an array")
    return members


class PickleTree:
    """Implements `Source` over a folder of pickled dicts.

    Attributes:
        root: the folder; paths are relative to it.
        schema: None; it is inferred from the objects.
    """

    schema: Schema | None = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{root}{os.sep}"
        self._reader = ObjectReader()

    def scan(self) -> pa.Table:
        """Lists the object files; see `Source.scan`.

        Returns:
            Table with `sample_id` (string: the file's name without its suffix), `path` (string)
            and `row` (int64, -1), sorted by `sample_id`, then `path`.

        Raises:
            UsageError: the root is not a folder.
            DataError: it holds no object files.
            StorageError: the file system refused.
        """
        import pyarrow as pa

        if not self.root.is_dir():
            raise UsageError(f"{self.root} is not a folder; give the folder that holds the objects")
        chunks = list_tree(str(self.root), take_pickle)
        if not chunks:
            first = min((entry.name for entry in self.root.iterdir()), default=None)
            raise DataError(
                f"{self.root} holds no object files ({', '.join('*' + s for s in SUFFIXES)}), and "
                "no HDF5, NPZ, Zarr, Parquet, tar, PNG or JPEG files; "
                + ("it is empty" if first is None else f"it holds {first}")
                + "; give the folder that holds the objects, or a parent of it"
            )
        table = pa.concat_tables(chunks)
        table = table.sort_by([("sample_id", "ascending"), ("path", "ascending")])
        return table.append_column("row", pa.repeat(pa.scalar(-1, pa.int64()), table.num_rows))

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Reads one object; see `Source.read` and `ObjectReader.read`."""
        return self._reader.read(self._prefix + path)


def take_pickle(folder: str, name: str) -> tuple[str, str] | None:
    """Id and path of an object file; None for other files. See `listing.TakeFile`."""
    if not name.endswith(SUFFIXES):
        return None
    stem = name[: name.rindex(".")]
    if stem in _NOT_OBJECTS or stem.endswith(_UNFINISHED):
        return None
    return stem, folder + name


def object_path(sample_id: str, suffix: str) -> PurePosixPath:
    """Where an object's file lies: four folders of a character each, then its name.

    Args:
        sample_id: the object's. Folders are its first four digits; an id that is not a number has
            four digits of its hash.
        suffix: what follows the id in the file's name, with the dot.
    """
    # Packs only read, and the import takes as long as reading ten objects.
    import hashlib

    digits = sample_id if sample_id.isdigit() else hashlib.sha256(sample_id.encode()).hexdigest()
    return PurePosixPath(*digits[:4], sample_id + suffix)


def object_bytes(sample: Mapping[str, Any]) -> bytes:
    """An object's file: a pickled dict in an object-array `.npy`, as upstream writes them.

    Args:
        sample: arrays and numbers by name.
    """
    file = io.BytesIO()
    np.save(file, np.array(dict(sample), dtype=object), allow_pickle=True)
    return file.getvalue()
