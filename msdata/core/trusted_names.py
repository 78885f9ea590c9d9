"""Checks names that come from files: a data set, the plan of a pack, a list of sources.

Such files are untrusted, and the files that they name are opened, written or removed. So the name
of a split or shard must be one plain component of a path, a source's path must stay below its
folder, and a file to write must lie below its folder after all links are followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from msdata.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# Letters and digits of any language: a catalog's column may name the splits.
_NAME = re.compile(r"\w[\w.-]*")
# The file systems' limit is 255; a shard's temporary and index files have longer names.
MAX_NAME_BYTES = 200
# In the syntax of RE2, which pyarrow uses: rooted, with a part "..", with a line break or NUL.
_UNSAFE_PATH = r"^$|^/|(^|/)\.\.(/|$)|[\x00\r\n]"


def is_plain_name(name: object) -> bool:
    """Whether a name is a single plain part of a path, such as `[A-Za-z0-9_][A-Za-z0-9_.-]*`.

    Args:
        name: a value from a file; only text can be a name.
    """
    if not isinstance(name, str) or name.startswith("-"):
        return False
    # Identifiers too: they allow combining accents.
    is_plain = _NAME.fullmatch(name) is not None or name.replace("-", "_").isidentifier()
    return is_plain and len(name.encode()) <= MAX_NAME_BYTES


def check_shard_names(path: Path, shards: Iterable[tuple[object, object]]) -> None:
    """Refuses names of splits or shards that are not plain, and shards named twice.

    Args:
        path: the file, for the message.
        shards: (split, name) of each shard.

    Raises:
        DataError: a name is not plain, or a shard is named twice.
    """
    seen: set[tuple[object, object]] = set()
    for split, name in shards:
        for what, found in (("split", split), ("shard", name)):
            if not is_plain_name(found):
                raise DataError(
                    f"{path} names a {what} {short(found)}, which is not a plain file name and "
                    "might lead out of the data set; nothing was read or written: do not use this "
                    "data set unless you know who made it"
                )
        if (split, name) in seen:
            raise DataError(f"{path} names shard {split}/{name} twice; restore it or pack again")
        seen.add((split, name))


def check_source_paths(path: Path, paths: pa.ChunkedArray) -> None:
    """Refuses object paths that leave the objects' folder.

    Args:
        path: the file that contains them, for the message.
        paths: text, relative to the objects' folder.

    Raises:
        DataError: one is absolute, has a part "..", a line break or a NUL, or is missing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type)):
        raise DataError(f"{path}: paths must be text, got {paths.type}; pack again")
    is_unsafe = pc.fill_null(pc.match_substring_regex(paths, _UNSAFE_PATH), True)
    first = pc.index(is_unsafe, True).as_py()
    if first >= 0:
        raise DataError(
            f"{path} names an object {short(paths[first].as_py())}, which is not a path below the "
            "objects' folder; nothing was read, written or removed: pack again"
        )


def check_below(folder: Path, path: Path) -> None:
    """Refuses a path whose folder is not below `folder` once links are followed.

    Ignores the last component: it is renamed over or removed, which never follows a link.

    Args:
        folder: the folder that must contain the path; links may lead to it.
        path: the file to be written or removed.

    Raises:
        UsageError: a link leads out of the folder.
    """
    real, root = path.parent.resolve(), folder.resolve()
    if not real.is_relative_to(root):
        raise UsageError(
            f"cannot write {path}: a link leads to {real}, out of {folder}; put a folder in the "
            "link's place"
        )


def short(found: object) -> str:
    """Formats a value from a file as a short Python literal, control characters escaped."""
    text = ascii(found)
    return text if len(text) <= 80 else f"{text[:77]}..."
