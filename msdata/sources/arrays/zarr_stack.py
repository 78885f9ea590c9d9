"""Opens a Zarr group of stacked arrays, of format 2 or 3, on this file system.

It stands alone because it is the one file that imports zarr.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msdata.errors import DataError, needing
from msdata.sources.arrays.stack_array import StackArray


def open_zarr(path: Path) -> tuple[Mapping[str, StackArray], list[str]]:
    """Opens a group.

    Args:
        path: its folder.

    Returns:
        Its arrays by name, those of groups in it as "group/array"; and no notes.

    Raises:
        DataError: it is not a Zarr group, or broken.
        MissingPackageError: zarr is not installed.
    """
    with needing("Zarr groups need zarr", "zarr"):
        import zarr
    arrays: dict[str, StackArray] = {}

    def visit(prefix: str, group: Any) -> None:
        for name, found in sorted(group.arrays()):
            if found.shape:
                arrays[prefix + name] = found
        for name, found in sorted(group.groups()):
            visit(f"{prefix}{name}/", found)

    try:
        visit("", zarr.open_group(str(path), mode="r"))
    except Exception as error:  # zarr and its codecs raise many kinds
        raise DataError(f"{path} is not a Zarr group, or is broken: {error}") from error
    return arrays, []
