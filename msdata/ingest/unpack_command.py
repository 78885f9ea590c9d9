"""`msdata unpack`: writes the samples of a data set as objects and a catalog.

It stands alone as every command does.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from msdata.core.files import storage_error
from msdata.core.options import add_jobs
from msdata.errors import UsageError
from msdata.ingest.unpack import unpack

WHEN_INTERRUPTED = "what is written is kept: run the same command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata unpack`."""
    parser.add_argument("data", type=Path, help="folder of the data set, coded or not")
    parser.add_argument(
        "out", type=Path, help="folder for the objects, new or empty; a second run resumes there"
    )
    parser.add_argument("--split", help="only the samples of this split (default: all)")
    parser.add_argument("--ids", metavar="FILE", type=Path, help="only these ids, one per line")
    add_jobs(parser, "threads")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    """Runs `msdata unpack`; returns the exit code."""
    ids = None if args.ids is None else _read_ids(args.ids)
    found = unpack(
        args.data, args.out, split=args.split, ids=ids, jobs=args.jobs, is_quiet=args.quiet
    )
    if args.json:
        counts = {"num_samples": found.num_samples, "num_written": found.num_written}
        print(json.dumps({"out": str(args.out), **counts, "pack": list(found.pack_words)}))
        return 0
    print(
        f"wrote {found.num_written:,} objects, {found.num_samples:,} are in {args.out}, with "
        f"catalog.parquet and catalog.csv\nto pack them again: {shlex.join(found.pack_words)}"
    )
    return 0


def _read_ids(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"--ids {path} does not exist; check the path") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--ids {path} must be UTF-8 text, one id per line ({error})") from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise UsageError(f"--ids {path} must name at least one id, one per line, got none")
    return ids
