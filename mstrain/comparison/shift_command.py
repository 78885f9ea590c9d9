"""`mstrain shift`: whether two sets of objects differ, as a network sees them.

mstrain shift RUN DATA NEW --split-a test --sheet shift.png
mstrain shift RUN E.parquet E.parquet --sample-a 'redshift < 0.3' --sample-b 'redshift > 0.6'

It stands alone as commands do: it embeds data sets into a scratch folder, or takes tables.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from msdata.core.files import write_whole
from msdata.core.output_file import PNG_MARK, check_output, make_folder
from msdata.describe.sheet import caption, draw_sheet, png_bytes, samples_by_id
from msdata.errors import UsageError
from mstrain.checks import check_range
from mstrain.comparison.expression import parse_expression
from mstrain.comparison.shift import Shift, measure_shift
from mstrain.distributed import Ranks, one_rank
from mstrain.embedding.embed import EmbeddingConfig, embed_on_ranks
from mstrain.embedding.embeddings import LAYER_KEY, Embeddings, read_embeddings
from mstrain.evaluation.command import add_network_arguments
from mstrain.evaluation.list_table import as_floats
from mstrain.models.redshift_net import FEATURES, LAYERS
from mstrain.options import add_printed, add_run
from mstrain.training.checkpoint import checkpoint_sha256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain shift`."""
    add_run(parser, has_model_files=True)
    for name in ("a", "b"):
        parser.add_argument(
            name,
            metavar=f"DATA_{name.upper()}",
            type=Path,
            help="folder that 'msdata pack' wrote, or a table of 'mstrain embed' by RUN",
        )
    for name in ("a", "b"):
        parser.add_argument(f"--split-{name}", help=f"split of DATA_{name.upper()} (default: all)")
    for name in ("a", "b"):
        parser.add_argument(
            f"--sample-{name}",
            metavar="EXPRESSION",
            help=f"objects of DATA_{name.upper()}, such as 'redshift < 0.3' (default: all)",
        )
    parser.add_argument(
        "--layer",
        choices=LAYERS,
        default=FEATURES,
        help="what data sets are compared by, see 'mstrain embed' (default: %(default)s)",
    )
    text = "objects of each set, drawn at random (default: %(default)s)"
    parser.add_argument("--max-objects", type=int, default=50_000, help=text)
    text = "seed of the draw and the folds (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=0, help=text)
    text = "draw the 8 objects of each set that are least like the other's"
    parser.add_argument("--sheet", metavar="OUT.png", type=Path, help=text)
    add_network_arguments(parser, has_prior=False)
    add_printed(parser)


def run(args: argparse.Namespace) -> int:
    """Compares; returns the exit code."""
    check_range("--seed", args.seed, 0)
    check_range("--max-objects", args.max_objects, 20)
    if args.sheet is not None:
        if args.sheet.suffix.lower() != ".png":
            raise UsageError(f"--sheet must be a .png file, got {args.sheet}")
        check_output(args.sheet, PNG_MARK)
    with (
        one_rank("shift", args.device) as ranks,
        tempfile.TemporaryDirectory(prefix="mstrain-") as scratch,
    ):
        a, b = (_set_of(name, Path(scratch), args, ranks) for name in ("a", "b"))
        if a.table.origin[LAYER_KEY] != b.table.origin[LAYER_KEY]:
            layers = f"{a.table.origin[LAYER_KEY]} and {b.table.origin[LAYER_KEY]}"
            raise UsageError(f"both sets must be embeddings of one layer, got {layers}")
        values = [one.table.of_rows(one.rows) for one in (a, b)]
    found = measure_shift(values[0], values[1], seed=args.seed)
    odd = [one.ids[rows].tolist() for one, rows in zip((a, b), found.oddest(), strict=True)]
    if args.sheet is not None:
        _draw(args.sheet, (a, b), odd, found)
    if args.json:
        print(json.dumps({**found.as_dict(), "oddest_a": odd[0], "oddest_b": odd[1]}))
    else:
        print(_text(found, odd, (a, b)))
    return 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Set:
    """A set of objects: its table, the rows that count, and how it is called."""

    table: Embeddings
    rows: NDArray[np.int64]
    name: str
    num_unknown: int

    @property
    def ids(self) -> NDArray[Any]:
        found: NDArray[Any] = self.table.columns["sample_id"][self.rows]
        return found


def _set_of(name: str, scratch: Path, args: argparse.Namespace, ranks: Ranks) -> _Set:
    given, split, text = (getattr(args, f"{p}{name}") for p in ("", "split_", "sample_"))
    expression = None if text is None else parse_expression(text)
    path, names = given, () if expression is None else expression.names
    if given.is_dir():
        path = scratch / f"{name}.parquet"
        config = EmbeddingConfig(
            layer=args.layer,
            split=split,
            columns=tuple(n for n in names if n not in ("sample_id", "split")),
            checkpoint=args.checkpoint,
            has_any_pixels=args.any_pixels,
            batch_size=args.batch_size,
            is_quiet=args.quiet,
        )
        embed_on_ranks(args.run, given, path, config, ranks)
    table = read_embeddings(path)
    if table.origin["checkpoint_sha256"] != checkpoint_sha256(args.run, args.checkpoint):
        raise UsageError(
            f"{given} must be embeddings by the {args.checkpoint} checkpoint of {args.run}, got "
            "those of another one; run 'mstrain embed' again"
        )
    rows, num_unknown = np.arange(len(table)), 0
    if split is not None:
        rows = np.flatnonzero(table.columns["split"] == split)
    if expression is not None:
        lacking = [n for n in names if n not in table.columns]
        if lacking:
            raise UsageError(
                f"--sample-{name} needs the column {lacking[0]}, which {given} does not have; copy "
                f"it with 'mstrain embed ... --columns {lacking[0]}'"
            )
        columns = {n: _column(table.columns[n])[rows] for n in names}
        passes, num_unknown = expression.evaluate(columns)
        rows = rows[passes]
    if len(rows) > args.max_objects:
        random = np.random.default_rng(args.seed)
        rows = np.sort(random.choice(rows, args.max_objects, replace=False))
    words = [str(given), *filter(None, (split, text))]
    return _Set(table=table, rows=rows, name=" ".join(words), num_unknown=num_unknown)


def _column(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype == object else as_floats(values)


def _draw(path: Path, sets: Sequence[_Set], odd: Sequence[list[str]], found: Shift) -> None:
    samples, captions = [], []
    for one, ids, label in zip(sets, odd, "AB", strict=True):
        data = msdata.open(str(one.table.origin["data"]))
        samples += (read := samples_by_id(data, data.splits, ids))
        captions += [f"{label}   {caption(sample, ())}" for sample in read]
    title = f"A {sets[0].name}, B {sets[1].name}: AUROC {found.auroc.value:.3f}"
    make_folder(path.absolute().parent)
    write_whole(path, png_bytes(draw_sheet(samples, data.schema, captions=captions, title=title)))


def _text(found: Shift, odd: Sequence[list[str]], sets: Sequence[_Set]) -> str:
    lines = [
        f"{label}: {len(one.rows):,} objects of {one.name}"
        + (f"; {one.num_unknown:,} left out, a value is unknown" if one.num_unknown else "")
        for label, one in zip("AB", sets, strict=True)
    ]
    auroc = found.auroc
    lines += [
        f"a linear probe of {sets[0].table.origin[LAYER_KEY]} tells them apart with AUROC "
        f"{auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f}): "
        + ("they differ" if found.differs else "no difference is seen"),
        f"squared Frechet distance {found.frechet:.3g}; where both are mixed "
        f"{found.frechet_null:.3g}",
    ]
    lines += [f"least like {o}: {', '.join(ids)}" for o, ids in zip("BA", odd, strict=True)]
    return "\n".join(lines)
