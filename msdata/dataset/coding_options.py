"""The options `--quantize` and `--compress`, as `msdata pack` takes them and `msdata plan` too."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from msdata.dataset.coding import COMPRESSORS, ArrayCoding
from msdata.dataset.manifest import coding_of
from msdata.errors import UsageError
from msdata.schema import Schema


def add_coding_arguments(parser: argparse._ActionsContainer) -> None:
    """Declares the options."""
    parser.add_argument(
        "--quantize",
        action="append",
        default=[],
        metavar="[ARRAY=]Q",
        help="store float32 pixels as integers, in steps of the noise of their band over Q: an "
        "error of at most half a step; 4 is fpack's default; repeatable (default: store floats)",
    )
    parser.add_argument(
        "--compress",
        choices=COMPRESSORS,
        default="none",
        help="compress each sample, without loss (default: %(default)s)",
    )


def parse_quantize(texts: Sequence[str]) -> dict[str, float | None]:
    """Steps per noise by array of `4`, `panstarrs=4,unwise=8`, `galex=none`; "*" for all others.

    Raises:
        UsageError: a text is none of these, or an array is named twice.
    """
    found: dict[str, float | None] = {}
    for part in (part for text in texts for part in text.split(",")):
        name, equals, value = part.rpartition("=")
        try:
            if equals and not name:
                raise ValueError
            q = None if value == "none" and name else float(value)
        except ValueError:
            raise UsageError(
                f"--quantize must be like 4 or panstarrs=4,unwise=8,galex=none, got {part!r}"
            ) from None
        if (name or "*") in found:
            raise UsageError(f"--quantize must name {name or 'all arrays'} once, got {part!r} too")
        found[name or "*"] = q
    return found


def codings_of(
    schema: Schema, quantize: Mapping[str, float | None] | None, compress: str
) -> tuple[ArrayCoding, ...]:
    """How each array is stored; empty if all of them are stored as they are.

    Args:
        schema: the arrays.
        quantize: from `parse_quantize`.
        compress: "none", "lz4" or "zstd".

    Raises:
        UsageError: `--quantize` names an array that the schema lacks or that is not float32, or
            quantizes none.
    """
    by_name = dict(quantize or {})
    others = by_name.pop("*", None)
    are_floats = {a.name: a.dtype == "<f4" for a in schema.arrays}
    for name, q in by_name.items():
        if name not in are_floats:
            raise UsageError(f"--quantize must name one of {', '.join(schema.names)}, got {name}")
        if q is not None and not are_floats[name]:
            raise UsageError(
                f"--quantize {name}={q:g}: only float32 arrays can be quantized, {name!r} is "
                f"{schema[name].dtype}; leave it out: --compress is lossless for any dtype"
            )
    if others is not None and not any(are_floats.values()):
        raise UsageError(f"--quantize {others:g}: no array is float32; leave it out")
    wanted = {name: by_name.get(name, others if are_floats[name] else None) for name in are_floats}
    if quantize and not any(wanted.values()):
        raise UsageError(f"--quantize must quantize one of {', '.join(are_floats)}; leave it out")
    if compress == "none" and not quantize:
        return ()
    return tuple(coding_of(a, wanted[a.name], compress) for a in schema.arrays)
