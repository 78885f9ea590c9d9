"""`msdata pack`: options, and what is printed."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msdata.catalog.values import EBV_RANGE, REDSHIFT_RANGE
from msdata.core.options import add_jobs, num_jobs
from msdata.core.signals import exit_code_of, ignore_signals
from msdata.dataset.manifest import CONTAINERS, REJECTED_NAME
from msdata.errors import MsdataError, UsageError
from msdata.pack.fits_arguments import add_fits_arguments, fits_options_of
from msdata.pack.settings import PackSettings
from msdata.topology import Topology, from_env

if TYPE_CHECKING:
    from msdata.pack.run import PackReport

# Said after Ctrl-C or SIGTERM, which Slurm sends at the time limit.
WHEN_INTERRUPTED = "what is finished is kept: run the same command with --resume"
# How long a rank waits for another one to say so and to end all.
_LAST_WORD_S = 5.0
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def parse_bytes(text: str) -> int:
    """Bytes of `1GiB`, `500MB`, `65536`.

    Raises:
        UsageError: the text is no size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    units = {**_UNITS, **_BINARY}
    if match is None or match[2] not in units:
        raise UsageError(f"{text!r} is no size; write for example 1GiB, 256MiB or 500MB")
    return int(float(match[1]) * units[match[2]])


def parse_fractions(text: str) -> tuple[float, ...]:
    """Fractions of `0.7,0.1,0.2`.

    Raises:
        UsageError: the text is no list of numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--split {text!r} is no list of fractions such as 0.7,0.1,0.2") from None


def _parse_names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(text.split(","))


def _parse_scale(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--pixel-scale {text!r}: write for example unwise=1.5") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata pack`."""
    parser.add_argument(
        "source", type=Path, help="folder of pickled dicts, of block files, or of FITS files"
    )
    parser.add_argument("out", type=Path, help="folder of the data set, new or empty")
    parser.add_argument("--catalog", type=Path, help="CSV, Parquet or FITS table with the labels")
    parser.add_argument("--id-column", help="the catalogue's column with the objects' ids")
    parser.add_argument("--redshift-column", help="the catalogue's column with the redshift")
    parser.add_argument(
        "--unlabelled", action="store_true", help="keep objects without redshift, to predict theirs"
    )
    _add_range(parser, "--redshift-range", "redshifts", REDSHIFT_RANGE)
    _add_range(parser, "--ebv-range", "E(B-V) in columns named like ebv", EBV_RANGE)
    parser.add_argument("--format", choices=CONTAINERS, default="tar", help="default: tar")
    parser.add_argument("--chunked", action="store_true", help="HDF5: one chunk a sample")
    parser.add_argument("--shard-size", help="at most; default: 1GiB, less for a small data set")
    parser.add_argument("--split", help="train,val,test; default: 0.7,0.1,0.2")
    parser.add_argument("--split-column", help="catalogue column that names the split instead")
    parser.add_argument("--seed", type=int, default=0, help="of splits and order; %(default)s")
    parser.add_argument("--inpaint", help="arrays whose NaN to fill, or none; default: panstarrs")
    parser.add_argument(
        "--max-nan-fraction", type=float, default=0.01, help="of a band; %(default)s"
    )
    parser.add_argument(
        "--pixel-scale", action="append", default=[], help="ARRAY=ARCSEC, repeatable"
    )
    add_fits_arguments(parser)
    parser.add_argument(
        "--max-rejected",
        type=int,
        help="stop beyond this many unusable objects; default: go to the end, exit code 1 if most "
        "are",
    )
    add_jobs(parser, "worker processes")
    parser.add_argument("--resume", action="store_true", help="take up an unfinished pack")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def _add_range(
    parser: argparse.ArgumentParser, option: str, what: str, default: tuple[float, float]
) -> None:
    parser.add_argument(
        option,
        nargs=2,
        type=float,
        default=default,
        metavar=("LOW", "HIGH"),
        help=f"count {what} outside as absent; default: {default[0]:g} {default[1]:g}",
    )


def settings_of(args: argparse.Namespace) -> PackSettings:
    """The settings that the options ask for."""
    shard_nbytes = None if args.shard_size is None else parse_bytes(args.shard_size)
    scales = dict(_parse_scale(t) for t in args.pixel_scale)
    return PackSettings(
        source=args.source,
        out=args.out,
        catalog=args.catalog,
        container=args.format,
        chunked=args.chunked,
        shard_nbytes=shard_nbytes,
        split_fractions=_split_fractions(args),
        split_column=args.split_column,
        seed=args.seed,
        id_column=args.id_column,
        redshift_column=args.redshift_column,
        unlabelled=args.unlabelled,
        redshift_range=tuple(args.redshift_range),
        ebv_range=tuple(args.ebv_range),
        inpaint=None if args.inpaint is None else _parse_names(args.inpaint),
        max_nan_fraction=args.max_nan_fraction,
        pixel_scales_arcsec=scales,
        fits=fits_options_of(args, scales),
    )


def _split_fractions(args: argparse.Namespace) -> tuple[float, ...]:
    if args.split is None:
        return PackSettings.split_fractions
    if args.split_column is not None:
        raise UsageError(
            f"--split {args.split} and --split-column {args.split_column} contradict each other; "
            "give one of them"
        )
    return parse_fractions(args.split)


def run(args: argparse.Namespace) -> int:
    """Packs, on worker processes or MPI ranks; returns the exit code."""
    settings = settings_of(args)
    if args.max_rejected is not None and args.max_rejected < 0:
        raise UsageError(f"--max-rejected {args.max_rejected} is negative; give 0 or more")
    topology = from_env()
    started_s = time.monotonic()
    if topology.num_ranks > 1:
        report = _run_on_ranks(args, settings, topology)
    else:
        report = _run_here(args, settings)
    if report is not None:
        _print_report(report, args, time.monotonic() - started_s)
        # One sentence is enough.
        return _tell_of_unsafe(report, settings) or _tell_of_most(report, settings, args)
    return 0


def _run_here(args: argparse.Namespace, settings: PackSettings) -> PackReport:
    from msdata.pack.run import pack

    return pack(
        settings,
        jobs=num_jobs(args.jobs),
        resume=args.resume,
        max_rejected=args.max_rejected,
        is_quiet=args.quiet,
    )


def _run_on_ranks(
    args: argparse.Namespace, settings: PackSettings, topology: Topology
) -> PackReport | None:
    from msdata.core.mpi import communicator
    from msdata.pack.rank_progress import PeerError
    from msdata.pack.ranks import pack_on_ranks
    from msdata.pack.state import PackState

    if args.jobs not in (None, 1):
        raise UsageError(
            f"--jobs {args.jobs} under MPI: the ranks are the processes; ask for more ranks"
        )
    world = communicator(topology)
    run_id = world.bcast(uuid.uuid4().hex, root=0)
    try:
        return pack_on_ranks(
            settings,
            world,
            resume=args.resume,
            max_rejected=args.max_rejected,
            is_quiet=args.quiet,
        )
    except PeerError as error:
        # The rank that failed says why; one message is enough.
        sys.exit(error.exit_code)
    except MsdataError:
        raise
    except BaseException as error:
        # Ranks that wait for this one would wait for ever.
        _abort(error, world, PackState(settings.out).interruption_path(run_id))


def _abort(error: BaseException, world: Any, claim: Path) -> NoReturn:
    # The launcher answers the end of one rank with signals to the others.
    ignore_signals()
    if not isinstance(error, KeyboardInterrupt):
        traceback.print_exc()
    elif _speaks_for_all(claim, world):
        print(f"msdata pack: interrupted; {WHEN_INTERRUPTED}", file=sys.stderr)
    else:
        # Whoever speaks for all also ends all, unless something holds it up.
        time.sleep(_LAST_WORD_S)
    sys.stderr.flush()
    world.Abort(exit_code_of(error))
    # MPICH's Abort may come back, and whoever goes on would say the same once more.
    os._exit(exit_code_of(error))


def _speaks_for_all(claim: Path, world: Any) -> bool:
    """Whether this rank is the first of those interrupted: any may be, rank 0 need not be."""
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        # No folder yet: all ranks but the first are waiting for it, deaf to signals.
        return int(world.Get_rank()) == 0
    return True


def _tell_of_unsafe(report: PackReport, settings: PackSettings) -> int:
    """The exit code: a data set with pickles that wanted more than data is no plain success."""
    from msdata.pack.finish import unsafe_objects

    if not (report.num_packed and report.num_rejected):
        return 0
    unsafe = unsafe_objects(settings.out)
    if unsafe is None:
        return 0
    others = f" and {unsafe.count - 1:,} more such files" if unsafe.count > 1 else ""
    print(
        f"msdata pack: {settings.source / unsafe.path}: {unsafe.reason}; the data set is whole "
        f"without it{others}, see {REJECTED_NAME}",
        file=sys.stderr,
    )
    return 1


def _tell_of_most(report: PackReport, settings: PackSettings, args: argparse.Namespace) -> int:
    """The exit code: a data set without most of its objects is not what was asked for."""
    from msdata.pack.finish import most_rejected

    if args.max_rejected is not None or not report.num_packed:
        return 0
    told = most_rejected(settings.out, report.num_rejected, report.manifest.num_samples)
    if told is None:
        return 0
    print(
        f"msdata pack: {told}; if that is meant, say so with --max-rejected {report.num_rejected}",
        file=sys.stderr,
    )
    return 1


def _print_report(report: PackReport, args: argparse.Namespace, elapsed_s: float) -> None:
    manifest = report.manifest
    rate = report.num_packed / max(elapsed_s, 1e-6)
    if args.json:
        result = {
            "out": str(args.out),
            "num_samples": manifest.num_samples,
            "num_packed": report.num_packed,
            "num_rejected": report.num_rejected,
            "num_shards": len(manifest.shards),
            "nbytes": sum(s.nbytes for s in manifest.shards),
            "fingerprint": manifest.fingerprint,
            "seconds": elapsed_s,
            "samples_per_s": rate,
            "notes": list(report.notes),
        }
        print(json.dumps(result))
        return
    for note in report.notes:
        print(f"note: {note}")
    rejected = (
        f", {report.num_rejected:,} rejected (see rejected.csv)" if report.num_rejected else ""
    )
    num_shards = len(manifest.shards)
    print(
        f"packed {report.num_packed:,} samples in {elapsed_s:.1f} s ({rate:,.0f}/s) into "
        f"{num_shards} shard{'s' * (num_shards != 1)} of {args.out}: "
        f"{manifest.num_samples:,} samples{rejected}"
    )
