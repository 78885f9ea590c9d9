"""A tree of object files: one pickled dict a file, in folders of any depth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msdata.errors import DataError, UsageError
from msdata.schema import Sample, Schema
from msdata.sources.listing import NUM_LISTERS, list_tree
from msdata.sources.objectfile import ObjectReader

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".npy", ".pkl", ".pickle")
_UNFINISHED = (".tmp", ".part", ".partial")
# Tables that often lie beside the objects, and are pickled too.
_NOT_OBJECTS = ("exists_mask", "train_indices", "val_indices", "test_indices")


class PickleTree:
    """Implements `Source` over a folder of pickled dicts.

    Attributes:
        root: the folder; paths are relative to it.
        schema: None; it is inferred from the objects.
    """

    schema: Schema | None = None

    def __init__(self, root: Path, *, num_listers: int = NUM_LISTERS) -> None:
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
        chunks = list_tree(str(self.root), take_pickle, self._num_listers)
        if not chunks:
            raise DataError(
                f"{self.root} holds no object files ({', '.join('*' + s for s in SUFFIXES)}); "
                "give the folder that holds the pickled dicts, or a parent of it"
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
