"""How files of arrays become samples: their kind, which arrays and labels, in which layout."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msdata.errors import SampleError, UsageError
from msdata.schema import Array, Survey
from msdata.sources.fits_options import DEFAULT_PATTERNS, pattern_expression
from msdata.sources.pickles import take_pickle

SUFFIXES = {
    "hdf5": (".h5", ".hdf5", ".hdf"),
    "npz": (".npz",),
    "zarr": (".zarr",),
    "tar": (".tar",),
    "parquet": (".parquet", ".pq"),
    "images": (".png", ".jpg", ".jpeg"),
}
# What messages call them.
NAMES = {
    "hdf5": "HDF5 files",
    "npz": "NPZ files",
    "zarr": "Zarr groups",
    "tar": "WebDataset tars",
    "parquet": "Parquet files",
    "images": "PNG and JPEG images",
}
LAYOUTS = ("HWC", "CHW")
# What the root of a Zarr group holds, formats 3 and 2.
_ZARR_MARKS = ("zarr.json", ".zgroup")
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """What to read from files of arrays.

    Attributes:
        kind: a key of `SUFFIXES`.
        arrays: arrays of a sample, each with its name in the files; empty takes all.
        labels: columns of the index, each with its name in the files; None takes all.
        layouts: "HWC" or "CHW" by array; "*" stands for every other one.
        id_column: the label that names the samples; None looks for a known name.
        shapes: shape of a sample by array, for arrays that are stored flat.
        per_file: "one" or "many" objects in each NPZ file; empty means many.
        scratch: folder for what a pack unpacks on its way; no part of the settings.
    """

    kind: str
    arrays: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    id_column: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    per_file: str = ""
    scratch: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in SUFFIXES:
            raise UsageError(f"kind must be one of {', '.join(SUFFIXES)}, got {self.kind!r}")
        for name, layout in self.layouts.items():
            if layout not in LAYOUTS:
                said = layout if name == "*" else f"{name}={layout}"
                raise UsageError(f"--layout must be HWC or CHW, got {said}")

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `dataset.json`; what is not set by hand is left out."""
        said = asdict(self)
        del said["scratch"]
        said["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        return {n: v for n, v in said.items() if v or n not in ("shapes", "per_file")}

    def named_labels(self) -> dict[str, str]:
        """The labels that were asked for, with that of the ids; empty where all are taken."""
        chosen = dict(self.labels or {})
        if self.labels is not None and self.id_column is not None:
            chosen.setdefault(self.id_column, self.id_column)
        return chosen

    def sample_shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's array that is stored with shape `stored`.

        Raises:
            UsageError: the shape that was asked for has another number of values.
        """
        asked = tuple(self.shapes.get(name, stored))
        if math.prod(asked) != math.prod(stored):
            raise UsageError(
                f"--shape {name}={','.join(map(str, asked))} must have {math.prod(stored):,} "
                f"values, as many as each sample of the file, got {math.prod(asked):,}"
            )
        return asked

    def check_names(self, names: Collection[str]) -> None:
        """Refuses a layout or shape of an array that a sample does not have.

        Raises:
            UsageError: the message names the option.
        """
        for option, given in (("--layout", self.layouts), ("--shape", self.shapes)):
            for name in given:
                if name not in ("*", *names):
                    raise UsageError(f"{option} must name one of {', '.join(names)}, got {name}")

    def channels_first(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The axes of a sample's array in the order (bands, height, width), for `arranged`.

        Args:
            name: the array's.
            shape: of one sample.

        Returns:
            The order of the axes; None where nothing has to change. An order that begins with -1
            stands for a new axis.

        Raises:
            UsageError: the sides do not say which axis holds the bands.
        """
        if len(shape) == 2:
            return (-1, 0, 1)
        if len(shape) != 3:
            return None
        asked = self.layouts.get(name, self.layouts.get("*"))
        if asked is None:
            is_last = Survey(name=name, shape=shape).has_bands_last
            is_first = shape[0] < min(shape[1:]) and not is_last
            if not (is_last or is_first):
                raise UsageError(
                    f"array {name!r} has shape {shape}, which does not say where its bands are; "
                    f"give --layout {name}=HWC or --layout {name}=CHW"
                )
            asked = "HWC" if is_last else "CHW"
        return (2, 0, 1) if asked == "HWC" else None


def arranged(array: Array, axes: tuple[int, ...] | None) -> Array:
    """An array with its bands first; see `ArrayOptions.channels_first`."""
    if axes is None:
        return array
    return array[np.newaxis] if axes[0] == -1 else np.transpose(array, axes)


def arranged_sample(options: ArrayOptions, name: str, array: Array) -> Array:
    """`arranged` of one sample that was read.

    Raises:
        SampleError: the sides do not say which axis holds the bands, or `--shape` does not fit.
    """
    try:
        array = array.reshape(options.sample_shape(name, array.shape))
        return arranged(array, options.channels_first(name, array.shape))
    except UsageError as error:
        raise SampleError(str(error)) from error


def identifier(name: str) -> str:
    """A name that an array may have, made of one in a file, such as `group/image-1`."""
    word = re.sub(r"\W+", "_", name.strip("/")).strip("_") or "array"
    return word if word.isidentifier() else f"array_{word}"


def find_kind(root: Path) -> str | None:
    """The kind of the files of arrays at a path; None where it holds pickles, FITS, or neither.

    Pickles and FITS files of the usual names decide first, wherever they lie: files of arrays
    beside them may be catalogs and previews.

    Args:
        root: file or folder that the user named.

    Raises:
        UsageError: it holds several kinds, or compressed tars.
    """
    if root.name.endswith(_COMPRESSED_TARS) and root.is_file():
        raise UsageError(
            f"{root} is a compressed tar, whose samples cannot be read in any order; unpack it "
            "with gunzip, zstd -d or the like"
        )
    kind = _kind_of(root.name) if root.is_file() else None
    if kind is not None or not root.is_dir():
        return kind
    if is_zarr(root):
        return "zarr"
    if root.name.lower().endswith(SUFFIXES["zarr"]):
        told = "one Zarr array" if (root / ".zarray").is_file() else f"no {_ZARR_MARKS[0]}"
        raise UsageError(
            f"{root} is not a Zarr group: it holds {told}; give a group with arrays (samples, ...)"
        )
    kinds = _kinds_below(root)
    if kinds is None or not kinds:
        return None
    if len(kinds) > 1:
        # A table of labels lies beside many a data set.
        kinds.discard("parquet")
    if len(kinds) > 1:
        found = " and ".join(NAMES[kind] for kind in SUFFIXES if kind in kinds)
        raise UsageError(f"{root} holds {found}; give a file, or a folder with one kind of them")
    return kinds.pop()


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group."""
    return any((folder / mark).is_file() for mark in _ZARR_MARKS)


def _kind_of(name: str) -> str | None:
    lower = name.lower()
    return next((kind for kind, ends in SUFFIXES.items() if lower.endswith(ends)), None)


def _kinds_below(root: Path) -> set[str] | None:
    """Kinds of the files of a tree; None where it has pickles or FITS files."""
    # The shortest patterns of bands: any name will do.
    fits = [pattern_expression(p, ("g", "r", "i", "z", "y")) for p in DEFAULT_PATTERNS.values()]
    kinds: set[str] = set()
    folders = [root]
    while folders:
        folder, below = folders.pop(), []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if is_zarr(Path(entry.path)):
                            kinds.add("zarr")
                        else:
                            below.append(Path(entry.path))
                    elif take_pickle("", entry.name) or any(e.fullmatch(entry.name) for e in fits):
                        return None
                    elif kind := _kind_of(entry.name):
                        kinds.add(kind)
        except OSError:
            continue  # whoever reads the folder says what is wrong with it
        folders += sorted(below, reverse=True)
    return kinds
