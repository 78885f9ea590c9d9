"""`mstrain flag`: which objects are unlike the training's; it stands alone as commands do.

mstrain flag EMBEDDINGS.parquet OUT.parquet --predictions RUN/predictions-test.parquet
mstrain flag EMBEDDINGS.parquet OUT.parquet --of NEW.parquet --kinds planted
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from msdata.topology import from_env
from mstrain.distributed import choose_device
from mstrain.embedding.flag import DENSITIES, FlagConfig, Flagged, flag
from mstrain.embedding.risk import LEAST_RATIO
from mstrain.options import add_device, add_printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain flag`."""
    parser.add_argument(
        "trained",
        metavar="EMBEDDINGS.parquet",
        type=Path,
        help="table of 'mstrain embed' with the splits train and val of the training's data",
    )
    parser.add_argument("out", metavar="OUT.parquet", type=Path, help="table to write")
    parser.add_argument(
        "--of", metavar="NEW.parquet", type=Path, help="embeddings of other objects to flag"
    )
    parser.add_argument(
        "--predictions",
        metavar="TABLE.parquet",
        type=Path,
        help="their predictions, with redshifts: show risk and coverage, and put a flag if it pays",
    )
    parser.add_argument(
        "--kinds",
        metavar="COLUMN",
        help="text column of the embeddings' table that names kinds of odd objects: show AUROCs",
    )
    parser.add_argument(
        "--keep",
        metavar="RUN",
        type=Path,
        help="keep the fit in the run of these embeddings, so that 'mstrain predict' flags objects",
    )
    parser.add_argument(
        "--density",
        choices=DENSITIES,
        default=FlagConfig.density,
        help="distance to the training's objects, or its density by a flow (default: %(default)s)",
    )
    for name, value, text in (
        ("--k", FlagConfig.k, "number of the training neighbor whose distance counts"),
        ("--components", FlagConfig.num_axes, "principal components of the embeddings to take"),
        ("--seed", FlagConfig.seed, "seed of --references and of the flow"),
    ):
        parser.add_argument(name, type=int, default=value, help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--whiten",
        action=argparse.BooleanOptionalAction,
        default=FlagConfig.is_white,
        help="scale the components to equal variance (default: %(default)s)",
    )
    text = "take that many training objects, drawn at random (default: all)"
    parser.add_argument("--references", metavar="N", type=int, help=text)
    parser.add_argument(
        "--threshold",
        type=float,
        default=FlagConfig.threshold,
        help="count |z_mean - z|/(1 + z) of at least this as an outlier (default: %(default)s)",
    )
    add_device(parser, "where distances are computed")
    add_printed(parser)


def run(args: argparse.Namespace) -> int:
    """Flags; returns the exit code."""
    config = FlagConfig(
        density=args.density,
        k=args.k,
        num_axes=args.components,
        is_white=args.whiten,
        num_references=args.references,
        threshold=args.threshold,
        kinds=args.kinds,
        seed=args.seed,
        device=choose_device(args.device, from_env()),
    )
    found = flag(
        *(args.trained, args.out),
        of=args.of,
        predictions=args.predictions,
        keep=args.keep,
        config=config,
    )
    print(json.dumps(found.as_dict(), allow_nan=False) if args.json else flagged_text(found))
    return 0


def flagged_text(found: Flagged) -> str:
    """What was found, in lines."""
    lines = [
        f"{found.num_samples:,} objects against {found.num_references:,} of the training and "
        f"{found.num_validation:,} of its validation split, which tell sigma up to "
        f"{found.largest_sigma:.2f}; the components hold {found.variance_share:.1%} of the variance"
    ]
    for kind, (value, count) in found.auroc.items():
        lines.append(f"AUROC of {kind}: {value:.3f} ({count:,} objects)")
    if found.num_measured:
        lines += ["", f"risk and coverage of {found.num_measured:,} objects with a redshift:"]
        lines.append("  kept     sigma <   NMAD     eta of the kept   eta of the flagged   ratio")
    for cut in found.curve:
        kept, odd, ratio = cut.eta_kept, cut.eta_flagged, cut.ratio
        lines.append(
            f"  {cut.num_kept / (cut.num_kept + cut.num_flagged):6.1%}   {cut.sigma:5.2f}   "
            f"{cut.nmad:.5f}   {kept.value:.4f}            "
            f"{odd.value:.4f}               {ratio.value:.1f} ({ratio.low:.1f} to {ratio.high:.1f})"
        )
    if found.flag is not None:
        cut = found.flag
        lines.append(
            f"the flag is put at sigma {cut.sigma:.2f}: outliers are {cut.ratio.value:.1f} times "
            f"as frequent ({cut.ratio.low:.1f} to {cut.ratio.high:.1f}); {found.num_flagged:,} "
            "objects have is_flagged"
        )
    elif found.num_measured:
        lines.append(
            f"no flag is put: at no cut are outliers {LEAST_RATIO:g} times as frequent among the "
            "flagged, beyond chance"
        )
    if found.kept is not None:
        lines.append(f"kept the fit in {found.kept}, for 'mstrain predict' and 'mstrain export'")
    lines.append(f"wrote {found.path}; 'msdata index add DATA {found.path}' adds its columns")
    return "\n".join(lines)
