"""Contestants with threads or a pipeline of their own: msdata, DALI, Grain, SPDL, h5py, Zarr."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.protocol import (
    Arrays,
    Batch,
    Epochs,
    Reading,
    fill_arrays,
    read_object,
    read_objects,
    record_of,
)
from benchmarks.peers.torch_loading import FILE, epochs_of, npy_path, write_tars

DALI_BUFFER_SAMPLES = 1024
_ARRAY_RECORD = "samples.arrayrecord"
_ZARR_SHARD_SAMPLES = 64


def pack_ours(objects: Path, out: Path, reading: Reading, *, options: tuple[str, ...] = ()) -> None:
    """`msdata pack` as a user types it, no object rejected; `options` are more of it.

    Raises:
        SystemExit: it failed.
    """
    from msdata.cli import main
    from msdata.core.arrow_start import start_arrow_alone

    start_arrow_alone()
    words = ["--split", "1,0,0", "--max-nan-fraction", "1", "--quiet", *options]
    jobs = ["--jobs", str(reading.num_workers)]
    catalog = ["--catalog", str(objects / "catalog.csv")]
    code = main(["pack", str(objects), str(out), *catalog, *words, *jobs])
    if code:
        raise SystemExit(f"msdata pack ended with {code}")


def decode_ours(data: Path, reading: Reading) -> Iterator[tuple[Arrays, Arrays]]:
    """Coded samples read one by one, and what is allowed: half a step of their band."""
    import msdata

    split = msdata.open(data).split("train")
    steps = {coding.name: split.steps(coding.name) for coding in split.codings}
    rows = {split.sample_id(row): row for row in range(len(split))}
    for sample_id in sorted(rows):
        row = rows[sample_id]
        sample, bounds = split[row], {}
        for name in reading.arrays:
            step = steps[name][row].astype(np.float64)
            planes = step.reshape(-1, *[1] * (sample[name].ndim - 1))
            # Each operation of the coding rounds to float32.
            rounding = 4 * np.finfo(np.float32).eps * np.abs(sample[name])
            bounds[name] = planes / 2 + np.where(planes > 0, rounding, 0)
        yield {name: np.ascontiguousarray(sample[name]) for name in reading.arrays}, bounds


def _numbers(ids: NDArray[np.str_]) -> NDArray[np.int64]:
    """Ids of digits as numbers; `astype` takes longer for them than the loader for the batch."""
    codes = ids.view(np.uint32).reshape(len(ids), ids.dtype.itemsize // 4)
    digits = codes.astype(np.int64) - ord("0")
    return digits @ 10 ** np.arange(digits.shape[1])[::-1]


@contextmanager
def load_ours(
    data: Path,
    reading: Reading,
    *,
    policy: str = "shuffle",
    cache: str | None = None,
    prefetch: int = 2,
) -> Iterator[Epochs]:
    """`msdata.Loader` over the whole split."""
    import msdata

    split = msdata.open(data).split("train")
    with msdata.Loader(
        split,
        reading.batch_size,
        seed=reading.seed,
        policy=policy,
        topology=msdata.Topology(),
        cache=cache,
        threads=reading.num_workers,
        prefetch=prefetch,
        num_valid_batches=1,
        columns=[],
    ) as loader:

        def epoch(number: int) -> Iterator[Batch]:
            loader.set_epoch(number)
            for batch in loader:
                yield _numbers(batch["sample_id"]), {name: batch[name] for name in reading.arrays}

        yield epoch


def _dali_epochs(define: Any, reading: Reading, read_ids: Any) -> Epochs:
    """The batches of a pipeline whose outputs are the arrays in order, then what gives the ids."""
    from nvidia.dali import pipeline_def

    options = {"batch_size": reading.batch_size, "num_threads": reading.num_workers}
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline = pipeline_def(define, **options, device_id=None, seed=reading.seed)()
        pipeline.build()

    def epoch(_number: int) -> Iterator[Batch]:
        for _ in range(reading.num_samples // reading.batch_size):
            *arrays, last = pipeline.run()
            found = [np.asarray(output.as_tensor()) for output in arrays]
            yield read_ids(last), dict(zip(reading.arrays, found, strict=True))

    return epoch


@contextmanager
def open_dali_numpy(data: Path, reading: Reading) -> Iterator[Epochs]:
    """DALI's `readers.numpy` on the CPU, one reader per array."""
    from nvidia.dali import fn

    numbers = range(reading.num_samples)

    def define() -> Any:
        arrays = [
            # Readers that shuffle after each epoch do so alike, so arrays of a sample meet.
            fn.readers.numpy(
                files=[str(npy_path(data, name, n)) for n in numbers], shuffle_after_epoch=True
            )
            for name in reading.arrays
        ]
        return (*arrays, fn.get_property(arrays[0], key="source_info"))

    def ids(output: Any) -> Any:
        names = [bytes(np.asarray(output[row])).decode() for row in range(len(output))]
        return np.array([int(Path(name).stem) for name in names], np.int64)

    yield _dali_epochs(define, reading, ids)


def write_dali_tars(objects: Path, out: Path, reading: Reading) -> None:
    """WebDataset's tars, each with the index that DALI's tool `wds2idx` writes."""
    import tarfile

    write_tars(objects, out, reading)
    for path in sorted(out.glob("*.tar")):
        members: dict[str, list[str]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = Path(member.name).name.partition(".")
                text = f"{suffix} {member.offset_data} {member.size} {member.name}"
                members.setdefault(key, []).append(text)
        lines = [f"v1.2 {len(members)}", *(" ".join(texts) for texts in members.values())]
        path.with_suffix(".idx").write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def open_dali_webdataset(data: Path, reading: Reading) -> Iterator[Epochs]:
    """DALI's `readers.webdataset` on the CPU."""
    from nvidia.dali import fn

    tars = sorted(str(path) for path in data.glob("*.tar"))

    def define() -> Any:
        members = fn.readers.webdataset(
            paths=tars,
            index_paths=[tar[:-4] + ".idx" for tar in tars],
            ext=[*(f"{name}.npy" for name in reading.arrays), "id.npy"],
            random_shuffle=True,
            initial_fill=DALI_BUFFER_SAMPLES,
        )
        return tuple(fn.decoders.numpy(member) for member in members)

    yield _dali_epochs(
        define, reading, lambda out: np.asarray(out.as_tensor()).reshape(-1).astype(np.int64)
    )


def write_hdf5(objects: Path, out: Path, reading: Reading) -> None:
    """A contiguous HDF5 dataset per array."""
    import h5py

    out.mkdir()
    with h5py.File(out / FILE, "w") as file:
        targets = {
            name: file.create_dataset(name, (reading.num_samples, *shape), dtype)
            for name, (shape, dtype) in reading.arrays.items()
        }
        fill_arrays(targets, objects, reading)


@contextmanager
def open_hdf5_straight(data: Path, reading: Reading) -> Iterator[Epochs]:
    """Each sample read by h5py straight into its row of a preallocated batch."""
    import h5py

    with h5py.File(data / FILE, "r") as file:
        sets = {name: file[name] for name in reading.arrays}
        batch = reading.empty_batch()

        def epoch(number: int) -> Iterator[Batch]:
            for ids in reading.batches(number):
                for name, target in batch.items():
                    for row, sample in enumerate(ids.tolist()):
                        sets[name].read_direct(target[row], sample)
                yield ids, {name: array[: len(ids)] for name, array in batch.items()}

        yield epoch


def write_array_record(objects: Path, out: Path, reading: Reading) -> None:
    """Records one by one and uncompressed, as advised for random access to such data."""
    from array_record.python.array_record_module import ArrayRecordWriter

    out.mkdir()
    writer = ArrayRecordWriter(str(out / _ARRAY_RECORD), "group_size:1,uncompressed")
    for number, arrays in read_objects(objects, reading):
        writer.write(np.int64(number).tobytes() + record_of(arrays, reading).tobytes())
    writer.close()


@contextmanager
def open_grain(data: Path, reading: Reading) -> Iterator[Epochs]:
    """Grain over ArrayRecord, one record per sample."""
    import grain

    dtype = np.dtype([("id", "<i8"), *reading.dtype().descr])
    source = grain.sources.ArrayRecordDataSource([str(data / _ARRAY_RECORD)])

    def parse(record: bytes) -> dict[str, Any]:
        fields = np.frombuffer(record, dtype)[0]
        return {name: fields[name] for name in dtype.names or ()}

    def epoch(number: int) -> Iterator[Batch]:
        dataset = (
            grain.MapDataset.source(source)
            .seed(reading.seed + number)
            .shuffle()
            .map(parse)
            .to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=500))
            .batch(reading.batch_size)
        )
        return epochs_of(dataset, reading)(number)

    yield epoch


@contextmanager
def open_spdl(data: Path, reading: Reading) -> Iterator[Epochs]:
    """SPDL: a pipeline of threads over the pickles."""
    from spdl.pipeline import PipelineBuilder

    def stack(samples: list[tuple[int, dict[str, Any]]]) -> Batch:
        ids = np.array([number for number, _ in samples], np.int64)
        arrays = {name: np.stack([a[name] for _, a in samples]) for name in reading.arrays}
        return ids, arrays

    def epoch(number: int) -> Iterator[Batch]:
        pipeline = (
            PipelineBuilder()
            .add_source(reading.order(number).tolist())
            .pipe(lambda n: (n, read_object(data, n)), concurrency=reading.num_workers)
            .aggregate(reading.batch_size)
            .pipe(stack)
            .add_sink(3)
            .build(num_threads=reading.num_workers + 1)
        )
        with pipeline.auto_stop():
            yield from pipeline.get_iterator(timeout=60)

    yield epoch


def write_zarr(objects: Path, out: Path, reading: Reading) -> None:
    """An array of all samples, a chunk per sample, chunks gathered in shards."""
    import zarr

    group, num = zarr.open_group(str(out), mode="w"), _ZARR_SHARD_SAMPLES
    arrays = {
        name: group.create_array(
            name,
            shape=(reading.num_samples, *shape),
            dtype=dtype,
            chunks=(1, *shape),
            shards=(num, *shape),
            # The samples are noise, which compression only makes slower.
            compressors=None,
        )
        for name, (shape, dtype) in reading.arrays.items()
    }
    for first in range(0, reading.num_samples, num):
        stop = min(first + num, reading.num_samples)
        block = [read_object(objects, number) for number in range(first, stop)]
        for name, array in arrays.items():
            array[first:stop] = np.stack([sample[name] for sample in block])


@contextmanager
def open_zarr(data: Path, reading: Reading) -> Iterator[Epochs]:
    """Zarr's `oindex` of a batch."""
    import zarr

    group = zarr.open_group(str(data), mode="r")
    arrays = {name: group[name] for name in reading.arrays}

    def epoch(number: int) -> Iterator[Batch]:
        for ids in reading.batches(number):
            yield ids, {name: np.asarray(array.oindex[ids]) for name, array in arrays.items()}

    yield epoch
