"""Encodes a prepared sample for the shards of a coded data set: `--quantize` and `--compress`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msdata.schema import Array, Schema

# Imported where it is used: hardly any pack encodes.
if TYPE_CHECKING:
    from msdata.dataset.coding import ArrayCoding
    from msdata.pack.settings import PackSettings


def codings_of(schema: Schema, settings: PackSettings) -> tuple[ArrayCoding, ...]:
    """How a pack stores each array; see `coding_options.codings_of`."""
    from msdata.dataset import coding_options

    return coding_options.codings_of(schema, settings.quantize, settings.compress)


class Stored(NamedTuple):
    """A sample as its shard holds it.

    Attributes:
        arrays: what is stored, in the schema's order: uint8 (bytes,) if the data set is coded.
        metadata: what the sample's JSON member says of it.
        columns: its index columns.
        codes: dtype that each is stored as; empty for a data set that is not coded.
    """

    arrays: tuple[Array, ...]
    metadata: Mapping[str, Any]
    columns: Mapping[str, Any]
    codes: tuple[str, ...] = ()


def encode_sample(
    arrays: Sequence[Array],
    codings: Sequence[ArrayCoding],
    steps: Mapping[str, NDArray[np.float32]],
    codes: Sequence[str] | None = None,
) -> Stored:
    """Encodes the arrays of one sample.

    Args:
        arrays: its prepared arrays, in the schema's order.
        codings: how they are stored; empty stores them as they are.
        steps: float32 (bands,) of arrays whose steps are known, by name.
        codes: dtypes to store them as where they hold the arrays; None takes the smallest.
    """
    if not codings:
        return Stored(arrays=tuple(arrays), metadata={}, columns={})
    from msdata.dataset.coding import encode

    stored: list[Array] = []
    kinds: list[str] = []
    crc = 0
    coding_json: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for a, (array, coding) in enumerate(zip(arrays, codings, strict=True)):
        name = coding.name
        # A narrower one than the array needs is the caller's to find: it has the codes returned.
        kind = "<i4" if codes is not None and codes[a] == "<i4" else None
        found = encode(array, coding, step=steps.get(name), kind=kind, crc=crc)
        crc = found.decoded_crc32c
        stored.append(np.frombuffer(found.data, np.uint8))
        kinds.append(found.kind)
        columns[f"nbytes_{name}"] = stored[-1].nbytes
        coding_json[name] = {"dtype": found.kind, "shape": list(coding.shape)}
        if coding.quantize is None:
            continue
        columns[f"dtype_{name}"] = found.kind
        columns[f"step_{name}"] = coding_json[name]["step"] = found.steps.tolist()
    columns["decoded_crc32c"] = crc
    metadata = {"coding": coding_json, "decoded_crc32c": crc}
    return Stored(arrays=tuple(stored), codes=tuple(kinds), metadata=metadata, columns=columns)
