"""`dataset.json` describes a data set; it exists only if the data set is complete."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msdata.core.checked_json import (
    Count,
    JsonValue,
    Positive,
    Unsigned32,
    Within,
    open_regular,
    read_json,
)
from msdata.core.files import write_whole
from msdata.core.trusted_names import check_shard_names
from msdata.dataset import MANIFEST_NAME
from msdata.dataset.coding import COMPRESSORS, ArrayCoding
from msdata.errors import DataError, UsageError
from msdata.schema import Schema, Survey

FILE_NAME = MANIFEST_NAME
# Beside it: the source of each sample, and the rejected objects.
SOURCES_NAME = "sources.parquet"
REJECTED_NAME = "rejected.csv"
FORMAT_VERSION = 1
CONTAINERS = ("tar", "hdf5")
# The shards are links to files that `msdata index` found; nothing between arrays is checked.
INDEXED = "indexed"
LINKS_NAME = "links.json"
# What a quantized array is stored as: codes, codes of a wide range, pixels that have no step.
CODES = ("<i2", "<i4", "<f4")
_CURE = "restore it or pack again"
# Keeps sums of bytes far below 64 bits.
_MAX_NBYTES = 1 << 61
# A tar header gives a member's size in eleven octal digits.
_MAX_TAR_NBYTES = 8**11 - 4096


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """The manifest's entry of one shard.

    Attributes:
        split: its split, which is also its folder.
        name: file name inside that folder.
        num_samples: samples in it.
        nbytes: size of the file.
        frame_crc32c: CRC32C of all bytes between the arrays, in file order.
    """

    split: str
    name: str
    num_samples: int
    nbytes: int
    frame_crc32c: int

    @property
    def relative_path(self) -> str:
        """Path relative to the data set's folder."""
        return f"{self.split}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """The manifest's entry of one array of a coded data set.

    Attributes:
        quantize: noise of a band in steps of its codes; None for an array that is not quantized.
        compress: "none", "lz4" or "zstd".
        codes: widest dtype of what is stored: "<i2", "<i4" or "<f4" if quantized, else the array's.
    """

    quantize: Annotated[float, Within(0.01, 10_000)] | None = None
    compress: str = "none"
    codes: str

    def __post_init__(self) -> None:
        if self.compress not in COMPRESSORS:
            raise UsageError(
                f"compress must be one of {', '.join(COMPRESSORS)}, got {self.compress!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `dataset.json`."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `dataset.json`.

    Attributes:
        container: "tar", "hdf5" or "indexed".
        schema: the arrays of every sample.
        shards: all shards, split by split, in the order of the index's rows.
        seed: seed of splits, shards and their order.
        index_sha256: SHA-256 of `index.parquet`.
        provenance: how it was made; without times and hosts, so equal input gives equal bytes.
        coding: how each array is stored, by name; empty for a data set that is not coded.
    """

    container: str
    schema: Schema
    shards: tuple[ShardInfo, ...]
    seed: int
    index_sha256: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    coding: Mapping[str, StoredArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.container not in (*CONTAINERS, INDEXED):
            raise UsageError(
                f"container must be one of {', '.join((*CONTAINERS, INDEXED))}, got "
                f"{self.container!r}"
            )

    @property
    def codings(self) -> tuple[ArrayCoding, ...]:
        """How each array is stored, in the schema's order; empty if the data set is not coded."""
        return tuple(
            coding_of(self.schema[name], stored.quantize, stored.compress)
            for name, stored in self.coding.items()
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order of the index."""
        return tuple(dict.fromkeys(s.split for s in self.shards))

    @property
    def num_samples(self) -> int:
        """Samples of all splits."""
        return sum(s.num_samples for s in self.shards)

    @property
    def fingerprint(self) -> str:
        """Identifies the content: equal for equal samples in equal shards."""
        return fingerprint_of(self._content())

    def _content(self) -> dict[str, Any]:
        coding = {name: stored.to_json() for name, stored in self.coding.items()}
        splits: dict[str, Any] = {}
        for shard in self.shards:
            entry = splits.setdefault(shard.split, {"num_samples": 0, "shards": []})
            entry["num_samples"] += shard.num_samples
            entry["shards"].append({n: v for n, v in vars(shard).items() if n != "split"})
        return {
            "format": "msdata",
            "format_version": FORMAT_VERSION,
            "container": self.container,
            "schema": self.schema.to_json(),
            **({"coding": coding} if coding else {}),
            "num_samples": self.num_samples,
            "splits": splits,
            "seed": self.seed,
            "index_sha256": self.index_sha256,
            "provenance": dict(self.provenance),
        }

    def write(self, folder: Path) -> None:
        """Writes `dataset.json`, the last step of packing.

        Raises:
            StorageError: the file system refused.
        """
        content = {**self._content(), "fingerprint": self.fingerprint}
        write_whole(folder / FILE_NAME, json.dumps(content, indent=1).encode() + b"\n")


def coding_of(array: Survey, quantize: float | None, compress: str) -> ArrayCoding:
    """How an array is stored, for the codec."""
    return ArrayCoding(array.name, array.shape, array.dtype, quantize, compress)


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """Returns sixteen hexadecimal digits that identify a JSON object."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest:
    """Reads `dataset.json`.

    Args:
        folder: the data set.

    Raises:
        UsageError: `folder` is not a data set.
        DataError: the file is damaged or has a later format.
        StorageError: the file system refused.
    """
    path = folder / FILE_NAME
    try:
        found = read_json(path, cure=_CURE)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(_absence(folder)) from None
    for name in (SOURCES_NAME, REJECTED_NAME):
        # What is missing or inaccessible is reported where it is read.
        with suppress(OSError):
            open_regular(folder / name, _CURE).close()
    return _parse(path, found)


def _absence(folder: Path) -> str:
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):
        return f"{folder} is a URL; give the path of a folder in a mounted file system"
    if not folder.exists():
        return f"{folder} does not exist; check the path"
    if (folder / ".pack").exists():
        return f"{folder} is half packed; run the same 'msdata pack' with --resume"
    return f"{folder} is not an msdata dataset: {FILE_NAME} not found; make one with 'msdata pack'"


@dataclass(frozen=True, kw_only=True)
class _ShardFields:
    name: Annotated[str, Within(1, 255)]
    num_samples: Count
    nbytes: Count
    frame_crc32c: Unsigned32


@dataclass(frozen=True, kw_only=True)
class _SplitFields:
    num_samples: Count
    shards: tuple[_ShardFields, ...]


@dataclass(frozen=True, kw_only=True)
class _Fields:
    """The fields that `Manifest._content` writes."""

    format: Literal["msdata"]
    format_version: Count
    container: Literal["tar", "hdf5", "indexed"]
    schema: Schema
    num_samples: Count
    splits: Mapping[str, _SplitFields]
    seed: Count
    index_sha256: Annotated[str, Within(64, 64)]
    provenance: Mapping[str, Any]
    fingerprint: str
    coding: Mapping[str, StoredArray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SettingsFields:
    """The settings of a pack that readers use, here and in an unfinished pack's plan."""

    IGNORES_UNKNOWN = True

    inpaint: tuple[str, ...] | None = None
    quantize: Mapping[str, Positive | None] = field(default_factory=dict)
    compress: Literal["none", "lz4", "zstd"] = "none"
    max_nan_fraction: Annotated[float, Within(0, 1)] = 0.01
    chunked: bool = False
    fits: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The packed data set that a pack took its samples from."""

    IGNORES_UNKNOWN = True

    fingerprint: str = ""
    coding: Mapping[str, StoredArray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Provenance:
    """The provenance of a pack that readers use."""

    IGNORES_UNKNOWN = True

    msdata: str = ""
    num_rejected: Count = 0
    rejected_sha256: str = ""
    sources_sha256: str = ""
    settings: SettingsFields = SettingsFields()
    packed_from: _Origin = _Origin()


def _parse(path: Path, found: JsonValue) -> Manifest:
    version = found["format_version"].read_as(int)
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, this msdata reads up to {FORMAT_VERSION}; "
            "update msdata"
        )
    fields = found.read_as(_Fields)
    found["provenance"].read_as(_Provenance)
    names = ((split, s.name) for split, entry in fields.splits.items() for s in entry.shards)
    check_shard_names(path, names)
    # Of the written text, not of the parsed fields: counts are written twice.
    content = {name: value for name, value in found.value.items() if name != "fingerprint"}
    if fields.fingerprint != (fingerprint := fingerprint_of(content)):
        raise DataError(
            f"{path} was altered: its fingerprint is {fields.fingerprint}, its content gives "
            f"{fingerprint}; restore it or pack again"
        )
    _check_sizes(found["splits"], fields)
    _check_coding(found, fields)
    return Manifest(
        container=fields.container,
        schema=fields.schema,
        shards=tuple(
            ShardInfo(split=split, **vars(shard))
            for split, entry in fields.splits.items()
            for shard in entry.shards
        ),
        seed=fields.seed,
        index_sha256=fields.index_sha256,
        provenance=fields.provenance,
        coding=fields.coding,
    )


def _check_coding(found: JsonValue, fields: _Fields) -> None:
    """Refuses a coding that does not fit the schema."""
    if not fields.coding:
        return
    if tuple(fields.coding) != fields.schema.names:
        found["coding"].refuse(f"an object of the arrays {', '.join(fields.schema.names)}")
    for name, stored in fields.coding.items():
        array, place = fields.schema[name], found["coding"][name]
        if stored.quantize is not None and array.dtype != "<f4":
            place["quantize"].refuse(f"null for an array of dtype {array.dtype}")
        codes = (array.dtype,) if stored.quantize is None else CODES
        if stored.codes not in codes:
            place["codes"].refuse(f"one of {', '.join(codes)}")


def _check_sizes(found: JsonValue, fields: _Fields) -> None:
    """Compares counts that are written twice, and sizes of samples with those of shards."""
    sample_nbytes, nbytes = fields.schema.sample_nbytes, 0
    if fields.container == "tar" and sample_nbytes >= _MAX_TAR_NBYTES:
        found.refuse(f"samples of less than {_MAX_TAR_NBYTES} bytes in tar shards")
    for split, entry in fields.splits.items():
        if entry.num_samples != sum(s.num_samples for s in entry.shards):
            found[split]["num_samples"].refuse("the sum of its shards")
        if len({s.name for s in entry.shards}) != len(entry.shards):
            found[split]["shards"].refuse("shards of different names")
        for number, shard in enumerate(entry.shards):
            # A coded sample may be small, but no array is stored without a byte.
            least = len(fields.coding) or sample_nbytes
            if shard.num_samples * least > shard.nbytes:
                place = found[split]["shards"].elements()[number]
                place["nbytes"].refuse(f"at least {shard.num_samples} samples of {least} bytes")
            nbytes += shard.nbytes
    if fields.num_samples != sum(entry.num_samples for entry in fields.splits.values()):
        found.refuse(f"splits of {fields.num_samples} samples together")
    if nbytes > _MAX_NBYTES:
        found.refuse(f"splits of at most {_MAX_NBYTES} bytes together")
