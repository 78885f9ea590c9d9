"""Reads coded records, from storage or a node's cache, and decodes them into the batch.

`CodedReader` stands around the reader that gets the stored bytes: that one sees a `RecordRows` as
its batch. A few records at a time, they come into memory of the thread, which stays in its cache,
and from there their pixels go to the batch, without the GIL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.blosc_chunk import thread_room
from msdata.dataset.coding import KIND, NBYTES, SOURCE, STEPS, TARGET, RecordDecoder
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from msdata.loader.read import MAX_GAP_NBYTES, BatchReader, Filling, RecordReader
from msdata.loader.ring import BatchBuffer
from msdata.schema import Schema

# Their stored bytes fit the second-level cache.
_RECORDS_AT_ONCE = 8


def batch_schema(split: Split, *, decode: bool) -> Schema:
    """The arrays of a batch: those of the split, or with codes in place of quantized ones.

    Raises:
        UsageError: codes are asked for, and nothing is quantized.
    """
    if decode:
        return split.schema
    quantized = {c.name for c in split.codings if c.quantize is not None}
    if not quantized:
        raise UsageError(
            f"decode=False needs quantized arrays, and {split.dataset.path} has none; make them "
            "with 'msdata pack --quantize 4'"
        )
    coding = split.dataset.manifest.coding
    arrays = (
        replace(a, dtype=coding[a.name].codes) if a.name in quantized else a
        for a in split.schema.arrays
    )
    return replace(split.schema, arrays=tuple(arrays))


def batch_steps(split: Split) -> dict[str, NDArray[np.float32]]:
    """Steps of the quantized arrays, float32 (samples, bands), by the name that batches have."""
    return {f"{c.name}_step": split.steps(c.name) for c in split.codings if c.quantize is not None}


class RecordRows:
    """Stored bytes of a batch's records, with the interface of a batch's rows.

    A record has memory only while a thread works on it; see `bind`.

    Args:
        offsets: int64 (n, arrays), where the arrays stand in their shards.
        nbytes: int64 (n, arrays), their stored bytes.

    Attributes:
        nbytes: int64 (n, arrays), the same.
        addresses: int64 (n, arrays), where the stored bytes are in memory.
    """

    def __init__(self, offsets: NDArray[np.int64], nbytes: NDArray[np.int64]) -> None:
        self.nbytes = nbytes
        self.addresses = np.zeros_like(nbytes)
        num_records, num_arrays = nbytes.shape
        self._first = offsets.min(axis=1)
        self._room = (offsets + nbytes).max(axis=1) - self._first
        self._starts = offsets - self._first[:, None]
        # One read then fetches a record, with the headers between its arrays.
        most = nbytes.sum(axis=1) + num_arrays * MAX_GAP_NBYTES
        self._is_joined = bool((self._room <= most).all())
        if not self._is_joined:
            self._room = nbytes.sum(axis=1)
            self._starts = np.cumsum(nbytes, axis=1) - nbytes
        self._memory: list[NDArray[np.uint8] | None] = [None] * num_records

    def bind(self, rows: NDArray[np.int64]) -> None:
        """Gives some records memory of this thread, which the next call takes again."""
        ends = np.cumsum(self._room[rows])
        room = thread_room("records", int(ends[-1]))
        starts = ends - self._room[rows]
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
            self._memory[row] = room[start:end]
        self.addresses[rows] = room.ctypes.data + starts[:, None] + self._starts[rows]

    def return_to_memory(self, row: int) -> None:
        """Ends what `point` did to a record."""
        memory = self._memory[row]
        assert memory is not None
        self.addresses[row] = memory.ctypes.data + self._starts[row]

    def point(self, rows: NDArray[np.int64], records: NDArray[np.int64]) -> None:
        """Lets records be decoded from where they are.

        Args:
            rows: int64 (k,), the records.
            records: int64 (k,), their addresses; the arrays stand there without gaps.
        """
        nbytes = self.nbytes[rows]
        self.addresses[rows] = records[:, None] + np.cumsum(nbytes, axis=1) - nbytes

    def parts(self, row: int) -> list[NDArray[np.uint8]]:
        """The stored bytes of one record, array by array."""
        memory = self._memory[row]
        assert memory is not None
        pairs = zip(self._starts[row].tolist(), self.nbytes[row].tolist(), strict=True)
        return [memory[start : start + nbytes] for start, nbytes in pairs]

    def reads(self, row: int) -> list[list[Any]]:
        """The buffers of each read of one record."""
        if self._is_joined:
            return [[self._memory[row]]]
        return [[part] for part in self.parts(row)]

    def spans(
        self, offsets: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets and bytes of each read of some records, int64 (k, reads)."""
        if self._is_joined:
            return self._first[rows][:, None], self._room[rows][:, None]
        return offsets, self.nbytes[rows]


@dataclass(kw_only=True)
class CodedFilling(Filling):
    """A batch whose records are read, then decoded.

    Attributes:
        inner: the reading of the stored bytes.
        records: what it fills.
        decoding: int64 (n, arrays, 5), table of `RecordDecoder` in the order of `inner`.
    """

    inner: Filling
    records: RecordRows
    decoding: NDArray[np.int64]


def coded_reader(split: Split, inner: RecordReader, schema: Schema) -> BatchReader:
    """The reader of a split's batches: `CodedReader` if it is coded, else `inner` itself."""
    return CodedReader(split, inner, schema) if split.is_coded else inner


class CodedReader:
    """Fills batches with the pixels, or the codes, of coded records.

    Args:
        split: a coded split.
        inner: reads stored bytes, from storage or from caches first.
        schema: the arrays of a batch, see `batch_schema`.
    """

    def __init__(self, split: Split, inner: RecordReader, schema: Schema) -> None:
        self._split, self._inner = split, inner
        self._decoder = RecordDecoder(split.codings, [a.dtype for a in schema.arrays])
        self._steps = [np.ascontiguousarray(split.steps(c.name)) for c in split.codings]
        # Entries of CODES are int16, int32 and pixels; the decoder counts from pixels.
        self._kinds = [
            None if c.quantize is None else (split.codes(c.name) + 1) % 3 for c in split.codings
        ]

    @property
    def is_streaming(self) -> bool:
        """Whether the C module decodes."""
        return self._decoder.is_native

    def plan(self, samples: NDArray[np.int64], buffer: BatchBuffer) -> CodedFilling:
        """Decides where each record of a batch comes from; see `SampleReader.plan`."""
        spans = self._split.spans
        records = RecordRows(spans.offsets(samples), self._split.array_nbytes[samples])
        inner = self._inner.plan(samples, records)
        table = np.empty((*records.nbytes.shape, 5), np.int64)
        table[:, :, NBYTES] = records.nbytes
        table[:, :, TARGET] = buffer.addresses[: len(samples)]
        for a, (steps, kinds) in enumerate(zip(self._steps, self._kinds, strict=True)):
            table[:, a, STEPS] = steps.ctypes.data + samples * steps.strides[0]
            table[:, a, KIND] = 0 if kinds is None else kinds[samples]
        return CodedFilling(
            buffer=buffer,
            samples=samples,
            shards=inner.shards,
            offsets=inner.offsets,
            files=inner.files,
            table=None,
            inner=inner,
            records=records,
            decoding=np.ascontiguousarray(table[inner.rows]),
            rows=inner.rows,
        )

    def fill(self, filling: CodedFilling, start: int, stop: int) -> None:
        """Reads and decodes the samples [start, stop) of a batch, in the order of its `rows`.

        Raises:
            DataError: a shard was truncated or altered, or a record does not decode.
            StorageError: the file system refused.
        """
        for low in range(start, stop, _RECORDS_AT_ONCE):
            high = min(low + _RECORDS_AT_ONCE, stop)
            filling.records.bind(filling.rows[low:high])
            self._inner.fill(filling.inner, low, high)
            self._decode(filling, low, high)

    def _decode(self, filling: CodedFilling, low: int, high: int) -> None:
        rows, num_arrays = filling.rows[low:high], filling.decoding.shape[1]
        filling.decoding[low:high, :, SOURCE] = filling.records.addresses[rows]
        table = filling.decoding.reshape(-1, 5)
        first, stop, again = low * num_arrays, high * num_arrays, -1
        while (first := self._decoder.decode(table, first, stop)) < stop:
            i, a = divmod(first, num_arrays)
            if i == again:
                self._refuse(filling, i, a)
            again, row = i, int(filling.rows[i])
            filling.records.return_to_memory(row)
            self._inner.read_again(filling.inner, i)
            filling.decoding[i, :, SOURCE] = filling.records.addresses[row]
            first = i * num_arrays

    def _refuse(self, filling: CodedFilling, i: int, a: int) -> None:
        row = int(filling.rows[i])
        sample, shard = (
            int(filling.samples[row]),
            int(self._split.spans.shards(filling.samples)[row]),
        )
        kind = int(filling.decoding[i, a, KIND])
        fault = self._decoder.fault(filling.records.parts(row)[a], kind, a) or "it does not decode"
        raise DataError(
            f"{self._split.files.path(shard)}: sample {self._split.sample_id(sample)} is corrupt: "
            f"array {self._split.codings[a].name!r}: {fault}; run "
            f"'msdata verify --repair {self._split.dataset.path}'"
        )
