"""`msdata fetch`: options, and what is printed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from msdata.core.text import duration_text
from msdata.errors import UsageError
from msdata.fetch.service import Service, change_service, read_services
from msdata.fetch.targets import Slice, read_targets
from msdata.sources.survey_file import read_survey

if TYPE_CHECKING:
    from msdata.fetch.into_shards import Shards
    from msdata.fetch.run import FetchReport
    from msdata.fetch.settings import FetchSettings

# Said after Ctrl-C or SIGTERM, which Slurm sends at the time limit.
WHEN_INTERRUPTED = "what is fetched is kept: run the same command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata fetch`."""
    parser.add_argument(
        "catalog", type=Path, nargs="?", help="CSV, Parquet or FITS table of ids and positions"
    )
    parser.add_argument(
        "out", type=Path, nargs="?", help="folder for the objects; a second run resumes there"
    )
    parser.add_argument("--id-column", help="the catalog's column with the objects' ids")
    parser.add_argument(
        "--slice", default="0/1", help="part of the catalog, such as 3/16 (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrent-slices",
        type=int,
        help="slices that run at a time and share each rate (default: all)",
    )
    parser.add_argument(
        "--workers", type=int, default=8, help="objects to fetch at a time (default: %(default)s)"
    )
    _add_service_arguments(parser)
    parser.add_argument("--keep-fits", action="store_true", help="also keep the FITS files")
    parser.add_argument(
        "--pack", type=Path, help="pack all into a data set in this folder, then remove the objects"
    )
    parser.add_argument(
        "--keep-pickles", action="store_true", help="with --pack: keep the objects' files"
    )
    parser.add_argument(
        "--retry-refused", action="store_true", help="also ask again for refused objects"
    )
    parser.add_argument(
        "--canary",
        type=Path,
        metavar="REF",
        help="fetch no objects: keep checksums and noise of 20 positions of the catalog in this "
        "file; if it exists, say what the services changed since (exit code 1 for values)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what it would ask and for how long; ask nothing",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def _add_service_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--services", type=Path, help="TOML file with the services' settings")
    parser.add_argument(
        "--unwise-from", default="legacy", help="legacy or unwise_me (default: %(default)s)"
    )
    for option, metavar, what in (
        ("--rate", None, "rate of a service, SERVICE=REQUESTS_PER_S"),
        ("--base-url", None, "address of a service, SERVICE=URL"),
        ("--pixel-scale", None, "pixel scale of an array, ARRAY=ARCSEC"),
        (
            "--survey",
            "NAME|FILE",
            "fetch FITS files of a survey instead: legacy (grz), or a TOML file with a layer or "
            "HiPS",
        ),
    ):
        parser.add_argument(
            option, action="append", default=[], metavar=metavar, help=f"{what}; repeatable"
        )
    parser.add_argument("--contact", help="your address, for the services' operators")


def _assignment(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise UsageError(f"{option} {text!r}: write NAME=VALUE")
    return name, value


def _number(text: str, option: str) -> tuple[str, float]:
    name, value = _assignment(text, option)
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"{option} {text!r}: the value must be a number, got {value!r}") from None


def _services(args: argparse.Namespace) -> dict[str, Service]:
    services = read_services(args.services)
    for name, rate in (_number(text, "--rate") for text in args.rate):
        change_service(services, name, {"requests_per_s": rate})
    for name, url in (_assignment(text, "--base-url") for text in args.base_url):
        change_service(services, name, {"base_url": url})
    return services


def settings_of(args: argparse.Namespace) -> FetchSettings:
    """The settings that the options ask for."""
    from msdata.fetch.settings import FetchSettings

    if args.canary is None and args.out is None:
        raise UsageError("give a catalog and a folder: 'msdata fetch CATALOG OUT'")
    return FetchSettings(
        catalog=args.catalog or Path(),
        out=args.canary or args.out,
        id_column=args.id_column,
        services=_services(args),
        unwise_from=args.unwise_from.replace(".", "_"),
        pixel_scales_arcsec=dict(_number(t, "--pixel-scale") for t in args.pixel_scale),
        part=Slice.parse(args.slice),
        concurrent_slices=args.concurrent_slices,
        workers=args.workers,
        keep_fits=args.keep_fits,
        retry_refused=args.retry_refused,
        contact=args.contact,
        pack=args.pack,
        surveys=tuple(map(read_survey, args.survey)),
    )


def run(args: argparse.Namespace) -> int:
    """Fetches; returns 0 when every object is there or cannot be had, else 1."""
    settings = settings_of(args)
    if args.canary is not None:
        return _watch(settings, args)
    if args.keep_pickles and args.pack is None:
        raise UsageError("--keep-pickles is for --pack only; without it all objects stay files")
    if args.dry_run:
        _print_forecast(settings, args)
        return 0
    from msdata.fetch.into_shards import into_shards
    from msdata.fetch.run import fetch

    started_s = time.monotonic()
    report = fetch(settings, is_quiet=args.quiet)
    shards = None
    if args.pack is not None and report.is_settled:
        shards = into_shards(settings, keep_pickles=args.keep_pickles, is_quiet=args.quiet)
    _print_report(report, args, time.monotonic() - started_s, shards)
    return int(not report.is_settled or _tell_of_most(shards, args))


def _watch(settings: FetchSettings, args: argparse.Namespace) -> int:
    """Makes or compares a canary; returns 1 where values changed or a service is not there."""
    from msdata.fetch.canary import report_lines, watch

    of_objects = {
        "OUT": args.out,
        "--slice": args.slice != "0/1",
        "--pack": args.pack,
        "--keep-pickles": args.keep_pickles,
        "--keep-fits": args.keep_fits,
        "--retry-refused": args.retry_refused,
        "--dry-run": args.dry_run,
    }
    for name in (name for name, is_given in of_objects.items() if is_given):
        raise UsageError(f"--canary fetches no objects; leave {name} out")
    report = watch(args.canary, settings, is_quiet=args.quiet)
    for name, (number, reason) in report.undelivered.items():
        print(
            f"msdata fetch: service {name} ({settings.services[name].base_url}) delivered nothing "
            f"at {number} of {report.num_positions} positions, which were not compared: {reason}",
            file=sys.stderr,
        )
    if args.json:
        found = {"canary": str(args.canary), "is_changed": report.is_changed, **asdict(report)}
        print(json.dumps(found))
    else:
        for line in report_lines(report, args.canary):
            print(line)
    return int(report.is_changed or not report.is_compared)


def _tell_of_most(shards: Shards | None, args: argparse.Namespace) -> bool:
    """Says so where the pack rejected more objects than it took."""
    from msdata.pack.finish import most_rejected

    if shards is None or shards.num_samples is None:
        return False
    told = most_rejected(args.pack, shards.num_rejected, shards.num_samples)
    if told is not None:
        print(f"msdata fetch: {told}", file=sys.stderr)
    return told is not None


def _print_forecast(settings: FetchSettings, args: argparse.Namespace) -> None:
    from msdata.fetch.into_shards import check_target
    from msdata.fetch.journal import read_entries
    from msdata.fetch.run import targets_left

    targets, notes = read_targets(
        settings.catalog, id_column=settings.id_column, part=settings.part
    )
    entries = read_entries(settings.out, {target.sample_id for target in targets})
    left = targets_left(targets, entries, settings, is_packed=check_target(settings))
    requests: Counter[str] = Counter()
    for adapter in settings.adapters():
        requests[adapter.service] += adapter.requests_per_object * len(left)
    services = settings.shared_services()
    seconds = {name: n / services[name].requests_per_s for name, n in requests.items()}
    if args.json:
        counts = {"num_objects": len(targets), "num_left": len(left)}
        print(json.dumps({**counts, "requests": requests, "seconds": seconds}))
        return
    for note in notes:
        print(f"note: {note}")
    for name, count in requests.items():
        service = services[name]
        print(
            f"{name}: {count:,} requests to {service.base_url}, at {service.requests_per_s:g}/s "
            f"{duration_text(seconds[name])} or more"
        )
    longest = max(seconds.values())
    print(
        f"{len(left):,} of {len(targets):,} objects are left, {duration_text(longest)} or more; "
        "nothing was asked"
    )


def _print_report(
    report: FetchReport, args: argparse.Namespace, elapsed_s: float, shards: Shards | None
) -> None:
    from msdata.fetch.journal import FETCHED, REFUSED

    num_fetched, num_refused = report.states.get(FETCHED, 0), report.states.get(REFUSED, 0)
    num_left = report.num_objects - num_fetched - num_refused
    if args.json:
        result = {
            "out": str(args.out),
            "num_objects": report.num_objects,
            "num_fetched": num_fetched,
            "num_fetched_now": report.num_fetched_now,
            "num_refused": num_refused,
            "num_unsettled": num_left,
            "no_coverage": report.no_coverage,
            "services": report.services,
            "seconds": elapsed_s,
            "num_packed": shards and shards.num_samples,
            "num_removed": shards.num_removed if shards else 0,
            "notes": report.notes,
        }
        print(json.dumps(result))
        return
    for note in report.notes:
        print(f"note: {note}")
    for name, counts in report.services.items():
        retries = counts.get("retries", 0)
        print(f"{name}: {counts.get('requests', 0):,} requests, {retries:,} of them asked again")
    for band, count in report.no_coverage.items():
        print(f"{band}: {count:,} objects without coverage")
    print(
        f"fetched {report.num_fetched_now:,} objects in {elapsed_s:.1f} s into {args.out}: "
        f"{num_fetched:,} of {report.num_objects:,} are there, {num_refused:,} cannot be had"
        + (f" (see {report.failed_path.name})" if num_refused or num_left else "")
    )
    if num_left:
        print(f"{num_left:,} were not delivered; run the same command again")
    if args.survey and num_fetched:
        chosen = " ".join(f"--survey {name}" for name in args.survey)
        files, catalog = args.out / "fits", args.catalog
        print(f"to pack them: msdata pack {files} DATA {chosen} --catalog {catalog}")
    if shards is not None:
        _print_shards(shards, args)


def _print_shards(shards: Shards, args: argparse.Namespace) -> None:
    if shards.num_samples is None:
        print(f"{args.pack} is not packed yet: {shards.note}")
        return
    print(f"packed {shards.num_samples:,} samples into {args.pack}")
    if shards.num_removed:
        print(f"removed the files of {shards.num_removed:,} objects, which are in it")
    if shards.num_rejected:
        print(
            f"{shards.num_rejected:,} objects were rejected (see {args.pack / 'rejected.csv'}); "
            "their files are kept"
        )
