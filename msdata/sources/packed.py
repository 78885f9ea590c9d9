"""A packed data set as the source of another one: `msdata pack DATA NEW`.

Every sample keeps its id, split and columns. The steps of its codes go along, so that the same
quantization gives the same codes, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c_of_parts
from msdata.dataset.coded_columns import decoded
from msdata.dataset.dataset import Split, open_dataset
from msdata.dataset.index import fixed_columns
from msdata.dataset.manifest import CODES
from msdata.errors import DataError, SampleError
from msdata.schema import Schema
from msdata.sources.source import PackedSample

if TYPE_CHECKING:
    import pyarrow as pa


class PackedData:
    """Implements `Source` over a packed data set; an object's path is its shard's.

    Args:
        root: the data set's folder.

    Attributes:
        root: the same.
        data: the data set.
        schema: its arrays.

    Raises:
        DataError: it is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = open_dataset(root)
        # Numbers of the objects' dicts are columns like any others by now.
        schema = self.data.schema
        self.schema: Schema | None = Schema(name=schema.name, arrays=schema.arrays)
        self._lock = threading.Lock()
        self._read: dict[str, _Columns] = {}

    def __reduce__(self) -> tuple[type[PackedData], tuple[Path]]:
        return PackedData, (self.root,)

    def scan(self) -> pa.Table:
        """Lists the samples with all their columns; see `Source.scan`."""
        import pyarrow as pa

        data = self.data
        table, manifest = data.table, data.manifest
        own = fixed_columns(data.schema, manifest.codings)
        labels = [name for name in table.column_names if name not in own]
        sizes = [s.num_samples for s in manifest.shards]
        paths = pa.array([s.relative_path for s in manifest.shards]).take(
            pa.array(np.repeat(np.arange(len(sizes)), sizes))
        )
        rows = np.concatenate([np.arange(n) for n in sizes])
        columns = {
            "sample_id": table["sample_id"].cast(pa.string()),
            "path": paths,
            "row": pa.array(rows, pa.int64()),
            "split": table["split"].cast(pa.string()),
            **{name: table[name] for name in labels},
        }
        return pa.table(columns).sort_by([("sample_id", "ascending"), ("path", "ascending")])

    @cached_property
    def _places(self) -> dict[str, tuple[Split, range]]:
        """The split of each shard, and its rows there, by path."""
        places = {}
        for name in self.data.splits:
            split, first = self.data.split(name), 0
            for shard in split.shards:
                places[shard.relative_path] = (split, range(first, first + shard.num_samples))
                first += shard.num_samples
        return places

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> PackedSample:
        """Reads one sample, checked and decoded; see `Source.read`.

        Raises:
            SampleError: the data set has no such sample.
            DataError: it is damaged: a data set is repaired, not packed with gaps.
        """
        split, rows = self._places.get(path, (None, range(0)))
        if split is None or not 0 <= row < len(rows):
            raise SampleError(f"{self.root} has no sample {row} in {path}")
        number, columns = rows[row], self._columns(split)
        stored, file = split.read_stored(number)
        found, expected = crc32c_of_parts(stored), int(columns.crc32c[number])
        if found != expected:
            raise DataError(
                f"{file.path}: sample {row} is corrupt: CRC32C {found:08x}, expected "
                f"{expected:08x}; run 'msdata verify --repair {self.root}'"
            )
        steps = {name: values[number] for name, values in columns.steps.items()}
        kinds = {f"dtype_{n}": CODES[codes[number]] for n, codes in columns.codes.items()}
        values = {**kinds, **{f"step_{name}": step for name, step in steps.items()}}
        return PackedSample(
            decoded(split.schema, split.codings, stored, values),
            steps={c.name: (c.quantize, steps[c.name]) for c in split.codings if c.name in steps},
            num_filled={name: found.get(number, 0) for name, found in columns.filled.items()},
            missing_bands=columns.missing.get(number, ()),
        )

    def _columns(self, split: Split) -> _Columns:
        """What the index says of a split's samples, read once."""
        with self._lock:
            columns = self._read.get(split.name)
            if columns is None:
                columns = self._read[split.name] = _read_columns(split)
        return columns


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """What the index says of a split's samples.

    Attributes:
        crc32c: uint32 (samples,), over the stored bytes.
        steps: float32 (samples, bands) of each quantized array.
        codes: uint8 (samples,) of each quantized array, entries of `CODES`.
        filled: pixels filled in each array, by row, where there are any.
        missing: bands that are missing, by row, where there are any.
    """

    crc32c: NDArray[np.uint32]
    steps: Mapping[str, NDArray[np.float32]]
    codes: Mapping[str, NDArray[np.uint8]]
    filled: Mapping[str, Mapping[int, int]]
    missing: Mapping[int, Sequence[str]]


def _read_columns(split: Split) -> _Columns:
    # Also reads the places, which are then shared by all threads: a Parquet file is not.
    split.spans.offsets(np.zeros(min(1, len(split)), np.int64))
    quantized = [c.name for c in split.codings if c.quantize is not None]
    filled = {}
    for name in split.schema.names:
        counts = split.numbers(f"filled_{name}", np.int64)
        rows = np.flatnonzero(counts)
        filled[name] = dict(zip(rows.tolist(), counts[rows].tolist(), strict=True))
    texts = (t for part in split.column_parts("missing_bands") for t in part.to_pylist())
    return _Columns(
        crc32c=split.numbers("crc32c", np.uint32),
        steps={name: split.steps(name) for name in quantized},
        codes={name: split.codes(name) for name in quantized},
        filled=filled,
        missing={row: text.split(",") for row, text in enumerate(texts) if text},
    )
