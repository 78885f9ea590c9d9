"""Chooses the source for a folder the user named."""

from __future__ import annotations

import os
from pathlib import Path

from msdata.core.files import refusals
from msdata.dataset import INDEX_NAME, MANIFEST_NAME
from msdata.errors import UsageError
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.arrays.options import ArrayOptions, find_kind
from msdata.sources.blocks import BlockFiles, find_blocks
from msdata.sources.fits_options import DEFAULT_PATTERNS, FitsOptions, pattern_expression
from msdata.sources.parts import PartFiles, holds_parts
from msdata.sources.pickles import PickleTree, take_pickle
from msdata.sources.source import Source


def detect_source(
    root: Path, fits: FitsOptions | None = None, arrays: ArrayOptions | None = None
) -> Source:
    """Picks the source: a packed data set, FITS files if asked for, upstream's blocks, pickles.

    Args:
        root: a packed data set, or a folder with FITS files, block files or object files; a file
            or folder of arrays where `arrays` is given.
        fits: how to read FITS files; None for the others.
        arrays: how to read HDF5, NPZ, Zarr, tars or images; None for the others.

    Returns:
        The source, not yet scanned.

    Raises:
        UsageError: the path is missing, or not a folder.
        StorageError: the file system refused to say.
    """
    with refusals("look into", root):
        return _detect(root, fits, arrays)


def _detect(root: Path, fits: FitsOptions | None, arrays: ArrayOptions | None) -> Source:
    if not root.exists():
        raise UsageError(f"{root} does not exist{_suggestion(root)}")
    if not root.is_dir() and arrays is None:
        raise UsageError(
            f"{root} is a file; give the folder that holds the objects, or a file named .h5, "
            ".hdf5, .npz, .zarr, .parquet, .tar, .png or .jpg"
        )
    if is_packed(root):
        from msdata.sources.packed import PackedData

        return PackedData(root)
    if holds_parts(root):
        return PartFiles(root)
    if (root / ".pack" / "plan.json").exists():
        raise UsageError(
            f"{root} is half packed; finish it first: run the same 'msdata pack' with --resume"
        )
    if fits is not None:
        # Each worker of a pack would import it, and hardly any needs it.
        from msdata.sources.fits import FitsTree

        return FitsTree(root, fits)
    if arrays is not None:
        return _of_arrays(root, arrays)
    if find_blocks(root) is not None:
        return BlockFiles(root)
    return PickleTree(root)


def default_arrays(root: Path) -> ArrayOptions | None:
    """How to read the files of arrays at a path; None where it holds none.

    Args:
        root: file or folder that the user named.

    Raises:
        UsageError: it holds several kinds, or files that may be read in two ways.
    """
    kind = find_kind(root)
    return None if kind is None else told_by_files(root, ArrayOptions(kind=kind))


def told_by_files(root: Path, options: ArrayOptions) -> ArrayOptions:
    """The options, with what only a look into the files tells."""
    if options.kind != "npz":
        return options
    from msdata.sources.arrays.npz_objects import with_files_told

    return with_files_told(root, options)


def _of_arrays(root: Path, options: ArrayOptions) -> Source:
    # Each worker imports what it needs alone.
    if options.kind == "tar":
        from msdata.sources.arrays.tars import TarSamples

        return TarSamples(root, options)
    if options.per_file == "one":
        from msdata.sources.arrays.npz_objects import NpzObjects

        return NpzObjects(root, options)
    if options.kind == "images":
        from msdata.sources.arrays.images import ImageTree

        return ImageTree(root, options)
    from msdata.sources.arrays.stacks import StackFiles

    return StackFiles(root, options)


def is_packed(root: Path) -> bool:
    """Whether a folder is a packed data set."""
    with refusals("look into", root):
        return all((root / name).exists() for name in (MANIFEST_NAME, INDEX_NAME))


def holds_fits(root: Path) -> bool:
    """Whether a folder's objects are FITS files of the usual names.

    The first folder, in alphabetical order and depth first, that holds objects of either kind
    decides; pickles before FITS.

    Args:
        root: folder the user named; False where it is none.
    """
    expressions = [
        pattern_expression(pattern, MANTIS_SHRIMP[name].bands)
        for name, pattern in DEFAULT_PATTERNS.items()
    ]
    folders = [root]
    while folders:
        folder = folders.pop()
        below, has_fits = [], False
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    # A folder may hold millions: the first pickle is enough.
                    if take_pickle("", entry.name) is not None:
                        return False
                    has_fits = has_fits or any(e.fullmatch(entry.name) for e in expressions)
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        below.append(folder / entry.name)
        except OSError:
            continue  # whoever reads the folder says what is wrong with it
        if has_fits:
            return True
        folders += sorted(below, reverse=True)
    return False


def _suggestion(path: Path) -> str:
    """Names the sibling that a typo was probably meant to be."""
    import difflib

    parent = path.absolute().parent
    if not parent.is_dir():
        return f": {parent} does not exist either; check the path"
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else "; check the path"
