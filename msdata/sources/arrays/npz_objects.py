"""A folder of NPZ files with one object each: arrays, and scalars that are its labels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.errors import DataError, SampleError, UsageError
from msdata.schema import Sample, Schema
from msdata.sources.arrays.formats import open_npz
from msdata.sources.arrays.labels import objects_table
from msdata.sources.arrays.options import SUFFIXES, ArrayOptions, arranged_sample, identifier
from msdata.sources.listing import NUM_LISTERS, paths_below

if TYPE_CHECKING:
    import pyarrow as pa


def with_files_told(root: Path, options: ArrayOptions) -> ArrayOptions:
    """The options, with `per_file` as the first NPZ file of a folder tells it.

    Args:
        root: file or folder that the user named.
        options: how to read it.

    Raises:
        UsageError: the file may be one object or several.
    """
    if options.per_file or not root.is_dir():
        return options
    paths = (Path(folder, n) for folder, _, names in os.walk(root) for n in sorted(names))
    files = (p for p in paths if p.suffix.lower() == ".npz" and not p.name.startswith("."))
    first, second = next(files, None), next(files, None)
    if first is None:
        return options
    arrays, _ = open_npz(first)
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    counts = {shape[0] for shape in shapes.values() if len(shape) > 1}
    if any(len(shape) == 1 and shape[0] in counts for shape in shapes.values()):
        return options
    if () in shapes.values():
        return replace(options, per_file="one")
    if second is None or any(len(shape) > 3 for shape in shapes.values()):
        return options
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no arrays"
    raise UsageError(
        f"{first} holds {told}: one object, or several? Give --per-file one or --per-file many"
    )


class NpzObjects:
    """Implements `Source` over NPZ files with one object each; the id is the file's name.

    Args:
        root: folder of the files, at any depth.
        options: what to read.

    Attributes:
        root: the folder; paths are relative to it.
        schema: None; it is inferred from the objects.
    """

    schema: Schema | None = None

    def __init__(self, root: Path, options: ArrayOptions) -> None:
        self.root = root.parent if root.is_file() else root
        self._given, self._options = root, options

    def scan(self) -> pa.Table:
        """Lists the objects with their labels; see `Source.scan`.

        Raises:
            UsageError: no object has what `--labels` names.
            DataError: the folder holds no such files.
        """
        paths = paths_below(self._given, SUFFIXES["npz"])
        if not paths:
            raise DataError(f"{self.root} holds no NPZ files (.npz)")
        with ThreadPoolExecutor(NUM_LISTERS, thread_name_prefix="scan") as pool:
            labels = list(pool.map(self._labels_of, paths))
        objects = [(path.rsplit(".", 1)[0].rsplit("/", 1)[-1], path, -1) for path in paths]
        table, names = objects_table(self._options, self._given, objects, labels)
        lacking = {n: sum(inside not in f for f in labels) for n, inside in names.items()}
        notes = [f"label {n!r} is missing in {c:,} files" for n, c in lacking.items() if c]
        return table.replace_schema_metadata({"notes": json.dumps(notes)})

    def _labels_of(self, path: str) -> dict[str, Any]:
        try:
            arrays, _ = open_npz(self.root / path)
        except DataError:
            return {}  # its read fails and is reported
        scalars = {n: a for n, a in arrays.items() if not a.shape and a.dtype.kind in "biufSU"}
        values = {name: np.asarray(array[...]).item() for name, array in scalars.items()}
        try:
            return {n: v.decode() if isinstance(v, bytes) else v for n, v in values.items()}
        except UnicodeDecodeError as error:
            where = self.root / path
            raise DataError(f"{where} has a label that is not UTF-8: {error}") from error

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Reads one object; see `Source.read`."""
        try:
            arrays, notes = open_npz(self.root / path)
        except DataError as error:
            raise SampleError(str(error)) from error
        inside = {n: a for n, a in arrays.items() if a.shape and a.dtype.kind in "biuf"}
        wanted = dict(self._options.arrays) or {identifier(name): name for name in inside}
        sample: Sample = {}
        for name, stored in wanted.items():
            if stored not in inside:
                told = "; ".join(notes) or f"it has {', '.join(inside) or 'none'}"
                raise SampleError(f"it has no array {stored!r} of numbers: {told}")
            array = np.asarray(inside[stored][...])
            sample[name] = arranged_sample(self._options, name, array)
        if not sample:
            raise SampleError(f"it has no array of numbers; {'; '.join(notes)}".rstrip("; "))
        return sample
