"""`mstrain neighbors`: the objects that a network sees as most alike, as numbers and as a sheet.

mstrain neighbors EMBEDDINGS.parquet DATA OUT.png --of ID
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.core.files import write_whole
from msdata.core.output_file import PNG_MARK, check_output, make_folder
from msdata.describe.sheet import caption, draw_sheet, png_bytes, samples_by_id
from msdata.errors import UsageError
from mstrain.checks import check_choice
from mstrain.embedding.distance import nearest
from mstrain.embedding.embeddings import LAYER_KEY, Embeddings, read_embeddings
from mstrain.options import add_data, add_printed

METRICS = ("cosine", "euclidean")
_MAX_OBJECTS = 200


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """An object near another.

    Attributes:
        sample_id: its id.
        split: its split.
        distance: between the embeddings; of "cosine" 1 minus the cosine, from 0 to 2.
    """

    sample_id: str
    split: str
    distance: float


def find_neighbors(
    table: Embeddings, sample_id: str, count: int, metric: str = METRICS[0]
) -> list[Neighbor]:
    """The nearest objects of one object in a table of embeddings.

    Args:
        table: see `read_embeddings`.
        sample_id: the object's id.
        count: neighbors wanted; the object itself is not among them.
        metric: "cosine" or "euclidean".

    Returns:
        The neighbors, nearest first; all others where the table has fewer.

    Raises:
        UsageError: no object has that id, or its embedding is 0 and the metric cosine.
        DataError: the file is damaged.
    """
    check_choice("--metric", metric, METRICS)
    found_n = np.flatnonzero(table.columns["sample_id"] == sample_id)
    if len(found_n) != 1:
        raise UsageError(
            f"--of must be the id of one of the {len(table):,} samples of {table.path}, got "
            f"{sample_id!r}, which {len(found_n)} of them have"
        )
    own = int(found_n[0])
    is_cosine = metric == "cosine"
    query = table.of_rows(found_n).astype(np.float32)
    if is_cosine and not query.any():
        raise UsageError(
            f"the embedding of {sample_id!r} is 0 and has no direction; give --metric euclidean"
        )

    def parts() -> Iterator[NDArray[np.floating]]:
        for part in table.parts():
            yield _unit(part.astype(np.float32)) if is_cosine else part

    distance, row = nearest(_unit(query) if is_cosine else query, parts(), count + 1)
    kept = row[0] != own
    pairs = list(zip(distance[0][kept].tolist(), row[0][kept].tolist(), strict=True))[:count]
    ids, splits = table.columns["sample_id"], table.columns["split"]
    # |a - b|^2 = 2 (1 - cos) of unit vectors.
    return [
        Neighbor(sample_id=ids[n], split=splits[n], distance=d * d / 2 if is_cosine else d)
        for d, n in pairs
    ]


def _unit(values_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    norm_N1 = np.linalg.norm(values_ND, axis=1, keepdims=True)
    return np.asarray(values_ND / np.where(norm_N1 > 0, norm_N1, 1), np.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain neighbors`."""
    parser.add_argument(
        "table", metavar="EMBEDDINGS.parquet", type=Path, help="table that 'mstrain embed' wrote"
    )
    add_data(parser)
    parser.add_argument("out", metavar="OUT.png", type=Path, help="the sheet to draw")
    parser.add_argument("--of", required=True, metavar="ID", help="the object's sample_id")
    parser.add_argument(
        "--n", type=int, default=11, help="neighbors to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default=METRICS[0],
        help="distance between embeddings (default: %(default)s)",
    )
    add_printed(parser)


def run(args: argparse.Namespace) -> int:
    """Finds the neighbors and draws them; returns the exit code."""
    if args.out.suffix.lower() != ".png":
        raise UsageError(f"out must be a .png file, got {args.out}")
    check_output(args.out, PNG_MARK)
    if not 1 <= args.n < _MAX_OBJECTS:
        raise UsageError(f"--n must be 1 to {_MAX_OBJECTS - 1}, got {args.n}")
    table, data = read_embeddings(args.table), msdata.open(args.data)
    if table.origin["fingerprint"] != data.manifest.fingerprint:
        raise UsageError(
            f"DATA must be the data set that {args.table} was made of, fingerprint "
            f"{table.origin['fingerprint']}, got {args.data}, {data.manifest.fingerprint}"
        )
    found = find_neighbors(table, args.of, args.n, args.metric)
    if not found:
        raise UsageError(f"{args.table} holds only {args.of!r}; embed more samples")
    samples = samples_by_id(data, data.splits, [args.of, *(n.sample_id for n in found)])
    notes = ["the object", *(f"{n.split}  {args.metric} {n.distance:.4g}" for n in found)]
    captions = [
        f"{caption(sample, ())}   {note}" for sample, note in zip(samples, notes, strict=True)
    ]
    title = f"{args.of}: {len(found)} nearest of {len(table):,} by {table.origin[LAYER_KEY]}"
    make_folder(args.out.absolute().parent)
    image = draw_sheet(samples, data.schema, captions=captions, title=title)
    write_whole(args.out, png_bytes(image))
    if args.json:
        print(json.dumps({"neighbors": [asdict(n) for n in found], "sheet": str(args.out)}))
        return 0
    for neighbor in found:
        print(f"{neighbor.distance:.4g}  {neighbor.split}  {neighbor.sample_id}")
    print(f"drew {len(samples)} objects into {args.out}")
    return 0
