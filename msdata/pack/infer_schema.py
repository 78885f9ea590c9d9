"""The schema of a folder of objects, from the first few of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from msdata.errors import DataError, SampleError, UsageError
from msdata.pack.prepare import is_number
from msdata.pack.read_ahead import read_in_order, read_sample
from msdata.schema import MANTIS_SHRIMP, Schema, Survey
from msdata.sources.source import Source

# Enough to outvote a few broken objects, few enough to be read at once.
NUM_LOOKED_AT = 16


def infer_schema(source: Source, locations: Sequence[tuple[str, int]]) -> Schema:
    """The schema that most of the first objects share.

    Args:
        source: where the objects are.
        locations: (path, row) of the objects to look at.

    Returns:
        `MANTIS_SHRIMP` (with the objects' own numbers as scalars) where its three arrays and no
        others are there; else an inferred one.

    Raises:
        DataError: none of the objects is usable.
    """
    votes: Counter[Schema] = Counter()
    reason = ""

    def look(number: int) -> Schema:
        try:
            return schema_of(read_sample(source, *locations[number]))
        except UsageError as error:
            raise SampleError(str(error)) from error

    for number, found in read_in_order(len(locations), look):
        if isinstance(found, SampleError):
            reason = reason or f"{locations[number][0]}: {found}"
        else:
            votes[found] += 1
    if not votes:
        raise DataError(
            f"none of the first {len(locations)} objects of {source.root} is usable; {reason}"
        )
    return votes.most_common(1)[0][0]


def schema_of(sample: Mapping[str, Any]) -> Schema:
    """The schema of one object.

    Args:
        sample: its dict.

    Raises:
        SampleError: it holds no numeric array, or something that is neither array, number nor text.
    """
    arrays = {n: v for n, v in sample.items() if isinstance(v, np.ndarray) and v.ndim}
    scalars = tuple(n for n, v in sample.items() if n not in arrays and is_number(v))
    if not arrays:
        raise SampleError("its dict holds no arrays")
    known = {a.name: a for a in MANTIS_SHRIMP.arrays}
    if arrays.keys() == known.keys() and all(arrays[n].shape == known[n].shape for n in known):
        return replace(MANTIS_SHRIMP, scalars=scalars)
    surveys = tuple(_survey_of(name, array, known.get(name)) for name, array in arrays.items())
    return Schema(name="inferred", arrays=surveys, scalars=scalars)


def _survey_of(name: str, array: np.ndarray[Any, Any], known: Survey | None) -> Survey:
    if known is not None and known.shape == array.shape:
        return known
    if array.dtype.kind not in "biufc":
        raise SampleError(f"array {name!r} has dtype {array.dtype}, not numbers")
    return Survey(name=name, shape=array.shape, dtype=array.dtype.newbyteorder("<").str)


def with_pixel_scales(schema: Schema, pixel_scales_arcsec: Mapping[str, float]) -> Schema:
    """The schema with other pixel scales.

    Raises:
        UsageError: there is no such array.
    """
    for name in pixel_scales_arcsec:
        if name not in schema.names:
            raise UsageError(
                f"--pixel-scale {name}: there is no such array; there are {', '.join(schema.names)}"
            )
    arrays = (
        replace(a, pixel_scale_arcsec=pixel_scales_arcsec.get(a.name, a.pixel_scale_arcsec))
        for a in schema.arrays
    )
    return replace(schema, arrays=tuple(arrays))
