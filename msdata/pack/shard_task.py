"""One shard's work: the task for a worker, its result, and how it is packed.

Reads overlap in threads (`read_ahead.py`); one thread writes, in order. NumPy only: a worker starts
without pyarrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c_of_parts
from msdata.dataset.shard import Record, ShardSummary, ShardWriter
from msdata.errors import SampleError
from msdata.pack.encode import encode_sample
from msdata.pack.prepare import Preparation, prepare
from msdata.pack.read_ahead import NUM_READERS, read_in_order, read_sample
from msdata.schema import Sample, Schema
from msdata.sources.source import PackedSample, Source

if TYPE_CHECKING:
    from msdata.dataset.coding import ArrayCoding

# A reader hands over several small objects at a time, because handing over takes 10 µs.
_RUN_NBYTES = 1 << 19
_MAX_RUN = 64


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """The objects of one shard, in order.

    Attributes:
        number: the task's number, also the row group of the pack's plan.
        path: the shard's final name.
        container: "tar" or "hdf5".
        chunked: HDF5 with one chunk per sample.
        schema: the arrays.
        preparation: how to treat NaN.
        sample_ids: id of each object.
        locations: (path, row) of each object, for `Source.read`.
        labels: catalog columns of each object.
        scalar_names: names in the JSON member of the numbers in the objects' dicts.
        codings: how the arrays are stored; empty for a data set that is not coded.
        steps: float32 (objects, bands) by array, known from a first pack; None measures them.
    """

    number: int
    path: Path
    container: str
    chunked: bool
    schema: Schema
    preparation: Preparation
    sample_ids: Sequence[str]
    locations: Sequence[tuple[str, int]]
    labels: Sequence[Mapping[str, Any]]
    scalar_names: Mapping[str, str]
    codings: tuple[ArrayCoding, ...] = ()
    steps: Mapping[str, NDArray[np.float32]] | None = None


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The result of a task.

    Attributes:
        number: the task's number.
        summary: the finished shard; None if all objects were rejected, which leaves no file.
        accepted: int64 (samples,), positions in the task of the samples, in shard order.
        columns: index columns of the samples, by name; `scalar_x` for the dicts' numbers.
        rejected: (position in the task, reason) of the unusable objects.
    """

    number: int
    summary: ShardSummary | None
    accepted: np.ndarray[Any, np.dtype[np.int64]]
    columns: Mapping[str, Any]
    rejected: Sequence[tuple[int, str]]


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An unusable object of a shard that is not finished yet.

    Attributes:
        number: the task's number.
        position: the object's position in the task.
        reason: why the object is unusable.
    """

    number: int
    position: int
    reason: str


class Progress(Protocol):
    """Told of each object; may raise to stop the work."""

    def accept(self, nbytes: int) -> None:
        """Counts one sample of `nbytes` bytes."""

    def reject(self, rejection: Rejection) -> None:
        """Counts an unusable object."""


class _Ready(NamedTuple):
    """A prepared object, and its index columns."""

    record: Record
    columns: Mapping[str, Any]


def run_tasks(
    tasks: Iterator[ShardTask],
    source: Source,
    progress: Progress,
    *,
    deliver: Callable[[ShardResult], None],
) -> None:
    """Packs shards one after the other; each is flushed while the next is packed.

    Args:
        tasks: drawn one by one.
        source: the source that holds the objects.
        progress: told of each object.
        deliver: given each result, from another thread.

    Raises:
        StorageError: the file system refused.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="complete") as executor:
        completing: Future[None] | None = None
        for task in tasks:
            packed = pack_shard(task, source, progress)
            try:
                if completing is not None:
                    completing.result()
                completing = executor.submit(lambda p: deliver(p.complete()), packed)
            except BaseException:
                packed.writer.abort()
                raise
        if completing is not None:
            completing.result()


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """A shard whose samples are written, but which has no name yet.

    Attributes:
        task: its task.
        writer: its writer, to be finished or aborted.
        rows: position in the task and index columns of each sample.
        rejected: (position in the task, reason) of the unusable objects.
    """

    task: ShardTask
    writer: ShardWriter
    rows: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)

    def complete(self) -> ShardResult:
        """Flushes the shard to the disk and names it; removes a shard without samples.

        Raises:
            StorageError: the file system refused.
        """
        summary = None
        try:
            if self.rows:
                summary = self.writer.finish()
        finally:
            if summary is None:
                self.writer.abort()
        names = self.rows[0][1].keys() if self.rows else ()
        return ShardResult(
            number=self.task.number,
            summary=summary,
            accepted=np.array([position for position, _ in self.rows], np.int64),
            columns={name: [columns[name] for _, columns in self.rows] for name in names},
            rejected=self.rejected,
        )


def pack_shard(task: ShardTask, source: Source, progress: Progress) -> PackedShard:
    """Reads, prepares and writes the objects of one shard.

    Args:
        task: the task of the shard.
        source: the source that holds the objects.
        progress: told of each object.

    Returns:
        The shard, to complete while the next one is packed.

    Raises:
        StorageError: the file system refused.
    """
    codes: tuple[str, ...] | None = None
    num_told = 0
    while True:
        packed = PackedShard(task=task, writer=_open_writer(task))
        try:
            codes = _fill(packed, source, progress, codes, num_told)
        except BaseException:
            packed.writer.abort()
            raise
        if codes is None:
            return packed
        # A dataset of HDF5 has one dtype, and a later sample needs a wider one than the first.
        packed.writer.abort()
        num_told = len(packed.rows) + len(packed.rejected)


def _fill(
    packed: PackedShard,
    source: Source,
    progress: Progress,
    codes: tuple[str, ...] | None,
    num_told: int,
) -> tuple[str, ...] | None:
    """Writes the samples of a shard.

    Args:
        packed: the shard.
        source: the source that holds the objects.
        progress: told of each object from number `num_told`.
        codes: dtypes to store the arrays as; None for those of each sample.
        num_told: objects that an earlier try told of.

    Returns:
        None if the shard is whole, else the dtypes that it needs.
    """
    task, sample_nbytes = packed.task, packed.task.schema.sample_nbytes
    is_uniform = task.container == "hdf5" and bool(task.codings)
    outcomes = read_in_order(
        len(task.sample_ids), _reader(task, source, codes), run_length=_run_length(task)
    )
    for position, outcome in outcomes:
        try:
            if isinstance(outcome, SampleError):
                raise outcome
            if is_uniform:
                codes = codes or outcome.record.codes
                if outcome.record.codes != codes:
                    from msdata.dataset.coding import wider

                    return tuple(map(wider, codes, outcome.record.codes))
            packed.writer.append(outcome.record)
        except SampleError as error:
            reason = str(error)
            packed.rejected.append((position, reason))
            if position >= num_told:
                progress.reject(Rejection(number=task.number, position=position, reason=reason))
            continue
        packed.rows.append((position, outcome.columns))
        if position >= num_told:
            progress.accept(sample_nbytes)
    return None


def _open_writer(task: ShardTask) -> ShardWriter:
    # Each worker of a pack imports the one that it needs.
    if task.container == "tar":
        from msdata.dataset.tar import TarShardWriter

        return TarShardWriter(task.path, task.schema, task.codings)
    count = len(task.sample_ids)
    if task.codings:
        from msdata.dataset.hdf5_coded import CodedHdf5Writer

        return CodedHdf5Writer(
            task.path, task.schema, task.codings, max_samples=count, chunked=task.chunked
        )
    from msdata.dataset.hdf5 import Hdf5ShardWriter

    return Hdf5ShardWriter(task.path, task.schema, max_samples=count, chunked=task.chunked)


def _run_length(task: ShardTask) -> int:
    """How many objects a reader hands over at a time; short tasks are shared by all readers."""
    share = len(task.sample_ids) // (2 * NUM_READERS)
    return max(1, min(_RUN_NBYTES // task.schema.sample_nbytes, share, _MAX_RUN))


def _reader(
    task: ShardTask, source: Source, codes: tuple[str, ...] | None
) -> Callable[[int], _Ready]:
    """Returns the function that reads and prepares the object at a position of the task."""
    schema, names = task.schema, task.schema.names
    # Nearly all objects have no NaN, so they share these values.
    no_sums = {f"{prefix}_{name}": 0 for prefix in ("filled", "nan") for name in names}

    def read(position: int) -> _Ready:
        path, row = task.locations[position]
        labels, sample_id = task.labels[position], task.sample_ids[position]
        sample = read_sample(source, path, row, labels)
        prepared = prepare(sample, schema, task.preparation)
        steps = _steps_at(task, sample, position) if task.codings else {}
        stored = encode_sample(prepared.arrays, task.codings, steps, codes)
        crc = crc32c_of_parts(stored.arrays)
        metadata = {
            "sample_id": sample_id,
            **labels,
            **{task.scalar_names[n]: _json_number(v) for n, v in prepared.scalars.items()},
            "missing_bands": list(prepared.missing_bands),
            "num_filled": _by_array(names, prepared.num_filled),
            "num_nan": _by_array(names, prepared.num_nan),
            "crc32c": crc,
            **stored.metadata,
        }
        columns = {
            "crc32c": crc,
            "missing_bands": ",".join(prepared.missing_bands),
            **no_sums,
            **_sums("filled", names, prepared.num_filled),
            **_sums("nan", names, prepared.num_nan),
            **{f"scalar_{name}": v for name, v in prepared.scalars.items()},
            **stored.columns,
        }
        record = Record(
            sample_id=sample_id,
            arrays=stored.arrays,
            crc32c=crc,
            metadata=metadata,
            codes=stored.codes,
        )
        return _Ready(record=record, columns=columns)

    return read


def _steps_at(task: ShardTask, sample: Sample, position: int) -> Mapping[str, NDArray[np.float32]]:
    """Steps that are known before the pixels are measured, by array."""
    if task.steps is not None:
        return {name: steps[position] for name, steps in task.steps.items()}
    if not isinstance(sample, PackedSample):
        return {}
    found = ((c, sample.steps.get(c.name)) for c in task.codings)
    # The same quantization gives the same codes; another one measures the noise again.
    return {c.name: said[1] for c, said in found if said and said[0] == c.quantize}


def _json_number(value: float | None) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None


def _by_array(names: Sequence[str], counts: Sequence[tuple[int, ...]]) -> dict[str, list[int]]:
    if not any(counts):
        return {}
    return {name: list(c) for name, c in zip(names, counts, strict=True) if c}


def _sums(prefix: str, names: Sequence[str], counts: Sequence[tuple[int, ...]]) -> dict[str, int]:
    if not any(counts):
        return {}
    return {f"{prefix}_{n}": sum(c) for n, c in zip(names, counts, strict=True)}
