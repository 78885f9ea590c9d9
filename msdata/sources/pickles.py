"""A tree of object files: one pickled dict a file, in folders of any depth.

Upstream keeps 4.3 million of them in ten thousand folders. Listing folders is what takes the time
on a parallel file system, one slow answer a folder, so folders are listed by several threads.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msdata.atomic_file import storage_error
from msdata.errors import DataError, UsageError
from msdata.schema import Sample
from msdata.sources.objectfile import ObjectReader

if TYPE_CHECKING:
    import pyarrow as pa

    # Subfolders, each with its device and inode; the table of objects, None without any.
    _Listing = tuple[list[tuple[str, tuple[int, int]]], pa.Table | None]

SUFFIXES = (".npy", ".pkl", ".pickle")
# Names that programs give to files they have not finished.
_TEMPORARY = (".", "~", "#")
_UNFINISHED = (".tmp", ".part", ".partial")
# Enough to hide a parallel file system's answer times; local listings are bound by the GIL.
_NUM_LISTERS = 16
# Tables that often lie beside the objects, and are pickled too.
_NOT_OBJECTS = ("exists_mask", "train_indices", "val_indices", "test_indices")


class PickleTree:
    """Implements `Source` over a folder of pickled dicts.

    Attributes:
        root: the folder; paths are relative to it.
    """

    def __init__(self, root: Path, *, num_listers: int = _NUM_LISTERS) -> None:
        self.root = root
        self._num_listers = num_listers
        self._prefix = f"{root}{os.sep}"
        self._reader = ObjectReader()

    def scan(self) -> pa.Table:
        """Lists the object files; see `Source.scan`.

        Returns:
            Table with `sample_id` (string: the file's name without its suffix), `path` (string)
            and `row` (int64, -1), sorted by `sample_id`, then `path`.

        Raises:
            UsageError: the root is no folder.
            DataError: it holds no object files.
            StorageError: the file system refused.
        """
        import pyarrow as pa

        if not self.root.is_dir():
            raise UsageError(f"{self.root} is no folder; give the folder that holds the objects")
        chunks = _list_tree(str(self.root), self._num_listers)
        if not chunks:
            raise DataError(
                f"{self.root} holds no object files ({', '.join('*' + s for s in SUFFIXES)}); "
                "give the folder that holds the pickled dicts, or a parent of it"
            )
        table = pa.concat_tables(chunks)
        table = table.sort_by([("sample_id", "ascending"), ("path", "ascending")])
        return table.append_column("row", pa.repeat(pa.scalar(-1, pa.int64()), table.num_rows))

    def read(self, path: str, row: int) -> Sample:
        """Reads one object; see `Source.read` and `ObjectReader.read`."""
        return self._reader.read(self._prefix + path)


def _list_tree(root: str, num_listers: int) -> list[pa.Table]:
    """Tables of `sample_id` and `path` of each folder under `root` that has object files."""
    chunks: list[pa.Table] = []
    # A link that points back up would be walked forever; folders are known by device and inode.
    top = Path(root).stat()
    seen = {(top.st_dev, top.st_ino)}
    with ThreadPoolExecutor(num_listers, thread_name_prefix="scan") as pool:
        level = [("", top.st_dev)]
        while level:
            listings = list(pool.map(partial(_list_folder, root), level))
            chunks += [table for _, table in listings if table is not None]
            level = []
            for folder, identity in itertools.chain.from_iterable(found for found, _ in listings):
                if identity not in seen:
                    seen.add(identity)
                    level.append((folder, identity[0]))
    return chunks


def _list_folder(root: str, place: tuple[str, int]) -> _Listing:
    """Subfolders and object files of one folder, as paths relative to `root`.

    Args:
        root: where all of them are.
        place: the folder, relative to `root`, and its device.
    """
    import pyarrow as pa

    folder, device = place
    folders: list[tuple[str, tuple[int, int]]] = []
    stems: list[str] = []
    paths: list[str] = []
    prefix = f"{folder}/" if folder else ""
    try:
        with os.scandir(f"{root}/{folder}") as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(_TEMPORARY):
                    continue
                if _is_folder(entry):
                    folders.append((prefix + name, _identity(entry, device)))
                elif name.endswith(SUFFIXES) and (entry.is_symlink() or entry.is_file()):
                    # A dangling link stays in: its read fails and is reported, not skipped.
                    stem = name[: name.rindex(".")]
                    if stem not in _NOT_OBJECTS and not stem.endswith(_UNFINISHED):
                        stems.append(stem)
                        paths.append(prefix + name)
        if not paths:
            return folders, None
        return folders, pa.table(
            {"sample_id": pa.array(stems, pa.string()), "path": pa.array(paths, pa.string())}
        )
    except UnicodeEncodeError as error:
        raise DataError(
            f"{root}/{folder} has a file name that is not UTF-8 ({error.object!r}); rename it"
        ) from error
    except OSError as error:
        raise storage_error("list", Path(root, folder), error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself, or where nobody may look: its read fails and is reported.
        return False


def _identity(entry: os.DirEntry[str], device: int) -> tuple[int, int]:
    """Device and inode of a folder; only a link costs the file system a question."""
    if entry.is_symlink():
        status = entry.stat()
        return status.st_dev, status.st_ino
    return device, entry.inode()
