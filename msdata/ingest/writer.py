"""`msdata.Writer`: makes a data set from a program's arrays.

Samples are appended to a file of raw records in `DATA.parts`; then the pack reads them there, in
its seeded random order and writes the shards, as it does for any source. Compared with shards that
take samples as they come: every pixel is written twice, but memory is bounded by one sample, the
order does not follow the program's, and one code makes every data set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np

from msdata.core.files import open_known, refusals, storage_error, take_lock, write_whole
from msdata.core.options import num_jobs
from msdata.dataset.index import check_names
from msdata.dataset.tar import max_key_nbytes, member_key
from msdata.errors import MsdataError, SampleError, UsageError, naming
from msdata.ingest.join import (
    LOCK_NAME,
    WriterSettings,
    WrittenPart,
    check_absent,
    is_joining,
    join_parts,
    parts_root,
    remove_part,
)
from msdata.ingest.label_checks import (
    check_exact,
    check_id,
    check_label_name,
    check_split,
    joined_kind,
    plain_value,
)
from msdata.pack.columns import check_array_names
from msdata.pack.encode import codings_of
from msdata.pack.folder_lock import is_locked
from msdata.pack.planning import preparation_of, schema_of
from msdata.pack.prepare import Preparation, prepare
from msdata.pack.settings import PackSettings
from msdata.schema import Array, Schema
from msdata.sources.parts import (
    MAX_PARTS,
    PART_NAME,
    PARTS_NAME,
    ROWS_NAME,
    SAMPLES_NAME,
    LabelKind,
    part_folder,
)

_BUFFER_NBYTES = 4 << 20


class Writer:
    """Writes a data set from arrays, sample by sample; a context manager.

        with msdata.Writer("DATA") as writer:
            writer.write("galaxy-1", {"image": image}, redshift=0.12, ra=150.1, dec=2.2)

    The data set appears at the end of the block, whole; after an error it does not appear. It is
    what `msdata pack` makes of the same samples. Until then they lie in `DATA.parts`.

    Several processes write one part each, and one of them joins the parts when all have ended:

        with msdata.Writer("DATA", part=rank, num_parts=num_ranks) as writer: ...
        msdata.join_parts("DATA")

    Args:
        out: folder of the data set; new or empty.
        schema: the arrays of every sample; None takes names, shapes and dtypes of the first one.
        container: "tar" or "hdf5".
        chunked: HDF5 with one chunk per sample.
        shard_nbytes: upper bound of a shard's size; None: 1 GiB, less for a small data set.
        split_fractions: fractions of train, val and test, drawn by id; unless `write` names splits.
        seed: what splits and order are drawn with.
        quantize: noise of a band in steps of its codes: a number, or one per array; None stores
            floats.
        compress: "none", "lz4" or "zstd".
        nan: "refuse" raises where a pixel is NaN, unless the schema expects NaN in that array,
            which are filled as by `msdata pack`; "keep" stores NaN pixels as they are.
        part: number of this part.
        num_parts: parts of the data set.
        jobs: processes that write the shards; None means one per core.

    Raises:
        UsageError: an argument makes no data set, or `out` holds something.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        schema: Schema | None = None,
        container: str = "tar",
        chunked: bool = False,
        shard_nbytes: int | None = None,
        split_fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        seed: int = 0,
        quantize: float | Mapping[str, float | None] | None = None,
        compress: str = "none",
        nan: Literal["refuse", "keep"] = "refuse",
        part: int = 0,
        num_parts: int = 1,
        jobs: int | None = None,
    ) -> None:
        if nan not in ("refuse", "keep"):
            raise UsageError(f"nan must be 'refuse' or 'keep', got {nan!r}")
        if not 1 <= num_parts <= MAX_PARTS or not 0 <= part < num_parts:
            raise UsageError(
                f"part must be 0 to num_parts - 1, and num_parts at most {MAX_PARTS:,}, got "
                f"part={part}, num_parts={num_parts}"
            )
        steps = quantize if isinstance(quantize, Mapping) else {"*": quantize}
        self._settings = WriterSettings(
            container=container,  # type: ignore[arg-type]
            chunked=chunked,
            shard_nbytes=shard_nbytes,
            split_fractions=tuple(split_fractions),
            seed=seed,
            quantize={} if quantize is None else dict(steps),
            compress=compress,
            keeps_nan=nan == "keep",
        )
        self._out = Path(out).absolute()
        self._root = parts_root(self._out)
        # Also checks the settings.
        self._pack = self._settings.of_pack(self._root, self._out)
        self._jobs = num_jobs(jobs)
        self._part, self._num_parts = part, num_parts
        self._folder = part_folder(self._root, part)
        self._schema: Schema | None = None
        self._preparation, self._max_key = Preparation(), 0
        self._ids: set[str] = set()
        self._kinds: dict[str, LabelKind] = {}
        self._has_splits: bool | None = None
        self._lock_fd = -1
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        if schema is not None:
            self._take_schema(schema)

    def __enter__(self) -> Writer:
        check_absent(self._out)
        if is_locked(self._root / LOCK_NAME):
            raise is_joining(self._root)
        with refusals("write", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock_fd = open_known(self._folder / LOCK_NAME)
            if not take_lock(self._lock_fd):
                os.close(self._lock_fd)
                raise UsageError(
                    f"another Writer is writing part {self._part} of {self._out}; give every "
                    "process its own part="
                )
            # What an earlier run left is not part of this one.
            for path in (self._root / PARTS_NAME, self._folder / PART_NAME):
                path.unlink(missing_ok=True)
            self._files = (
                _emptied(self._folder / SAMPLES_NAME),
                _emptied(self._folder / ROWS_NAME),
            )
        return self

    def write(
        self,
        sample_id: str,
        arrays: Mapping[str, Array],
        *,
        split: str | None = None,
        **labels: Any,
    ) -> None:
        """Adds one sample.

        Args:
            sample_id: its id, unique in the data set.
            arrays: its arrays by name; images are (bands, height, width).
            split: its split, for every sample or for none.
            **labels: its numbers, texts and truth values; None or NaN where unknown. `redshift`,
                `ra` and `dec` (degrees) and `ebv` must lie within what `msdata pack` believes.

        Raises:
            UsageError: the sample does not fit; it was not added, and others can be.
            StorageError: the file system refused.
        """
        if self._files is None:
            raise UsageError("write() needs the open Writer: use it inside its with block")
        with naming(f"cannot write sample {sample_id!r}", UsageError):
            record, row = self._checked(sample_id, arrays, split, labels)
        try:
            self._files[0].writelines(record)
            self._files[1].write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            self._close()
            raise storage_error("write", self._folder, error) from error
        self._ids.add(sample_id)

    def _checked(
        self, sample_id: str, arrays: Mapping[str, Array], split: str | None, labels: dict[str, Any]
    ) -> tuple[list[memoryview], dict[str, Any]]:
        check_id(sample_id)
        if sample_id in self._ids:
            raise SampleError("its id was written already; every sample needs its own")
        has_split = split is not None
        if self._has_splits not in (None, has_split):
            raise SampleError("split= must be given for all samples or for none")
        if has_split:
            check_split(split)
            if self._settings.split_fractions != PackSettings.split_fractions:
                raise SampleError("split= and split_fractions= exclude each other; leave one out")
        schema = self._schema or _inferred(arrays)
        if sorted(arrays) != sorted(schema.names):
            raise SampleError(
                f"its arrays must be {', '.join(schema.names)}, got {', '.join(arrays) or 'none'}"
            )
        for name in labels.keys() - self._kinds.keys():
            check_label_name(name, schema)
        if self._schema is None:
            self._take_schema(schema)
        num_key = len(member_key(sample_id).encode())
        if self._settings.container == "tar" and num_key > self._max_key:
            raise SampleError(
                f"its id is too long for a tar member's name ({num_key} of at most {self._max_key} "
                "bytes); shorten it, or give container='hdf5'"
            )
        record = self._record(arrays, schema)
        values = {name: plain_value(name, value) for name, value in labels.items()}
        kinds = {
            name: joined_kind(name, self._kinds.get(name, "nothing"), kind)
            for name, (_, kind) in values.items()
        }
        for name, (value, _) in values.items():
            check_exact(name, value, kinds[name])
        self._kinds |= kinds
        self._has_splits = has_split
        row = {"id": sample_id, "labels": {name: value for name, (value, _) in values.items()}}
        return record, {**row, **({"split": split} if has_split else {})}

    def _take_schema(self, schema: Schema) -> None:
        if schema.scalars:
            raise UsageError("schema must have no scalars: numbers are given as labels")
        check_array_names(schema)
        check_names(schema.names)
        codings = codings_of(schema, self._pack)
        self._preparation = preparation_of(schema, self._pack)
        self._max_key = max_key_nbytes(schema, is_coded=bool(codings))
        self._schema = schema

    def _record(self, arrays: Mapping[str, Array], schema: Schema) -> list[memoryview]:
        """The arrays' bytes, once the pack's own rules accept them."""
        prepared = prepare(dict(arrays), schema, self._preparation)
        if not self._settings.keeps_nan:
            for array, counts in zip(schema.arrays, prepared.num_nan, strict=True):
                if any(counts):
                    raise SampleError(
                        f"array {array.name!r} holds {sum(counts)} NaN; give nan='keep', or a "
                        "schema in which may_have_nan is True"
                    )
        wanted = [
            np.ascontiguousarray(arrays[a.name]).astype(a.numpy_dtype, copy=False)
            for a in schema.arrays
        ]
        return [memoryview(array.reshape(-1).view(np.uint8).data) for array in wanted]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Completes the part, and the data set if it is the only one; drops it after an error."""
        try:
            if error is not None or self._files is None:
                self._close()
                remove_part(self._folder)
                if error is None:
                    raise MsdataError(
                        f"{self._out} was not made: an earlier write failed; write all samples "
                        "again"
                    )
                return
            self._finish()
        finally:
            self._close()
            os.close(self._lock_fd)
            with suppress(OSError):
                self._root.rmdir()
        if self._num_parts == 1:
            join_parts(self._out, jobs=self._jobs)

    def _finish(self) -> None:
        assert self._files is not None
        part = WrittenPart(
            num_parts=self._num_parts,
            num_samples=len(self._ids),
            schema=self._schema if self._ids else None,
            kinds=self._kinds,
            has_splits=self._has_splits,
            settings=self._settings,
        )
        with refusals("write", self._folder):
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
        write_whole(self._folder / PART_NAME, json.dumps(part.to_json()).encode())

    def _close(self) -> None:
        files, self._files = self._files, None
        for file in files or ():
            with suppress(OSError):
                file.close()


def _inferred(arrays: Mapping[str, Array]) -> Schema:
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise SampleError(
                f"{name!r} must be a NumPy array with at least one axis, got "
                f"{type(array).__name__}; give numbers and texts as labels"
            )
    return schema_of(arrays)


def _emptied(path: Path) -> IO[bytes]:
    """Opens a file of our own for writing, emptied; never through a link."""
    fd = open_known(path)
    os.ftruncate(fd, 0)
    return os.fdopen(fd, "wb", buffering=_BUFFER_NBYTES)
