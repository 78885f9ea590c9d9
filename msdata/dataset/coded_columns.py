"""The index columns of a coded data set: how each sample's arrays are stored.

Apart from `index.py` because a plain data set has none of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.coding import ArrayCoding, decode_into, wider
from msdata.dataset.manifest import CODES, StoredArray
from msdata.errors import DataError
from msdata.schema import Array, Schema

if TYPE_CHECKING:
    import pyarrow as pa

    from msdata.dataset.dataset import Split

DECODED_CRC32C = "decoded_crc32c"
# What a chunk may have beyond its content: the header of a Blosc1 chunk that did not shrink.
MAX_OVERHEAD_NBYTES = 16


def coding_columns(codings: Sequence[ArrayCoding]) -> tuple[str, ...]:
    """Names the columns that a coded data set adds, in order; none for one that is not coded."""
    return tuple(coding_kinds(codings))


def coding_kinds(codings: Sequence[ArrayCoding]) -> dict[str, str]:
    """Returns the kind of each of the `coding_columns`, for `open_table`."""
    if not codings:
        return {}
    quantized = [c.name for c in codings if c.quantize is not None]
    return {
        DECODED_CRC32C: "integer",
        **{f"nbytes_{c.name}": "integer" for c in codings},
        **{f"dtype_{name}": "text" for name in quantized},
        **{f"step_{name}": "list" for name in quantized},
    }


def possible_columns(arrays: Iterable[str]) -> set[str]:
    """Names the columns that a data set of these arrays may have if it is coded."""
    return {DECODED_CRC32C, *(f"{p}_{n}" for n in arrays for p in ("nbytes", "dtype", "step"))}


def columns_of_shard(found: pa.Table, codings: Sequence[ArrayCoding]) -> dict[str, Any]:
    """Makes the columns of a shard's samples from the note of its pack.

    Args:
        found: the note's columns, of the same names but for `nbytes`.
        codings: how the arrays are stored.
    """
    import pyarrow as pa

    types: dict[str, pa.DataType] = {DECODED_CRC32C: pa.uint32()}
    for coding in codings:
        types[f"nbytes_{coding.name}"] = pa.int64()
        types[f"dtype_{coding.name}"] = pa.string()
        types[f"step_{coding.name}"] = pa.list_(pa.float32(), coding.num_planes)
    columns = {name: found[name].cast(types[name]) for name in coding_columns(codings)}
    total = sum(found[f"nbytes_{c.name}"].to_numpy() for c in codings)
    return {**columns, "nbytes": pa.array(total, pa.int64())}


def stored_arrays(codings: Sequence[ArrayCoding], table: pa.Table) -> dict[str, StoredArray]:
    """Makes the manifest's entries, with the widest dtype that each array is stored as.

    Args:
        codings: how the arrays are stored.
        table: the whole index.
    """
    stored = {}
    for c in codings:
        codes = c.dtype
        if c.quantize is not None:
            codes = functools.reduce(wider, table[f"dtype_{c.name}"].unique().to_pylist())
        stored[c.name] = StoredArray(quantize=c.quantize, compress=c.compress, codes=codes)
    return stored


def read_steps(split: Split, array: str) -> NDArray[np.float32]:
    """Implements `Split.steps`."""
    coding = _quantized(split, array)
    if coding is None:
        return np.empty((len(split), 0), np.float32)
    steps = [np.empty((0, coding.num_planes), np.float32)]
    for part in split.column_parts(f"step_{array}"):
        values = part.flatten()
        if len(values) != coding.num_planes * len(part) or values.null_count:
            raise _damage(split, f"step_{array} must hold {coding.num_planes} numbers per sample")
        steps.append(np.asarray(values, np.float32).reshape(-1, coding.num_planes))
    joined = np.concatenate(steps)
    if not bool(((joined >= 0) & (joined < np.inf)).all()):
        raise _damage(split, f"step_{array} must be finite and at least 0")
    return joined


def read_codes(split: Split, array: str) -> NDArray[np.uint8]:
    """Implements `Split.codes`."""
    if _quantized(split, array) is None:
        return np.broadcast_to(np.uint8(0), len(split))
    said = split.dataset.manifest.coding[array].codes
    numbers = [np.empty(0, np.uint8)]
    for part in split.column_parts(f"dtype_{array}"):
        encoded = part.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        if not set(names) <= set(CODES):
            raise _damage(split, f"dtype_{array} must be one of {', '.join(CODES)}")
        if (widest := functools.reduce(wider, names, said)) != said:
            raise _damage(split, f"dtype_{array} must fit {said} of dataset.json, got {widest}")
        known = np.array([CODES.index(name) for name in names], np.uint8)
        numbers.append(known[np.asarray(encoded.indices)])
    return np.concatenate(numbers)


def read_array_nbytes(split: Split) -> NDArray[np.int64]:
    """Implements `Split.array_nbytes` for a coded data set; refuses impossible lengths."""
    nbytes = np.empty((len(split), len(split.codings)), np.int64)
    for a, coding in enumerate(split.codings):
        itemsize = np.dtype(coding.dtype).itemsize
        sizes = np.asarray(itemsize)
        if coding.quantize is not None:
            sizes = np.array([np.dtype(c).itemsize for c in CODES])[split.codes(coding.name)]
        found, most = (
            split.numbers(f"nbytes_{coding.name}", np.int64),
            sizes * math.prod(coding.shape),
        )
        is_right = found == most
        if coding.compress != "none":
            is_right = (found > 0) & (found <= most + MAX_OVERHEAD_NBYTES)
        if not is_right.all():
            wrong = found[int(np.argmin(is_right))]
            raise _damage(split, f"nbytes_{coding.name} must fit the array, got {wrong}")
        nbytes[:, a] = found
    if not np.array_equal(nbytes.sum(axis=1), split.numbers("nbytes", np.int64)):
        raise _damage(split, "nbytes must be the sum of its arrays'")
    nbytes.flags.writeable = False
    return nbytes


def decoded(
    schema: Schema,
    codings: Sequence[ArrayCoding],
    stored: Sequence[NDArray[np.uint8]],
    values: Mapping[str, Any],
) -> dict[str, Array]:
    """Decodes the stored bytes of one sample's arrays.

    Args:
        schema: the arrays.
        codings: how they are stored; empty for a data set that is not coded.
        stored: uint8 (bytes,) of each array, in the schema's order.
        values: the sample's row of the index.

    Raises:
        DataError: bytes do not decode.
    """
    pairs = zip(schema.arrays, stored, strict=True)
    if not codings:
        return {a.name: s.view(a.numpy_dtype).reshape(a.shape) for a, s in pairs}
    arrays = {}
    for (array, content), coding in zip(pairs, codings, strict=True):
        steps = np.array(values.get(f"step_{array.name}", ()), np.float32)
        kind = values.get(f"dtype_{array.name}", array.dtype)
        arrays[array.name] = np.empty(array.shape, array.numpy_dtype)
        decode_into(content, coding, steps, kind, arrays[array.name])
    return arrays


def _quantized(split: Split, array: str) -> ArrayCoding | None:
    named = (c for c in split.codings if c.name == array and c.quantize is not None)
    return next(named, None)


def _damage(split: Split, fact: str) -> DataError:
    path = split.dataset.path / "index.parquet"
    return DataError(f"{path} is damaged: {fact}; restore it or pack again")
