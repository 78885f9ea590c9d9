"""`msdata pack`: runs it on worker processes or MPI ranks, and prints the result."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msdata.core.options import num_jobs
from msdata.core.signals import exit_code_of, ignore_signals
from msdata.dataset.manifest import REJECTED_NAME
from msdata.errors import MsdataError, StorageError, UsageError
from msdata.pack.options import add_arguments, settings_of
from msdata.pack.settings import PackSettings
from msdata.topology import Topology, from_env

if TYPE_CHECKING:
    from msdata.pack.run import PackReport

__all__ = ["WHEN_INTERRUPTED", "add_arguments", "run"]

# Printed after Ctrl-C or SIGTERM, which Slurm sends at the time limit.
WHEN_INTERRUPTED = "what is finished is kept: run the same command with --resume"
# How long a rank waits for another one to report the interruption and to end all.
_LAST_WORD_S = 5.0


def run(args: argparse.Namespace) -> int:
    """Packs, on worker processes or MPI ranks; returns the exit code."""
    settings = settings_of(args)
    if args.max_rejected is not None and args.max_rejected < 0:
        raise UsageError(f"--max-rejected must be at least 0, got {args.max_rejected}")
    topology = from_env()
    started_s = time.monotonic()
    try:
        if topology.num_ranks > 1:
            report = _run_on_ranks(args, settings, topology)
        else:
            report = _run_here(args, settings)
    except StorageError as error:
        # Also from another process, which sends no error number.
        if str(error).endswith("run the same command again"):
            raise StorageError(f"{error} with --resume") from error
        raise
    if report is not None:
        _print_report(report, args, time.monotonic() - started_s)
        # Print one sentence at most.
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
    import uuid

    from msdata.core.mpi import communicator
    from msdata.pack.ranks import Ranks, serve_rank
    from msdata.pack.run import pack
    from msdata.pack.state import PackState

    if args.jobs not in (None, 1):
        raise UsageError(
            f"--jobs must be 1 under MPI, got {args.jobs}: the ranks are the processes; start "
            "more ranks"
        )
    world = communicator(topology)
    run_id = world.bcast(uuid.uuid4().hex, root=0)
    try:
        if world.Get_rank():
            # Rank 0 says what failed; one message is enough.
            sys.exit(serve_rank(settings, world))
        with Ranks(world) as ranks:
            return pack(
                settings,
                resume=args.resume,
                max_rejected=args.max_rejected,
                is_quiet=args.quiet,
                ranks=ranks,
            )
    except (MsdataError, SystemExit):
        raise
    except BaseException as error:
        # Ranks that wait for this one would wait forever.
        _abort(error, world, PackState(settings.out).interruption_path(run_id))


def _abort(error: BaseException, world: Any, claim: Path) -> NoReturn:
    # The launcher answers the end of one rank with signals to the others.
    ignore_signals()
    if not isinstance(error, KeyboardInterrupt):
        traceback.print_exc()
    elif _speaks_for_all(claim, world):
        print(f"msdata pack: interrupted; {WHEN_INTERRUPTED}", file=sys.stderr)
    else:
        # The rank that reports also ends all, unless something holds it up.
        time.sleep(_LAST_WORD_S)
    sys.stderr.flush()
    world.Abort(exit_code_of(error))
    # MPICH's Abort may return, and the rank would then print the same line again.
    os._exit(exit_code_of(error))


def _speaks_for_all(claim: Path, world: Any) -> bool:
    """Whether this rank was interrupted first, and reports for all; any rank may be."""
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        # The folder does not exist yet: all ranks but the first wait for it and hear no signals.
        return int(world.Get_rank()) == 0
    return True


def _tell_of_unsafe(report: PackReport, settings: PackSettings) -> int:
    """Reports pickles that ask for more than data; the exit code is 1 if there are any."""
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
    """Reports that most objects were rejected; the exit code is 1 if so."""
    from msdata.pack.finish import most_rejected

    if args.max_rejected is not None or not report.num_packed:
        return 0
    told = most_rejected(settings.out, report.num_rejected, report.manifest.num_samples)
    if told is None:
        return 0
    print(
        f"msdata pack: {told}; if you expect that, give --max-rejected {report.num_rejected}",
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
