"""`mstrain study`: arms of settings by seeds, paired, and what their differences say.

mstrain study order DATA --out STUDY [key=value ...]
mstrain study SPEC.toml DATA --out STUDY --slice 3/16   # one share of an array job
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mstrain.options import add_printed, add_settings
from mstrain.study.section import text_of
from mstrain.study.spec import BUILT_IN, read_spec
from mstrain.study.study import Study, run_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain study`."""
    parser.add_argument(
        "spec", metavar="SPEC", type=Path, help="a TOML file, or a name of those in --list"
    )
    parser.add_argument(
        "data", metavar="DATA", type=Path, help="data set, or folder of the arms' data sets"
    )
    add_settings(parser, "all arms")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder of the study; cells that are done are not trained again",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds per arm (default: SPEC's)")
    parser.add_argument(
        "--slice",
        default="0/1",
        help="share of the cells to train, such as 3/16; a call without it reads all "
        "(default: %(default)s)",
    )
    parser.add_argument("--keep-runs", action="store_true", help="keep the trainings' folders")
    parser.add_argument("--list", action=_ListSpecs, help="list the specs of mstrain and exit")
    add_printed(parser, report="study.html", is_quiet_known=True)


class _ListSpecs(argparse.Action):
    """Prints the built-in specs with their titles, as `--help` prints the options."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for name in BUILT_IN:
            spec = read_spec(name)
            arms = ", ".join(arm.name for arm in spec.arms)
            print(f"{name:<14}{spec.title}\n{'':<14}{spec.seeds} seeds of {arms}")
        parser.exit()


def run(args: argparse.Namespace) -> int:
    """Runs a study, or a share of it; returns the exit code."""
    found = run_study(
        args.spec,
        args.data,
        args.out,
        settings=args.settings,
        seeds=args.seeds,
        part=args.slice,
        keeps_runs=args.keep_runs,
        has_report=not args.no_report,
        is_quiet=args.quiet,
    )
    if args.json and found.json_path is not None:
        print(found.json_path.read_text(encoding="utf-8"), end="")
    else:
        _show(found, args)
    return 0


def _show(found: Study, args: argparse.Namespace) -> None:
    if found.result is None:
        done = found.num_cells - found.num_missing
        print(
            f"{done} of {found.num_cells} cells are done; the same command without --slice trains "
            "what is missing and reads all"
        )
        return
    print(text_of(found.result))
    print(f"\nresults: {found.json_path}")
    if found.report is not None:
        print(f"report:  {found.report}")
