"""`mstrain embed`: a table of a trained network's embeddings; it stands alone as commands do.

mstrain embed RUN DATA OUT.parquet --layer hidden
torchrun --nproc-per-node 4 -m mstrain.embed RUN DATA OUT.parquet
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mstrain.distributed import run_joined
from mstrain.embedding.embed import Embedded, EmbeddingConfig, embed_on_ranks
from mstrain.evaluation.command import add_network_arguments
from mstrain.models.redshift_net import FEATURES, LAYERS
from mstrain.options import add_columns, add_data, add_printed, add_run, add_split, parse_names

WHEN_INTERRUPTED = "no table was written: run the same command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain embed`."""
    add_run(parser, has_model_files=True)
    add_data(parser)
    parser.add_argument("out", metavar="OUT.parquet", type=Path, help="table to write")
    parser.add_argument(
        "--layer",
        choices=LAYERS,
        default=FEATURES,
        help="pooled features of all encoders, the hidden layer before the logits, or pixels: "
        "means and noise of the images that the network sees (default: %(default)s)",
    )
    add_split(parser, "embed", None)
    add_columns(parser)
    add_network_arguments(parser, has_prior=False)
    add_printed(parser)


def run(args: argparse.Namespace) -> int:
    """Embeds; returns the exit code."""
    config = EmbeddingConfig(
        layer=args.layer,
        split=args.split,
        columns=parse_names(args.columns),
        checkpoint=args.checkpoint,
        has_any_pixels=args.any_pixels,
        batch_size=args.batch_size,
        is_quiet=args.quiet,
    )

    def show(found: Embedded) -> None:
        if args.json:
            print(json.dumps({**vars(found), "path": str(found.path)}))
        else:
            print(
                f"embedded {found.num_samples:,} samples in {found.num_values:,} values each into "
                f"{found.path}"
            )

    return run_joined(
        args.device,
        lambda ranks: embed_on_ranks(args.run, args.data, args.out, config, ranks),
        show,
    )
