"""`msdata pack`: runs it on worker processes or MPI ranks, and prints the result."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msdata.core.options import num_jobs
from msdata.core.signals import exit_code_of, ignore_signals
from msdata.dataset.manifest import REJECTED_NAME
from msdata.errors import MsdataError, UsageError
from msdata.pack.options import add_arguments, settings_of
from msdata.pack.settings import PackSettings
from msdata.topology import Topology, from_env

if TYPE_CHECKING:
    from msdata.pack.run import PackReport

__all__ = ["WHEN_INTERRUPTED", "add_arguments", "run"]

# Said after Ctrl-C or SIGTERM, which Slurm sends at the time limit.
WHEN_INTERRUPTED = "what is finished is kept: run the same command with --resume"
# How long a rank waits for another one to say so and to end all.
_LAST_WORD_S = 5.0


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
    from msdata.pack.ranks import PeerError, pack_on_ranks
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
