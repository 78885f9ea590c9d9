"""A folder of PNG and JPEG images, one per sample; subfolders may name classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msdata.core.files import refusals
from msdata.errors import DataError, SampleError, UsageError
from msdata.schema import Sample, Schema
from msdata.sources.arrays.members import decode_image
from msdata.sources.arrays.options import SUFFIXES, ArrayOptions
from msdata.sources.listing import list_tree

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_FILE_NBYTES = 1 << 30


class ImageTree:
    """Implements `Source` over image files; each becomes the array `image`.

    Args:
        root: an image, or a folder with images.
        options: name the array, if not `image`.

    Attributes:
        root: the folder; paths are relative to it.
        schema: None; it is inferred from the images.
    """

    schema: Schema | None = None

    def __init__(self, root: Path, options: ArrayOptions) -> None:
        self.root = root.parent if root.is_file() else root
        self._given, self._options = root, options
        given = options.labels, options.layouts, options.shapes, options.id_column
        if any(given) or len(options.arrays) > 1:
            raise UsageError(
                f"{root} holds images: they have no labels, one array, and their channels first; "
                "leave out --labels, --layout, --shape and --id-column, or give labels with "
                "--catalog"
            )
        self._name = next(iter(options.arrays), "image")

    def scan(self) -> pa.Table:
        """Lists the images; see `Source.scan`.

        Returns:
            Table with `sample_id` (the file's name without its suffix; the whole path where names
            repeat), `path`, `row` and, if all images lie in folders, `folder`: the name of each
            image's own, which often is its class.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        def take(folder: str, name: str) -> tuple[str, str] | None:
            is_image = name.lower().endswith(SUFFIXES["images"])
            return (name.rsplit(".", 1)[0], folder + name) if is_image else None

        if self._given.is_file():
            stem = self._given.stem
            table = pa.table({"sample_id": [stem], "path": [self._given.name]})
        else:
            chunks = list_tree(str(self.root), take)
            if not chunks:
                raise DataError(f"{self.root} holds no PNG or JPEG images")
            table = pa.concat_tables(chunks)
        notes = []
        paths = table["path"].to_pylist()
        if len(table["sample_id"].unique()) < table.num_rows:
            ids = [path.rsplit(".", 1)[0].replace("/", "_") for path in paths]
            table = table.set_column(0, "sample_id", pa.array(ids, pa.string()))
            notes.append("names of images repeat: ids are their paths, with _ for /")
        table = table.append_column("row", pa.repeat(pa.scalar(-1, pa.int64()), table.num_rows))
        if pc.all(pc.match_substring(table["path"], "/")).as_py():
            folders = pa.array([path.split("/")[-2] for path in paths], pa.string())
            table = table.append_column("folder", folders)
        table = table.sort_by([("sample_id", "ascending"), ("path", "ascending")])
        return table.replace_schema_metadata({"notes": json.dumps(notes)})

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Decodes one image; see `Source.read` and `decode_image`."""
        with refusals("read", self.root / path), (self.root / path).open("rb") as file:
            content = file.read(_MAX_FILE_NBYTES + 1)
        if len(content) > _MAX_FILE_NBYTES:
            raise SampleError(f"it has more than {_MAX_FILE_NBYTES:,} bytes")
        return {self._name: decode_image(content)}
