"""WebDataset tars: members of one sample stand together, named KEY.EXTENSION.

A sample's row is the offset of its first header, so that reading it needs no index. `.npy` members
and images are arrays, `.json`, `.cls` and `.txt` members labels; pickles are never loaded.

Source: webdataset 1.0, `tariterators.base_plus_ext` and `group_by_keys`.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from msdata.core.files import refusals, storage_error
from msdata.errors import DataError, SampleError
from msdata.schema import Sample, Schema
from msdata.sources.arrays.labels import objects_table
from msdata.sources.arrays.members import IMAGE_SUFFIXES, decode_image, decode_npy
from msdata.sources.arrays.options import SUFFIXES, ArrayOptions, arranged_sample, identifier
from msdata.sources.listing import paths_below

if TYPE_CHECKING:
    import pyarrow as pa

_MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_ARRAYS = ("npy", *IMAGE_SUFFIXES)
_LABELS = ("json", "cls", "txt")
_MAX_MEMBER_NBYTES = 1 << 30
_MAX_LABEL_NBYTES = 1 << 20


class TarSamples:
    """Implements `Source` over WebDataset tars.

    Args:
        root: a tar, or a folder with several.
        options: what to read; names of arrays and labels are those of the extensions, `image` for
            a bare `.npy`, `.png` or `.jpg`, and the keys of `.json` members.

    Attributes:
        root: the folder; paths are relative to it.
        schema: None; it is inferred from the samples.
    """

    schema: Schema | None = None

    def __init__(self, root: Path, options: ArrayOptions) -> None:
        self.root = root.parent if root.is_file() else root
        self._given, self._options = root, options

    def scan(self) -> pa.Table:
        """Lists the samples with their labels; see `Source.scan`.

        Raises:
            UsageError: no sample has what `--arrays` or `--labels` names.
            DataError: a tar is broken, or holds no arrays.
        """
        objects, labels, left_out, has_arrays = [], [], Counter[str](), False
        for path in paths_below(self._given, SUFFIXES["tar"]):
            with _opened(self.root / path) as file:
                for key, start, members in _samples(self.root / path, file, 0):
                    # Ids are the keys, as webdataset has them; a folder's slash would split the id.
                    objects.append((key.replace("/", "_"), path, start))
                    labels.append(self._labels_of(self.root / path, file, members))
                    known = {ext: _kind(ext) for ext in members}
                    left_out.update(ext for ext, kind in known.items() if kind is None)
                    has_arrays = has_arrays or any(kind in _ARRAYS for kind in known.values())
        if not has_arrays:
            found = ", ".join(f".{ext}" for ext, _ in left_out.most_common(5)) or "none"
            raise DataError(
                f"{self._given} has no .npy, .png or .jpg members (others: {found}); write arrays "
                "as .npy: pickles are never loaded"
            )
        table, _ = objects_table(self._options, self._given, objects, labels)
        notes = [
            f"{count:,} members named .{ext} are left out" for ext, count in left_out.most_common()
        ]
        return table.replace_schema_metadata({"notes": json.dumps(notes)})

    def _labels_of(
        self, path: Path, file: BinaryIO, members: Mapping[str, tarfile.TarInfo]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for ext, member in members.items():
            kind = _kind(ext)
            if kind not in _LABELS:
                continue
            where = f"{path}: member {member.name}"
            if member.size > _MAX_LABEL_NBYTES:
                raise DataError(f"{where} has {member.size:,} bytes, too many for labels")
            try:
                text = _content(file, member).decode().strip()
                # A key of a member beside the plain one carries that member's name.
                name = _name(ext, kind)
                value = json.loads(text) if kind == "json" else text
                if kind == "cls":
                    value = int(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is broken: {error}") from error
            if not isinstance(value, dict):
                found[name] = value
                continue
            for key, item in value.items():
                if isinstance(item, str | int | float | bool) or item is None:
                    found[key if key not in found else f"{name}_{key}"] = item
        return found

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Reads one sample; see `Source.read`."""
        sample: Sample = {}
        where = self.root / path
        try:
            with _opened(where) as file:
                found = next(_samples(where, file, row), None)
                for ext, member in {} if found is None else found[2].items():
                    kind = _kind(ext)
                    if kind not in _ARRAYS:
                        continue
                    name = identifier(_name(ext, kind))
                    wanted = [n for n, inside in self._options.arrays.items() if inside == name]
                    if self._options.arrays and not wanted:
                        continue
                    name = wanted[0] if wanted else name
                    if member.size > _MAX_MEMBER_NBYTES:
                        raise SampleError(f"member {member.name} has {member.size:,} bytes")
                    content = _content(file, member)
                    try:
                        if kind == "npy":
                            array = arranged_sample(self._options, name, decode_npy(content))
                        else:
                            array = decode_image(content)
                    except SampleError as error:
                        raise SampleError(f"member {member.name}: {error}") from error
                    sample[name] = array
        except SampleError:
            raise
        except DataError as error:
            raise SampleError(str(error)) from error
        for name, inside in self._options.arrays.items():
            if name not in sample:
                raise SampleError(f"it has no member for the array {inside!r} (--arrays)")
        if not sample:
            raise SampleError("it has no .npy, .png or .jpg member")
        return sample


def _opened(path: Path) -> BinaryIO:
    with refusals("open", path):
        return path.open("rb")


def _content(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    content = file.read(member.size)
    if len(content) != member.size:
        raise SampleError(f"member {member.name} is truncated")
    return content


def tar_members(path: Path, file: BinaryIO, start: int = 0) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar, from the header at an offset on.

    Args:
        path: the tar, for messages.
        file: the tar, opened.
        start: the offset.

    Raises:
        DataError: it is not a tar, broken or truncated.
        StorageError: the file system refused.
    """
    try:
        end = file.seek(0, io.SEEK_END)
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                # Its list of members would grow with the file.
                tar.members = []  # type: ignore[attr-defined]
                if member.isreg() and member.offset_data + member.size > end:
                    raise DataError(f"{path} is truncated in {member.name}; copy it again")
                yield member
            file.seek(tar.offset)
            # tarfile takes a broken header for the end; the end is a block of zeros.
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(
                    f"{path} is truncated or broken at byte {tar.offset}; copy it again"
                )
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} is damaged, or not an uncompressed tar file: {error}; copy it again"
        ) from error
    except OSError as error:
        raise storage_error("read", path, error) from error


def _samples(
    path: Path, file: BinaryIO, start: int
) -> Iterator[tuple[str, int, dict[str, tarfile.TarInfo]]]:
    """Key, offset of the first header, and members by extension of the samples from an offset."""
    key, first, members = "", 0, dict[str, tarfile.TarInfo]()
    for member in tar_members(path, file, start):
        match = _MEMBER.fullmatch(member.name)
        if not member.isreg() or match is None or member.sparse is not None:
            continue
        if match[1] != key:
            if members:
                yield key, first, members
            key, first, members = match[1], member.offset, {}
        extension = match[2].lower()
        if extension in members:
            raise DataError(f"{path}: sample {key} has two members .{extension}")
        members[extension] = member
    if members:
        yield key, first, members


def _kind(extension: str) -> str | None:
    """What a member is, by the end of its extension; None for what is not read."""
    last = extension.rsplit(".", 1)[-1]
    return last if last in (*_ARRAYS, *_LABELS) else None


def _name(extension: str, kind: str) -> str:
    """The array's or label's name: what stands before the kind, else `image`, or the kind."""
    before = extension.removesuffix(kind).rstrip(".")
    return before or ("image" if kind in _ARRAYS else kind)
