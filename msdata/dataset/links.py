"""The links of an indexed data set: its shards are files elsewhere, which `msdata index` found.

`dataset.json` holds no path. `links.json` names the file behind each shard and the inode number of
the data set's own folder, which whoever makes an archive cannot know; a data set whose folder has
another number, or whose shards are not the listed links, is refused. So only an index that was made
on this file system leads out of its folder, to the files that its user named.

It stands alone because readers and `msdata index` both need it, and nothing else of the latter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msdata.core.checked_json import Count, read_json
from msdata.core.files import refusals, storage_error, write_whole
from msdata.dataset.manifest import INDEXED, LINKS_NAME, Manifest
from msdata.errors import DataError

_CURE = "index the files again with 'msdata index'"


@dataclass(frozen=True, kw_only=True)
class Links:
    """The content of `links.json`.

    Attributes:
        format: marks the file.
        folder_inode: inode number of the data set's folder.
        targets: absolute path behind each shard, by its path in the data set.
    """

    format: Literal["msdata links"] = "msdata links"
    folder_inode: Count
    targets: Mapping[str, str]


def write_links(folder: Path, targets: Mapping[str, Path]) -> None:
    """Makes the links of a new data set, and `links.json`.

    Args:
        folder: the data set's folder.
        targets: absolute path of the file behind each shard, by its path in the data set.

    Raises:
        StorageError: the file system refused.
    """
    with refusals("write", folder):
        for name, target in targets.items():
            link = folder / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target)
        inode = folder.stat().st_ino
    links = Links(folder_inode=inode, targets={n: str(t) for n, t in targets.items()})
    write_whole(folder / LINKS_NAME, json.dumps(vars(links), indent=0).encode())


def check_links(folder: Path, manifest: Manifest) -> None:
    """Refuses an indexed data set that was not made where it lies; others have no links to check.

    Raises:
        DataError: `links.json` is missing or damaged, or belongs to another folder; or a shard is
            not the link that it lists.
        StorageError: the file system refused.
    """
    if manifest.container != INDEXED:
        return
    path = folder / LINKS_NAME
    try:
        links: Links = read_json(path, cure=_CURE, has_paths=True).read_as(Links)
        is_here = folder.stat().st_ino == links.folder_inode
        if is_here:
            for shard in manifest.shards:
                target = links.targets.get(shard.relative_path)
                link = folder / shard.relative_path
                if link.parent.is_symlink() or target is None or str(link.readlink()) != target:
                    raise DataError(f"{link} is not the link that {path} lists; {_CURE}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{error.filename} is missing; {_CURE}") from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    if not is_here:
        raise DataError(
            f"{folder} holds links to files outside of it and was not made here: it was copied, "
            f"or comes from someone else; nothing was read: {_CURE}"
        )
