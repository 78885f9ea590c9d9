"""The parts that `msdata.Writer` wrote, as the source of a pack.

A part is a folder `part-NNNNN` with the samples' arrays one after the other (`samples.bin`, records
of equal length), their ids and labels (`rows.jsonl`), and `part.json`, written last. `parts.json`
beside the parts says what all have in common. Compared with pickles: one file in place of one per
sample, and a sample is one read at a known offset.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from msdata.core.checked_json import Count, Within, open_regular, read_json
from msdata.core.files import refusals
from msdata.errors import DataError, SampleError
from msdata.schema import Sample, Schema

if TYPE_CHECKING:
    import pyarrow as pa

PARTS_NAME = "parts.json"
PART_NAME = "part.json"
SAMPLES_NAME = "samples.bin"
ROWS_NAME = "rows.jsonl"
MAX_PARTS = 100_000
_CURE = "write the parts again"
_ROWS_AT_ONCE = 1 << 16
LabelKind = Literal["truth value", "integer", "number", "text", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The content of `parts.json`.

    Attributes:
        format: marks the file.
        schema: the arrays of every sample.
        num_samples: samples of each part.
        kinds: kind of each label.
        has_splits: whether the writer named each sample's split.
    """

    format: Literal["msdata parts"] = "msdata parts"
    schema: Schema
    num_samples: Annotated[tuple[Count, ...], Within(1, MAX_PARTS)]
    kinds: Mapping[str, LabelKind]
    has_splits: bool

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `parts.json`."""
        return {**vars(self), "schema": self.schema.to_json()}


def part_folder(root: Path, number: int) -> Path:
    """Returns the folder of part `number`."""
    return root / f"part-{number:05d}"


def holds_parts(root: Path) -> bool:
    """Whether a folder holds joined parts of a `msdata.Writer`."""
    return (root / PARTS_NAME).exists()


class PartFiles:
    """Implements `Source` over the parts; an object's path is `part-NNNNN/samples.bin`.

    Args:
        root: folder of the parts.

    Raises:
        DataError: `parts.json` is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts: Parts = read_json(root / PARTS_NAME, cure=_CURE).read_as(Parts)
        self.schema: Schema | None = self.parts.schema
        self._arrays = self.parts.schema.arrays
        self._paths = [
            f"{part_folder(root, number).name}/{SAMPLES_NAME}"
            for number in range(len(self.parts.num_samples))
        ]
        self._numbers = {path: number for number, path in enumerate(self._paths)}

    def __reduce__(self) -> tuple[type[PartFiles], tuple[Path]]:
        return PartFiles, (self.root,)

    def scan(self) -> pa.Table:
        """Lists the samples with their labels; see `Source.scan`.

        Raises:
            DataError: a part is damaged, or a label holds values that no type keeps.
        """
        import pyarrow as pa

        fields = [("sample_id", pa.string()), ("path", pa.string()), ("row", pa.int64())]
        if self.parts.has_splits:
            fields.append(("split", pa.string()))
        types = {
            "truth value": pa.bool_(),
            "integer": pa.int64(),
            "text": pa.string(),
            "number": pa.float64(),
            "nothing": pa.float64(),
        }
        fields += [(name, types[kind]) for name, kind in self.parts.kinds.items()]
        schema = pa.schema(fields)
        batches = [
            self._batch(number, first, rows, schema)
            for number in range(len(self._paths))
            for first, rows in self._rows(number)
        ]
        table = pa.Table.from_batches(batches, schema)
        return table.sort_by([("sample_id", "ascending"), ("path", "ascending")])

    def _rows(self, number: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yields the rows of a part in batches, with the number of the first."""
        path = part_folder(self.root, number) / ROWS_NAME
        count = 0
        with open_regular(path, _CURE) as file:
            while lines := list(itertools.islice(file, _ROWS_AT_ONCE)):
                yield count, [json.loads(line) for line in lines]
                count += len(lines)
        if count != self.parts.num_samples[number]:
            raise DataError(
                f"{path} is damaged: it must have {self.parts.num_samples[number]} rows, got "
                f"{count}; {_CURE}"
            )

    def _batch(
        self, number: int, first: int, rows: list[dict[str, Any]], schema: pa.Schema
    ) -> pa.RecordBatch:
        import pyarrow as pa

        columns: list[Any] = [
            [row["id"] for row in rows],
            [self._paths[number]] * len(rows),
            list(range(first, first + len(rows))),
        ]
        if self.parts.has_splits:
            columns.append([row["split"] for row in rows])
        for name, kind in self.parts.kinds.items():
            values = [row["labels"].get(name) for row in rows]
            if kind == "number":
                values = [None if v is None else _exact(name, v) for v in values]
            columns.append(values)
        try:
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{self.root}: the labels of part {number}: {error}") from error
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Reads one sample; see `Source.read`.

        Raises:
            SampleError: the sample does not exist.
            DataError: the part is truncated.
            StorageError: the file system refused.
        """
        number = self._numbers.get(path)
        if number is None or not 0 <= row < self.parts.num_samples[number]:
            raise SampleError(f"{self.root} has no sample {row} in {path}")
        nbytes = self.parts.schema.sample_nbytes
        place = self.root / path
        # Opened per sample: as cheap as a lock, and no file stays open in a notebook.
        with refusals("read", place), open_regular(place, _CURE) as file:
            record = os.pread(file.fileno(), nbytes, row * nbytes)
        if len(record) != nbytes:
            raise DataError(f"{place} is damaged: it ends in sample {row}; {_CURE}")
        sample: Sample = {}
        at = 0
        for array in self._arrays:
            flat = np.frombuffer(record, np.uint8, array.nbytes, at)
            sample[array.name] = flat.view(array.numpy_dtype).reshape(array.shape)
            at += array.nbytes
        return sample


def _exact(name: str, value: Any) -> float:
    if float(value) != value:
        raise DataError(
            f"label {name!r} mixes fractions with integers beyond 2**53, such as {value}; write it "
            "as text"
        )
    return float(value)
