"""Finds and reads the source objects of a packed data set, by its `sources.parquet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msdata.core.checked_json import JsonValue
from msdata.core.checked_table import file_metadata, read_whole, reading
from msdata.core.trusted_names import check_source_paths
from msdata.dataset.index import fixed_columns, sources_sha256
from msdata.dataset.manifest import FILE_NAME, SOURCES_NAME, Manifest
from msdata.errors import DataError
from msdata.pack.planning import inpainted
from msdata.pack.prepare import Preparation
from msdata.pack.settings import PackSettings, parse_missing
from msdata.sources.arrays.options import ArrayOptions
from msdata.sources.detect import detect_source
from msdata.sources.fits_options import FitsOptions
from msdata.verify.expected_shard import ExpectedShard

if TYPE_CHECKING:
    import pyarrow as pa

    from msdata.sources.source import Source

T = TypeVar("T")


class PackedObjects:
    """The sources of the samples; opens the source on first use.

    Args:
        folder: the data set.
        manifest: its manifest.
        source: the folder with the objects; None uses the folder that was packed.
    """

    def __init__(self, folder: Path, manifest: Manifest, source: Path | None) -> None:
        self._folder = folder
        self._manifest = manifest
        self._root = source
        self._opened: tuple[pa.Table, Source] | None = None

    def _open(self) -> tuple[pa.Table, Source]:
        if self._opened is None:
            path = self._folder / SOURCES_NAME
            cure = "no shard can be rebuilt without it: pack again"
            kinds = {"sample_id": "text", "path": "text", "row": "integer"}
            try:
                rows = read_whole(path, kinds, cure=cure, num_rows=self._manifest.num_samples)
            except (FileNotFoundError, NotADirectoryError):
                raise DataError(f"{path} is missing; {cure}") from None
            with reading(path, cure):
                found = sources_sha256(rows)
            # Earlier versions wrote no checksum of it; each sample's own one guards its repair.
            if self._manifest.provenance.get("sources_sha256") not in (None, found):
                raise DataError(f"{path} was altered; restore it or pack again")
            with reading(path, cure):
                said = (rows.schema.metadata or {}).get(b"source", b".").decode()
            root = Path(said) if self._root is None else self._root
            if not root.exists():
                raise DataError(f"the objects' folder {root} does not exist; give --source DIR")
            fits, arrays = self._said("fits", FitsOptions), self._said("arrays", ArrayOptions)
            self._opened = (rows, detect_source(root, fits, arrays))
        return self._opened

    def _said(self, name: str, kind: type[T]) -> T | None:
        """A setting of the pack, read as its class; None where it has none."""
        said = JsonValue(self._settings.get(name), self._folder / FILE_NAME, "pack again")
        return None if said.value is None else said.read_as(kind)

    @property
    def _settings(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = self._manifest.provenance.get("settings", {})
        return settings

    @property
    def source(self) -> Source:
        """The source that reads the objects.

        Raises:
            DataError: its folder does not exist.
        """
        return self._open()[1]

    def locations(self, expected: ExpectedShard) -> list[tuple[str, int]]:
        """Returns (path, row) of each object of a shard, for `Source.read`."""
        path = self._folder / SOURCES_NAME
        rows = self._open()[0].slice(expected.first_row, expected.info.num_samples)
        check_source_paths(path, rows["path"])
        if rows["sample_id"].to_pylist() != expected.sample_ids():
            raise DataError(f"{path} was altered: its ids are not those of the index; pack again")
        return list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True))

    def label_columns(self, index_columns: Sequence[str]) -> list[str]:
        """Returns the catalog's columns, in the order of the JSON members."""
        schema = self._manifest.schema
        arrow_schema = self._open()[0].schema
        has_labels = b"labels" in (arrow_schema.metadata or {})
        own = {*fixed_columns(schema, self._manifest.codings), *schema.scalars}
        names: Sequence[str] = [n for n in index_columns if n not in own]
        if has_labels:
            said = file_metadata(arrow_schema, b"labels", self._folder / SOURCES_NAME, "pack again")
            names = said.read_as(tuple[str, ...])
        return [name for name in names if name in index_columns]

    def preparation(self) -> Preparation:
        """Returns how the pack treated NaN."""
        settings = self._settings
        named = None if settings.get("inpaint") is None else tuple(settings["inpaint"])
        asked = PackSettings(source=self.source.root, out=self._folder, inpaint=named)
        return Preparation(
            inpaint=inpainted(self._manifest.schema, asked),
            max_nan_fraction=settings.get("max_nan_fraction", 0.01),
            fill=parse_missing(str(settings.get("missing", PackSettings.missing))),
        )

    @property
    def is_chunked(self) -> bool:
        """Whether HDF5 shards have one chunk per sample."""
        return bool(self._settings.get("chunked"))
