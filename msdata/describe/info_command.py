"""`msdata info`: its options and its text."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from msdata.core.text import bytes_text, table_lines
from msdata.describe.info import DatasetInfo, Histogram, describe, info_json
from msdata.describe.losses import loss_lines
from msdata.schema import Survey

_MIN_WIDTH = 40
_LABEL_WIDTH = 13


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata info`."""
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Describes a data set; returns the exit code."""
    info = describe(args.data)
    if args.json:
        print(json.dumps(info_json(info)))
        return 0
    width = max(_MIN_WIDTH, shutil.get_terminal_size().columns)
    for line in info_lines(info, width):
        print(line)
    return 0


def info_lines(info: DatasetInfo, width: int) -> Iterator[str]:
    """Yields the description, line by line.

    Args:
        info: result of `describe`.
        width: columns of the terminal, which the bars fill; tables fit into 80.
    """
    parts = (
        _head(info),
        _splits(info),
        _arrays(info),
        _pixels(info),
        loss_lines(info.coded, info.manifest),
        _overlaps(info),
        _redshifts(info.redshifts, width),
        _columns(info),
        _provenance(info),
    )
    for number, part in enumerate(parts):
        lines = [line.rstrip() for line in part]
        if lines and number:
            yield ""
        yield from lines


def _head(info: DatasetInfo) -> Iterator[str]:
    manifest = info.manifest
    facts = {
        "data set": str(info.path),
        "fingerprint": manifest.fingerprint,
        "format": manifest.container,
        "samples": f"{manifest.num_samples:,} of {bytes_text(manifest.schema.sample_nbytes)}",
        "size": f"{bytes_text(sum(s.nbytes for s in info.splits))} in {len(manifest.shards):,} "
        f"shards, index {bytes_text(info.index_nbytes)}",
        "seed": str(manifest.seed),
    }
    if info.coded:
        stored = sum(c.nbytes for c in info.coded)
        ratio = manifest.num_samples * manifest.schema.sample_nbytes / max(1, stored)
        facts["samples"] += f", coded {ratio:.2f} times smaller"
    for name, value in facts.items():
        yield f"{name:<{_LABEL_WIDTH}}{value}"


def _splits(info: DatasetInfo) -> Iterator[str]:
    total = max(1, info.manifest.num_samples)
    rows = [
        (
            s.name,
            f"{s.num_samples:,}",
            f"{100 * s.num_samples / total:.1f} %",
            f"{s.num_shards:,}",
            bytes_text(s.nbytes),
            bytes_text(s.smallest_nbytes),
            bytes_text(s.largest_nbytes),
        )
        for s in info.splits
    ]
    head = ("split", "samples", "share", "shards", "size", "smallest shard", "largest")
    return table_lines(head, rows)


def _arrays(info: DatasetInfo) -> Iterator[str]:
    rows = [
        (
            a.name,
            "x".join(map(str, a.shape)),
            a.dtype,
            ",".join(a.bands) or "-",
            "-" if a.pixel_scale_arcsec is None else f'{a.pixel_scale_arcsec:g}"',
            a.unit or "-",
            _zero_points(a),
        )
        for a in info.manifest.schema.arrays
    ]
    return table_lines(
        ("array", "<shape", "<dtype", "<bands", "pixel", "<unit", "<AB zero-points"), rows
    )


def _zero_points(array: Survey) -> str:
    if array.zero_points_ab is not None:
        return ", ".join(f"{z:g}" for z in array.zero_points_ab)
    return "differ by object" if array.bands else "-"


def _pixels(info: DatasetInfo) -> Iterator[str]:
    rows = [
        (
            a.name,
            f"{a.num_filled_samples:,}",
            f"{a.num_filled_pixels:,}",
            f"{a.num_nan_samples:,}",
            f"{a.num_nan_pixels:,}",
            a.missing_text or "-",
        )
        for a in info.arrays
    ]
    head = ("array", "samples filled", "pixels", "samples with NaN", "pixels", "<without coverage")
    return table_lines(head, rows)


def _overlaps(info: DatasetInfo) -> Iterator[str]:
    """Lists how many objects of other splits lie within a cutout's side of a training object."""
    rows = [
        (
            o.split,
            o.array,
            f'{o.side_arcsec:g}"',
            f"{o.num_objects:,}",
            f"{100 * o.num_objects / max(1, o.num_positions):.2f} %",
        )
        for o in info.overlaps
    ]
    head = ("overlap with train", "<array", "nearer than", "samples", "share")
    return table_lines(head, rows) if rows else iter(())


def _redshifts(histogram: Histogram | None, width: int) -> Iterator[str]:
    """Draws one bar per bin for all splits together, beside each split's count."""
    if histogram is None:
        return
    names = list(histogram.counts)
    totals = np.sum(list(histogram.counts.values()), axis=0).tolist()
    rows = [
        (
            f"{low:.3f} - {high:.3f}",
            *(f"{histogram.counts[name][i]:,}" for name in names),
        )
        for i, (low, high) in enumerate(zip(histogram.edges[:-1], histogram.edges[1:], strict=True))
    ]
    lines = list(table_lines(("redshift", *names), rows))
    yield lines[0]
    room = max(4, width - len(lines[0]) - 3)
    largest = max(1, *totals)
    for line, count in zip(lines[1:], totals, strict=True):
        length = max(round(count / largest * room), int(count > 0))
        yield f"{line}  {'#' * length}"
    yield "the last line includes counts beyond its edge"


def _columns(info: DatasetInfo) -> Iterator[str]:
    if not info.columns:
        yield "no catalog columns"
        return
    rows = [c.cells("-") for c in info.columns]
    yield from table_lines(("column", "<type", "nulls", "smallest", "largest"), rows)
    for table in info.added:
        yield (
            f"added later from {table.source}: {', '.join(table.columns)}; "
            f"{table.num_missing:,} samples had no row there"
        )


def _provenance(info: DatasetInfo) -> Iterator[str]:
    yield "provenance"
    for name, value in info.manifest.provenance.items():
        if isinstance(value, dict):
            for key, entry in value.items():
                yield f"  {name}.{key}: {json.dumps(entry)}"
        else:
            yield f"  {name}: {value}"
