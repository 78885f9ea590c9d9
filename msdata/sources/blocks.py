"""Upstream's block files: `{train,val,test}/mantis_shrimp_{k}.npy`, 16 per split.

What a row is, is told by files beside the blocks. With `{split}_indices.npy` each row has a number
in the catalog, and one `exists_mask.npy` over all the catalog tells which rows hold an object.
Without indices, masks lie by the split or by the block, and objects are named by their place.
Without masks, rows of zeros are found missing when they are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.errors import DataError, SampleError, StorageError
from msdata.schema import Array, Sample, Schema
from msdata.sources.blockfile import BlockHeader, read_header, read_row
from msdata.sources.pickles import load_file
from msdata.sources.standins import ObjectArray, PickledArray

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "val", "test")
_BLOCK_NAME = re.compile(r"mantis_shrimp_(\d+)\.npy")


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One block file: its path relative to the root, its number, its header."""

    path: str
    number: int
    header: BlockHeader


def find_blocks(root: Path) -> Path | None:
    """Folder that holds the splits' folders: `root` or its `npy_blocks`; None where there is none.

    Args:
        root: folder the user named.
    """
    for folder in (root, root / "npy_blocks"):
        for split in SPLITS:
            if (folder / split).is_dir() and any(
                _BLOCK_NAME.fullmatch(path.name) for path in (folder / split).iterdir()
            ):
                return folder
    return None


class BlockFiles:
    """Implements `Source` over upstream's block files; keeps their descriptors open.

    Attributes:
        root: the folder the user named; paths are relative to it.
        schema: None; it is inferred from the objects.
    """

    schema: Schema | None = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, tuple[int, BlockHeader]] = {}

    def __enter__(self) -> BlockFiles:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[BlockFiles], tuple[Path]]:
        # Descriptors mean nothing in another process.
        return BlockFiles, (self.root,)

    def close(self) -> None:
        """Closes the descriptors; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def scan(self) -> pa.Table:
        """Lists the objects that exist; see `Source.scan`.

        Returns:
            Table with `sample_id`, `path`, `row`, `split` and, where there are indices,
            `catalog_row`. Its metadata count under `num_missing` the rows that the masks leave out.

        Raises:
            DataError: no blocks, a block of another shape, or indices and masks that do not fit.
            StorageError: the file system refused.
        """
        import pyarrow as pa

        folder = find_blocks(self.root)
        if folder is None:
            raise DataError(
                f"{self.root} holds no train/, val/ or test/mantis_shrimp_K.npy; "
                "give the folder that holds npy_blocks"
            )
        tables, num_missing = [], 0
        has_indices = _check_indices(folder)
        mask = _global_mask(self.root, folder) if has_indices else None
        for split in SPLITS:
            blocks = _list_blocks(self.root, folder / split)
            rows = [np.arange(block.header.num_rows) for block in blocks]
            numbers = _read_indices(folder, split, blocks) if has_indices else None
            kept = _kept_rows(folder / split, blocks, numbers, mask)
            for place, block in enumerate(blocks):
                keep = kept[place]
                num_missing += int(keep.size - keep.sum())
                catalog_row = None if numbers is None else numbers[place][keep]
                tables.append(_block_table(split, block, rows[place][keep], catalog_row))
        table = pa.concat_tables(tables)
        table = table.sort_by([("sample_id", "ascending"), ("path", "ascending")])
        return table.replace_schema_metadata({"num_missing": str(num_missing)})

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        """Reads one object; see `Source.read` and `read_row`."""
        opened = self._open.get(path)
        if opened is None:
            header = read_header(self.root / path)
            try:
                descriptor = os.open(self.root / path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise StorageError(f"cannot open {path}: {error.strerror}") from error
            opened = self._open.setdefault(path, (descriptor, header))
            if opened[0] != descriptor:
                os.close(descriptor)  # another thread was faster
        return read_row(self.root / path, *opened, row)


def _list_blocks(root: Path, folder: Path) -> list[_Block]:
    """Blocks of one split, by number; empty where the split has no folder."""
    if not folder.is_dir():
        return []
    named = [(_BLOCK_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    found = sorted((int(match[1]), path) for match, path in named if match)
    return [
        _Block(path=str(path.relative_to(root)), number=number, header=read_header(path))
        for number, path in found
    ]


def _block_table(split: str, block: _Block, rows: Array, catalog_row: Array | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.cast(pa.array(rows if catalog_row is None else catalog_row), pa.string())
    sample_id = pc.utf8_lpad(text, 7, "0")
    if catalog_row is None:
        sample_id = pc.binary_join_element_wise(f"{split}-{block.number:02d}", sample_id, "-")
    columns = {
        "sample_id": sample_id,
        "path": pa.repeat(block.path, rows.size),
        "row": pa.array(rows, pa.int64()),
        "split": pa.repeat(split, rows.size),
    }
    if catalog_row is not None:
        columns["catalog_row"] = pa.array(catalog_row, pa.int64())
    return pa.table(columns)


def _check_indices(folder: Path) -> bool:
    """Whether the splits have indices; either all or none may."""
    splits = [split for split in SPLITS if _list_blocks(folder, folder / split)]
    missing = [split for split in splits if not (folder / f"{split}_indices.npy").exists()]
    if missing and len(missing) < len(splits):
        raise DataError(
            f"{folder} has no {missing[0]}_indices.npy, but indices for other splits: rows cannot "
            "be matched to one catalog; add it, or move the others away"
        )
    return not missing


def _read_indices(folder: Path, split: str, blocks: list[_Block]) -> list[Array]:
    """Catalog row numbers (int64) of the rows of each block."""
    path = folder / f"{split}_indices.npy"
    if not blocks:
        return []
    per_rank = _load_arrays(path)
    if per_rank and all(np.ndim(item) == 0 for item in per_rank):
        per_rank = _cut_flat(path, np.asarray(per_rank), blocks)
    result = []
    for block in blocks:
        if block.number >= len(per_rank):
            raise DataError(f"{path} has indices of {len(per_rank)} blocks, none of {block.path}")
        numbers = np.asarray(per_rank[block.number])
        if (
            numbers.ndim != 1
            or numbers.dtype.kind not in "iu"
            or (numbers.size and numbers.min() < 0)
        ):
            raise DataError(f"{path}: the indices of {block.path} are not row numbers")
        if numbers.size != block.header.num_rows:
            raise DataError(
                f"{path} has {numbers.size} indices for {block.path}, "
                f"which has {block.header.num_rows} rows; they belong to other blocks"
            )
        result.append(numbers.astype(np.int64))
    return result


def _cut_flat(path: Path, numbers: Array, blocks: list[_Block]) -> list[Any]:
    """Numbers of all blocks in one row, cut into those of each block, as upstream numbers them."""
    sizes = [block.header.num_rows for block in blocks]
    if numbers.size != sum(sizes):
        raise DataError(
            f"{path} holds {numbers.size} numbers in one row for {sum(sizes)} rows in "
            f"{len(blocks)} blocks; it belongs to other blocks"
        )
    parts: list[Any] = [None] * (blocks[-1].number + 1)
    for block, part in zip(blocks, np.split(numbers, np.cumsum(sizes)[:-1]), strict=True):
        parts[block.number] = part
    return parts


def _load_arrays(path: Path) -> list[Any]:
    """The arrays of a 2-D `.npy`, of an object array of arrays, or of a pickled list of arrays."""
    try:
        if _is_plain_npy(path):
            return list(np.load(path, mmap_mode="r", allow_pickle=False))
        loaded = load_file(path)
    except (SampleError, ValueError) as error:
        raise DataError(f"{path} is unreadable: {error}") from error
    if isinstance(loaded, PickledArray):
        loaded = loaded.value
    shape: tuple[int, ...] = ()
    if isinstance(loaded, ObjectArray):
        shape, loaded = loaded.shape, loaded.items
    if not isinstance(loaded, list | tuple | np.ndarray):
        raise DataError(f"{path} holds a value of type {type(loaded).__name__}, not indices")
    items = [_row_numbers(item) for item in loaded]
    if any(item is None for item in items):
        raise DataError(f"{path} holds values that are neither arrays nor row numbers")
    return list(np.array(items).reshape(shape)) if len(shape) > 1 else items


def _row_numbers(item: Any) -> Any:
    """An array or a number; None for what is neither, such as lists that hold each other."""
    if isinstance(item, list) and all(type(number) is int for number in item):
        return np.array(item)
    value = item.value if isinstance(item, PickledArray) else item
    return value if isinstance(value, int | np.ndarray | np.integer) else None


def _is_plain_npy(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            return False
        return b"'|O'" not in file.read(256)


def _global_mask(root: Path, folder: Path) -> Array | None:
    """The mask over all rows of the catalog, beside or above the blocks; None without one."""
    for place in (root, folder, folder.parent, root.parent):
        if (place / "exists_mask.npy").is_file():
            return _load_mask(place / "exists_mask.npy")
    return None


def _load_mask(path: Path, num_rows: int | None = None, owner: str = "") -> Array:
    """A mask, of as many rows as its blocks or block if these are given."""
    try:
        # Mapped, since a header may promise more than the file and the memory hold.
        mask = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is unreadable: {error}") from error
    if mask.ndim != 1 or mask.dtype.kind not in "biu":
        raise DataError(f"{path} has shape {mask.shape} and dtype {mask.dtype}; a mask is 1-D bool")
    if num_rows not in (None, mask.size):
        other = "other blocks" if owner == "the blocks" else "another block"
        raise DataError(f"{path} has {mask.size} rows, {owner} {num_rows}; it belongs to {other}")
    return np.asarray(mask, bool)


def _kept_rows(
    folder: Path, blocks: list[_Block], numbers: list[Array] | None, mask: Array | None
) -> list[Array]:
    """Bool array of each block: the rows that hold an object as far as masks tell."""
    sizes = [block.header.num_rows for block in blocks]
    if numbers is not None and mask is not None:
        highest = max((int(n.max()) for n in numbers if n.size), default=-1)
        if highest >= mask.size:
            raise DataError(
                f"exists_mask.npy has {mask.size} rows, but the indices of {folder.name} reach "
                f"{highest}; mask and indices belong to different catalogs"
            )
        return [mask[n] for n in numbers]
    if (folder / "exists_mask.npy").is_file():
        whole = _load_mask(folder / "exists_mask.npy", sum(sizes), "the blocks")
        return np.split(whole, np.cumsum(sizes)[:-1])
    return [_block_mask(folder, block) for block in blocks]


def _block_mask(folder: Path, block: _Block) -> Array:
    path = folder / f"exists_mask_{block.number}.npy"
    if not path.is_file():
        return np.ones(block.header.num_rows, bool)
    return _load_mask(path, block.header.num_rows, block.path)
