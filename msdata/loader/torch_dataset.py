"""A split as a map-style `torch.utils.data.Dataset`, for a DataLoader of your own.

It takes any sampler, any order and PyTorch's worker processes. Compared with `Loader`, every batch
takes new memory, and one more copy if workers send it. Pass `collate` as `collate_fn`: a batch is
read into one buffer, and `collate` returns that buffer instead of stacking its rows.

    dataset = msdata.TorchDataset(data.split("train"))
    DataLoader(dataset, batch_size=128, shuffle=True, num_workers=2, collate_fn=dataset.collate)

This is the only file of the room that imports torch; it is imported with `TorchDataset`, and for
`Loader(as_torch=True)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from msdata.dataset.dataset import Split, as_row
from msdata.errors import MissingPackageError, UsageError
from msdata.loader.coded_read import coded_reader
from msdata.loader.columns import BatchColumns
from msdata.loader.read import BatchReader, SampleReader
from msdata.loader.ring import BatchBuffer

try:
    import torch
    from torch.utils.data import Dataset
except ImportError as error:
    raise MissingPackageError(
        "TorchDataset needs torch: run pip install 'msdata[train]'"
    ) from error

TorchSample = dict[str, Any]
_MAX_INTEGER = (1 << 63) - 1


def collate(batch: Sequence[TorchSample]) -> TorchSample:
    """Joins samples into a batch; without a copy if they are consecutive rows of one buffer.

    Args:
        batch: the result of `TorchDataset.__getitems__`, or any samples of one `TorchDataset`.

    Returns:
        By name: tensors with the batch as first axis; numbers as a tensor (n,); text as a list.
    """
    return {name: _joined([sample[name] for sample in batch]) for name in batch[0]}


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        rows = _rows_of_one_buffer(values)
        return torch.stack(values) if rows is None else rows
    # Through NumPy, whose floats are double: torch.tensor would round labels to single precision.
    return values if isinstance(first, str) else torch.from_numpy(np.array(values))


def _rows_of_one_buffer(rows: list[torch.Tensor]) -> torch.Tensor | None:
    """The tensor whose consecutive rows these are; None if they are not."""
    first = rows[0]
    start, size = first.data_ptr(), first.numel() * first.element_size()
    storage = first.untyped_storage()
    for i, row in enumerate(rows):
        if row.data_ptr() != start + i * size or not row.is_contiguous():
            return None
        # Separate allocations may be neighbors by chance.
        if row.untyped_storage().data_ptr() != storage.data_ptr():
            return None
    shape, strides = (len(rows), *first.shape), (first.numel(), *first.stride())
    return first.as_strided(shape, strides)


class TorchDataset(Dataset[TorchSample]):
    """The samples of a split, by number, as tensors.

    It can be pickled and used on both sides of a fork: every process opens its own files.

    Args:
        split: the samples; `msdata.open(path).split("train")`.
        columns: columns of the index to include; None means `redshift` if it exists.
        fill_nulls: replacement of null, by column, such as `{"fold": -1}`: neither tensors nor
            PyTorch's collation have null. Floats need none, their null is NaN.

    Raises:
        MissingPackageError: torch is not installed.
        UsageError: a column is missing, has nulls without an entry in `fill_nulls`, or has a type
            that tensors do not hold.
        DataError: a shard is missing or truncated.
    """

    # Reachable from the data set, so that users import one name.
    collate: Callable[[Sequence[TorchSample]], TorchSample] = staticmethod(collate)

    def __init__(
        self,
        split: Split,
        columns: Sequence[str] | None = None,
        *,
        fill_nulls: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(split, Split):
            raise UsageError(
                f"split must be a Split, got {type(split).__name__}; give "
                "msdata.open(path).split('train')"
            )
        split.files.check_all()
        self._split = split
        self._fill_nulls = dict(fill_nulls or {})
        self._columns = BatchColumns(split, columns, self._fill_nulls)
        check_columns(split, self._columns, "replace them with fill_nulls=")
        self._reader: BatchReader | None = None
        self._gaps: Sequence[int] | None = None
        self._reader_pid = 0

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, number: int) -> TorchSample:
        """One sample.

        Args:
            number: row within the split; negative counts from the end.

        Returns:
            Arrays as tensors; labels as Python numbers; ids and other text as `str`.

        Raises:
            TypeError: the number is not an integer.
            IndexError: the number is out of range.
            DataError: its shard is missing or truncated.
        """
        return self.__getitems__((number,))[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[TorchSample]:
        """A batch of samples in one piece of new memory; PyTorch calls it for batches.

        Args:
            numbers: rows within the split, in any order; negative counts from the end.

        Raises:
            TypeError: a number is not an integer.
            IndexError: a number is out of range.
            DataError: a shard is missing or truncated.
        """
        if not len(numbers):
            return []
        place = f"split {self._split.name!r}"
        rows = np.array([as_row(number, len(self), place) for number in numbers], np.int64)
        reader = self._open_reader()
        buffer = BatchBuffer(self._split.schema, len(rows), self._gaps)
        reader.fill(reader.plan(rows, buffer), 0, len(rows))
        values = {n: torch.from_numpy(a).unbind(0) for n, a in buffer.arrays.items()}
        for name, column in self._columns.take(rows).items():
            values[name] = column.tolist()
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    def _open_reader(self) -> BatchReader:
        # A forked worker inherits the parent's reader, whose locks a thread may have held.
        if self._reader is None or self._reader_pid != os.getpid():
            storage = SampleReader(self._split)
            self._reader = coded_reader(self._split, storage, self._split.schema)
            self._gaps, self._reader_pid = storage.gaps, os.getpid()
        return self._reader

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as a path: the process that unpickles it, such as a worker, opens it again."""
        return _reopened, (self._split, self._columns.names, self._fill_nulls)


def _reopened(split: Split, columns: Sequence[str], fill_nulls: Mapping[str, Any]) -> TorchDataset:
    return TorchDataset(split, columns, fill_nulls=fill_nulls)


def as_tensors(batch: Mapping[str, Any]) -> TorchSample:
    """A loader's batch as tensors that share its memory, and lists of text."""
    return {
        name: torch.from_numpy(values) if values.dtype.kind in "biuf" else values.tolist()
        for name, values in batch.items()
    }


def check_columns(split: Split, columns: BatchColumns, cure: str) -> None:
    """Refuses columns with values that tensors do not hold.

    Args:
        split: the samples.
        columns: their columns.
        cure: what to do about nulls; ends with the name of an argument that takes a dict.

    Raises:
        UsageError: a column has nulls, or a type that tensors do not hold.
    """
    for name, count in columns.null_counts().items():
        raise UsageError(
            f"column {name!r} has {count:,} nulls in split {split.name!r}, which tensors cannot "
            f"hold; {cure}{{{name!r}: ...}}"
        )
    for name, values in columns.numbers().items():
        if values.dtype.kind not in "biuf":
            raise UsageError(
                f"column {name!r} holds {split.column_type(name)}, which tensors cannot hold; read "
                f"it with split.table([{name!r}])"
            )
        if values.dtype.kind == "u" and int(values.max(initial=0)) > _MAX_INTEGER:
            raise UsageError(
                f"column {name!r} holds {values.max()}, and PyTorch's integers end at 2**63 - 1; "
                f"read it with split.numbers({name!r}, np.uint64)"
            )
