"""`dataset.json`: what a data set is, apart from its samples; its presence marks a complete one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msdata.atomic_file import storage_error, write_whole
from msdata.errors import DataError, UsageError
from msdata.schema import Schema
from msdata.trusted_names import check_regular, check_shard_names

FILE_NAME = "dataset.json"
# Beside it: where each sample came from, and what was left out.
SOURCES_NAME = "sources.parquet"
REJECTED_NAME = "rejected.csv"
FORMAT_VERSION = 1
CONTAINERS = ("tar", "hdf5")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard as the manifest lists it.

    Attributes:
        split: the split it belongs to, also its folder.
        name: file name inside that folder.
        num_samples: samples in it.
        nbytes: size of the file.
        frame_crc32c: CRC32C of all bytes that belong to no array, in file order.
    """

    split: str
    name: str
    num_samples: int
    nbytes: int
    frame_crc32c: int

    @property
    def relative_path(self) -> str:
        """Path below the data set's folder."""
        return f"{self.split}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `dataset.json`.

    Attributes:
        container: "tar" or "hdf5".
        schema: the arrays of every sample.
        shards: all shards, split by split, in the order of the index's rows.
        seed: what splits, shards and their order were drawn with.
        index_sha256: SHA-256 of `index.parquet`.
        provenance: how it was made; no times, no hosts, so equal input gives equal bytes.
    """

    container: str
    schema: Schema
    shards: tuple[ShardInfo, ...]
    seed: int
    index_sha256: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.container not in CONTAINERS:
            raise UsageError(f"container {self.container!r} is none of {', '.join(CONTAINERS)}")

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
        """Names the data set's content: equal for equal samples in equal shards."""
        return _fingerprint(self._content())

    def _content(self) -> dict[str, Any]:
        splits: dict[str, Any] = {}
        for shard in self.shards:
            entry = splits.setdefault(shard.split, {"num_samples": 0, "shards": []})
            entry["num_samples"] += shard.num_samples
            entry["shards"].append(
                {
                    "name": shard.name,
                    "num_samples": shard.num_samples,
                    "nbytes": shard.nbytes,
                    "frame_crc32c": shard.frame_crc32c,
                }
            )
        return {
            "format": "msdata",
            "format_version": FORMAT_VERSION,
            "container": self.container,
            "schema": self.schema.to_json(),
            "num_samples": self.num_samples,
            "splits": splits,
            "seed": self.seed,
            "index_sha256": self.index_sha256,
            "provenance": dict(self.provenance),
        }

    def write(self, folder: Path) -> None:
        """Writes `dataset.json`, the last step of making a data set.

        Raises:
            StorageError: the file system refused.
        """
        content = {**self._content(), "fingerprint": self.fingerprint}
        write_whole(folder / FILE_NAME, json.dumps(content, indent=1).encode() + b"\n")


def _fingerprint(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest:
    """Reads `dataset.json`.

    Args:
        folder: the data set.

    Raises:
        UsageError: there is no data set.
        DataError: the file is damaged or of a later format.
        StorageError: the file system refused.
    """
    path = folder / FILE_NAME
    check_regular(path, folder / "index.parquet", folder / SOURCES_NAME, folder / REJECTED_NAME)
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(_absence(folder)) from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); restore it or pack again") from error
    try:
        return _parse(path, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it or pack again"
        ) from error


def _absence(folder: Path) -> str:
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):
        return f"{folder} is a URL; give the path of a folder in a mounted file system"
    if not folder.exists():
        return f"{folder} does not exist; check the path"
    if (folder / ".pack").exists():
        return f"{folder} is half packed; run the same 'msdata pack' with --resume"
    return f"{folder} is no data set: it has no {FILE_NAME}; make one with 'msdata pack'"


def _parse(path: Path, content: Any) -> Manifest:
    version = content["format_version"]
    if content["format"] != "msdata" or version > FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, this msdata reads up to {FORMAT_VERSION}; "
            "update msdata"
        )
    shards = tuple(
        ShardInfo(split=split, **shard)
        for split, entry in content["splits"].items()
        for shard in entry["shards"]
    )
    check_shard_names(path, ((shard.split, shard.name) for shard in shards))
    manifest = Manifest(
        container=content["container"],
        schema=Schema.from_json(content["schema"]),
        shards=shards,
        seed=content["seed"],
        index_sha256=content["index_sha256"],
        provenance=content["provenance"],
    )
    # Of what is written, not of what was read: counts are written twice.
    found = _fingerprint({name: value for name, value in content.items() if name != "fingerprint"})
    if content["fingerprint"] != found:
        raise DataError(
            f"{path} was altered: its fingerprint is {content['fingerprint']}, its content gives "
            f"{found}; restore it or pack again"
        )
    return manifest
