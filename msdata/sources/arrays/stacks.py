"""Files that hold many samples in arrays of shape (samples, ...): HDF5, NPZ, Zarr, Parquet.

All files of a source hold the same arrays. An array of one axis is a label, others are arrays of
the samples. How a file is opened is told by one small module per format.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.errors import DataError, SampleError, UsageError
from msdata.schema import Sample, Schema, Survey
from msdata.sources.arrays.formats import StackArray, open_hdf5, open_npz, open_zarr
from msdata.sources.arrays.labels import label_column, labeled_table
from msdata.sources.arrays.layouts import KnownLayout, known_layout, with_bands
from msdata.sources.arrays.options import (
    NAMES,
    SUFFIXES,
    ArrayOptions,
    arranged,
    identifier,
    is_zarr,
)
from msdata.sources.listing import paths_below

if TYPE_CHECKING:
    import pyarrow as pa


# How `datasets` names the files of a split.
_SPLIT_NAME = re.compile(r"(train|validation|val|test)-[0-9]{5}-of-[0-9]{5}[.]parquet")
# Opens a file: its arrays by name, and why others are left out.
OpenStack = Callable[[Path], tuple[Mapping[str, StackArray], list[str]]]


def _opener(options: ArrayOptions) -> OpenStack:
    if options.kind == "parquet":
        from msdata.sources.arrays.parquet_stack import open_parquet

        return lambda path: open_parquet(path, options)
    return {"hdf5": open_hdf5, "npz": open_npz, "zarr": open_zarr}[options.kind]


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What a file holds for samples.

    Attributes:
        num_samples: length of the first axis of all arrays.
        arrays: names in the file, by the samples' names.
        surveys: what they become.
        shapes: of one sample in the file, by the samples' names.
        axes: order of their axes, see `ArrayOptions.channels_first`.
        labels: names in the file, by column.
        notes: what was left out or turned.
    """

    num_samples: int
    arrays: Mapping[str, str]
    surveys: tuple[Survey, ...]
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, tuple[int, ...] | None]
    labels: Mapping[str, str]
    notes: tuple[str, ...]


class StackFiles:
    """Implements `Source` over files of stacked arrays; keeps them open.

    Args:
        root: a file, a Zarr group, or a folder with several.
        options: what to read.

    Attributes:
        root: the folder; paths are relative to it.
        schema: what every sample is; known after `scan`.
    """

    def __init__(self, root: Path, options: ArrayOptions) -> None:
        is_one = root.is_file() or root.name.lower().endswith(SUFFIXES["zarr"])
        is_one = is_one or (options.kind == "zarr" and is_zarr(root))
        self.root = root.parent if is_one else root
        self.schema: Schema | None = None
        self._given, self._options, self._is_one = root, options, is_one
        self._open = _opener(options)
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[Mapping[str, StackArray], _Content]] = {}

    def __reduce__(self) -> tuple[type[StackFiles], tuple[Path, ArrayOptions]]:
        return StackFiles, (self._given, self._options)

    def scan(self) -> pa.Table:
        """Lists the samples with their labels; see `Source.scan`.

        Raises:
            UsageError: `--arrays`, `--labels` or `--layout` do not fit the files.
            DataError: a file is broken, or its arrays differ from those of the first.
        """
        import pyarrow as pa

        paths = self._paths()
        if not paths:
            raise DataError(f"{self.root} holds no Zarr groups named *.zarr; give one of them")
        tables, first = [], None
        for path in paths:
            file, content = self._content(path)
            first = first or content
            if (content.surveys, content.labels.keys()) != (first.surveys, first.labels.keys()):
                raise DataError(
                    f"{self.root / path} holds {_told(content)}, but {self.root / paths[0]} holds "
                    f"{_told(first)}; name what all files have with --arrays and --labels"
                )
            prefix = "" if len(paths) == 1 else path.rsplit(".", 1)[0].replace("/", "_") + "-"
            columns = {
                name: label_column(f"{self.root / path}: {inside}", file[inside][...])
                for name, inside in content.labels.items()
            }
            rows = np.arange(content.num_samples)
            tables.append(labeled_table(self._options, prefix, path, rows, columns))
        assert first is not None
        self.schema = Schema(name="inferred", arrays=first.surveys)
        tables, notes = _with_splits(paths, tables)
        table = pa.concat_tables(tables, promote_options="permissive")
        table = table.sort_by([("sample_id", "ascending"), ("path", "ascending")])
        return table.replace_schema_metadata({"notes": json.dumps((*first.notes, *notes))})

    def _paths(self) -> list[str]:
        if self._is_one:
            return [self._given.name]
        ends = SUFFIXES[self._options.kind]
        if self._options.kind == "zarr":
            return [str(p.relative_to(self.root)) for p in sorted(self.root.rglob("*.zarr"))]

        paths = paths_below(self.root, ends)
        if not paths:
            raise DataError(f"{self.root} holds no {NAMES[self._options.kind]} ({', '.join(ends)})")
        return paths

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Reads one sample; see `Source.read`."""
        try:
            file, content = self._content(path)
        except (DataError, UsageError) as error:
            raise SampleError(str(error)) from error
        if not 0 <= row < content.num_samples:
            raise SampleError(f"{path} has {content.num_samples} samples, not a sample {row}")
        sample: Sample = {}
        for name, inside in content.arrays.items():
            try:
                found = np.asarray(file[inside][row])
            except (OSError, ValueError, RuntimeError) as error:
                raise SampleError(f"array {inside!r} is unreadable: {error}") from error
            if found.size == math.prod(content.shapes[name]) and name in self._options.shapes:
                found = found.reshape(content.shapes[name])
            sample[name] = arranged(found, content.axes[name])
        return sample

    def _content(self, path: str) -> tuple[Mapping[str, StackArray], _Content]:
        with self._lock:
            opened = self._opened.get(path)
            if opened is None:
                where = self.root / path
                try:
                    file, notes = self._open(where)
                    opened = file, _content_of(where, file, self._options, notes)
                except DataError as error:
                    told = "" if str(error).startswith(f"{where}") else f"cannot pack {where}: "
                    raise DataError(f"{told}{error}") from error
                self._opened[path] = opened
            return opened


def _told(content: _Content) -> str:
    arrays = [f"{s.name} {s.shape} {s.dtype}" for s in content.surveys]
    return ", ".join([*arrays, *content.labels])


def _with_splits(paths: list[str], tables: list[pa.Table]) -> tuple[list[pa.Table], list[str]]:
    """The tables with the splits that the files' names say, if all do; and a note."""
    import pyarrow as pa

    found = [_SPLIT_NAME.fullmatch(path.rsplit("/", 1)[-1]) for path in paths]
    names = ["val" if m and m[1] == "validation" else m and m[1] for m in found]
    if not all(names) or len(set(names)) == 1:
        return tables, []
    tables = [
        table.append_column("split", pa.repeat(str(name), table.num_rows))
        for table, name in zip(tables, names, strict=True)
    ]
    return tables, ["splits are those of the files' names"]


def _content_of(
    path: Path, file: Mapping[str, StackArray], options: ArrayOptions, notes: list[str]
) -> _Content:
    known = known_layout(file) if not options.arrays else KnownLayout()
    count = _num_samples(path, file, options, notes)
    arrays = dict(options.arrays or known.arrays or _all_arrays(file, count, notes))
    labels = _labels(path, file, options, count)
    surveys, axes, shapes = [], {}, {}
    for name, inside in arrays.items():
        found = _checked(path, file, inside, "--arrays")
        shape = tuple(found.shape)
        if shape[:1] != (count,):
            raise UsageError(f"{path}: {inside} has shape {shape}, expected ({count}, ...)")
        if np.dtype(found.dtype).kind not in "biuf":
            raise UsageError(f"{path}: {inside} holds {found.dtype}, not numbers")
        try:
            inner = shapes[name] = options.sample_shape(name, shape[1:])
            is_arranged = getattr(found, "has_bands_first", False)
            axes[name] = None if is_arranged else options.channels_first(name, inner)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        turned = arranged(np.broadcast_to(np.int8(0), inner), axes[name]).shape
        if axes[name] is not None:
            how = "channels last" if turned[1:] != inner else "without channels"
            notes.append(f"array {name!r} is stored {how}, {inner}: packed as {turned}")
        dtype = np.dtype(found.dtype).newbyteorder("<").str
        survey = Survey(name=name, shape=turned, dtype=dtype)
        surveys.append(with_bands(survey, found, notes) or known.describe(survey))
    return _Content(
        num_samples=count,
        arrays=arrays,
        surveys=tuple(surveys),
        shapes=shapes,
        axes=axes,
        labels=labels,
        notes=(*known.notes, *notes),
    )


def _num_samples(
    path: Path, file: Mapping[str, StackArray], options: ArrayOptions, notes: list[str]
) -> int:
    """The length that the named arrays, or most of the numbers in the file, have."""
    named = [_checked(path, file, inside, "--arrays") for inside in options.arrays.values()]
    lengths: Counter[int] = Counter()
    for found in named or file.values():
        if len(found.shape) > 1:
            lengths[found.shape[0]] += int(np.prod(found.shape, dtype=np.int64))
    count = lengths.most_common(1)[0][0] if lengths else 0
    if not count:
        told = [*(f"{name} {tuple(a.shape)}" for name, a in file.items()), *notes]
        raise DataError(
            f"it holds no array of shape (samples, ...), but {', '.join(told) or 'none'}; "
            "give the file with the images; a table of labels is for --catalog"
        )
    return count


def _all_arrays(file: Mapping[str, StackArray], count: int, notes: list[str]) -> dict[str, str]:
    """All arrays of numbers with one entry per sample, that are not known to be no flux."""
    from msdata.sources.fits_image import AUXILIARY

    arrays: dict[str, str] = {}
    for inside, found in file.items():
        if len(found.shape) < 2 or np.dtype(found.dtype).kind not in "biuf":
            continue
        if found.shape[0] != count:
            notes.append(f"{inside} {tuple(found.shape)} is left out: {count} samples")
        elif AUXILIARY.search(inside.upper().replace("_", " ")):
            notes.append(
                f"{inside} is left out: it is named like weights or a mask; --arrays takes it"
            )
        else:
            arrays[identifier(inside)] = inside
    if not arrays:
        told = [f"{name} {np.dtype(a.dtype)}" for name, a in file.items() if len(a.shape) > 1]
        raise DataError(
            f"it holds no images of numbers, but {', '.join(told)}; name an array with --arrays"
        )
    return arrays


def _labels(
    path: Path, file: Mapping[str, StackArray], options: ArrayOptions, count: int
) -> dict[str, str]:
    if options.labels is None:
        return {
            name.strip("/").replace("/", "_"): name
            for name, found in file.items()
            if tuple(found.shape) == (count,) and np.dtype(found.dtype).kind in "biufSUO"
        }
    labels = options.named_labels()
    for inside in labels.values():
        found = _checked(path, file, inside, "--labels")
        if tuple(found.shape) != (count,):
            raise UsageError(
                f"{path}: label {inside} must have shape ({count},), got {tuple(found.shape)}"
            )
    return labels


def _checked(path: Path, file: Mapping[str, StackArray], name: str, option: str) -> StackArray:
    if name not in file:
        raise UsageError(f"{path} has no {name!r} ({option}); it has {', '.join(sorted(file))}")
    return file[name]
