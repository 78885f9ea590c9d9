"""Lists a tree of object files with several threads.

Upstream keeps 4.3 million objects in ten thousand folders. Listing folders is what takes the time
on a parallel file system, one slow answer per folder.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msdata.core.files import refusals
from msdata.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    # Subfolders, each with its device and inode; the table of objects, None without any.
    _Listing = tuple[list[tuple[str, tuple[int, int]]], pa.Table | None]

# Given a file's folder (empty, or with a slash at the end) and name: the object's id and path, None
# where the file does not belong to an object.
TakeFile = Callable[[str, str], tuple[str, str] | None]

# Folders that file servers keep deleted and earlier files in, such as `#recycle` and `~snapshot`.
_ATTIC = ("~", "#")
# Enough to hide a parallel file system's answer times; local listings are bound by the GIL.
NUM_LISTERS = 16
# Handing a folder to a thread costs more than listing it where the answer is cached, so threads
# take several; but every thread several times, for folders are not alike.
_BATCHES_PER_LISTER = 4
_MAX_BATCH = 64


def list_tree(root: str, take: TakeFile) -> list[pa.Table]:
    """Tables of `sample_id` and `path` of the object files under `root`.

    Args:
        root: the folder.
        take: says which files count; called from many threads.

    Raises:
        DataError: a file's name is not UTF-8.
        StorageError: the file system refused.
    """
    chunks: list[pa.Table] = []
    # A link that points back up would be walked forever; folders are known by device and inode.
    top = Path(root).stat()
    seen = {(top.st_dev, top.st_ino)}
    with ThreadPoolExecutor(NUM_LISTERS, thread_name_prefix="scan") as pool:
        level = [("", top.st_dev)]
        while level:
            size = max(1, min(len(level) // (NUM_LISTERS * _BATCHES_PER_LISTER), _MAX_BATCH))
            batches = [level[start : start + size] for start in range(0, len(level), size)]
            listings = list(pool.map(partial(_list_folders, root, take), batches))
            chunks += [table for _, table in listings if table is not None]
            level = []
            for folder, identity in itertools.chain.from_iterable(found for found, _ in listings):
                if identity not in seen:
                    seen.add(identity)
                    level.append((folder, identity[0]))
    return chunks


def paths_below(given: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Paths, relative to a folder, of the files below it whose names end so; sorted.

    Args:
        given: the folder, or one file, whose path is its name.
        suffixes: in lower case.

    Raises:
        DataError: a file's name is not UTF-8.
        StorageError: the file system refused.
    """
    if given.is_file():
        return [given.name]

    def take(folder: str, name: str) -> tuple[str, str] | None:
        return (name, folder + name) if name.lower().endswith(suffixes) else None

    chunks = list_tree(str(given), take)
    return sorted(path for chunk in chunks for path in chunk["path"].to_pylist())


def _list_folders(root: str, take: TakeFile, places: list[tuple[str, int]]) -> _Listing:
    """Subfolders and objects of some folders, given with their devices, relative to `root`."""
    import pyarrow as pa

    folders: list[tuple[str, tuple[int, int]]] = []
    objects: list[tuple[str, str]] = []
    for place in places:
        found_folders, found_objects = _list_folder(root, take, place)
        folders += found_folders
        objects += found_objects
    if not objects:
        return folders, None
    stems, paths = zip(*objects, strict=True)
    try:
        # The paths first: where a name is refused, the sentence then says in which folder.
        path = pa.array(paths, pa.string())
        return folders, pa.table({"sample_id": pa.array(stems, pa.string()), "path": path})
    except UnicodeEncodeError as error:
        raise DataError(
            f"{root} has a file name that is not UTF-8 ({error.object!r}); rename it"
        ) from error


def _list_folder(
    root: str, take: TakeFile, place: tuple[str, int]
) -> tuple[list[tuple[str, tuple[int, int]]], list[tuple[str, str]]]:
    """Subfolders of one folder, and id and path of its objects."""
    folder, device = place
    folders: list[tuple[str, tuple[int, int]]] = []
    objects: list[tuple[str, str]] = []
    prefix = f"{folder}/" if folder else ""
    with refusals("list", Path(root, folder)), os.scandir(f"{root}/{folder}") as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:
                # A link to itself, or access is denied: its read fails and is reported.
                is_folder = False
            if is_folder:
                if not name.startswith(_ATTIC):
                    folders.append((prefix + name, _identity(entry, device)))
                continue
            taken = take(prefix, name)
            # A dangling link stays in: its read fails and is reported, not skipped.
            if taken is not None and (entry.is_symlink() or entry.is_file()):
                objects.append(taken)
    return folders, objects


def _identity(entry: os.DirEntry[str], device: int) -> tuple[int, int]:
    """Device and inode of a folder; only a link costs the file system a question."""
    if entry.is_symlink():
        status = entry.stat()
        return status.st_dev, status.st_ino
    return device, entry.inode()
