"""`msdata catalog`: options, and what is printed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msdata.core.options import parse_pair, parse_renames
from msdata.core.text import print_result, table_lines
from msdata.errors import UsageError

if TYPE_CHECKING:
    from msdata.catalog.build.build import BuiltCatalog
    from msdata.catalog.build.spec import CatalogSpec

WHEN_INTERRUPTED = "the catalog is not finished: run the same command again"
# SQL that gets tables for `msdata catalog match`.
QUERIES = ("mgs", "strm")
FILES = (
    *("catalog.parquet", "catalog.csv", "counts.md", "redshifts.png", "disagreements.parquet"),
    "catalog.json",
)
_MARK = b"msdata catalog build"
_MATCH_MARK = b"msdata catalog match"
_POSITIONS_MARK = b"msdata catalog positions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata catalog`."""
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser(
        "build", help="compile the spectroscopic sample from surveys' tables"
    )
    build.add_argument("spec", type=Path, help="TOML file that names the tables")
    build.add_argument("out", type=Path, help="folder of the catalog, new or empty")
    build.add_argument("--no-figure", action="store_true", help="do not draw redshift histograms")
    build.add_argument("--json", action="store_true", help="print the result as JSON")
    build.add_argument("--quiet", action="store_true", help="print no progress")
    _add_match(actions)
    positions = actions.add_parser(
        "positions", help="check a list of positions and add E(B-V), for fetch and predict"
    )
    positions.add_argument("table", type=Path, help="CSV, Parquet or FITS table of positions")
    positions.add_argument("out", metavar="OUT.parquet", type=Path, help="table to write")
    positions.add_argument(
        "--ebv",
        metavar="NAME=MAP.fits",
        action="append",
        default=[],
        help="add a column ebv_NAME of a HEALPix map; repeatable",
    )
    positions.add_argument("--id-column", help="the table's column with the objects' ids")
    positions.add_argument("--json", action="store_true", help="print the result as JSON")
    recipes = actions.add_parser("recipes", help="list the recipes, or print one")
    recipes.add_argument("name", nargs="?", help="print this recipe, or query")


def _add_match(actions: Any) -> None:
    match = actions.add_parser("match", help="bring columns of another table to a catalog")
    match.add_argument("catalog", type=Path, help="CSV, Parquet or FITS; keeps its rows")
    match.add_argument("table", type=Path, help="CSV, Parquet or FITS with the columns to take")
    match.add_argument("out", type=Path, help="file to write, .parquet or .csv")
    how = match.add_mutually_exclusive_group(required=True)
    how.add_argument("--on", metavar="ID=TABLE_ID", help="columns that hold the same ids")
    how.add_argument(
        "--within-arcsec", type=float, metavar="R", help="match the one row within this distance"
    )
    match.add_argument(
        "--take",
        metavar="NEW=NAME,...",
        required=True,
        help="columns of the table to bring in, by a new name or their own",
    )
    match.add_argument(
        "--positions",
        metavar="RA,DEC=TABLE_RA,TABLE_DEC",
        help="with --within-arcsec: columns of the positions (default: known names)",
    )
    match.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Builds a catalog, matches one, lists positions or shows recipes; returns the exit code."""
    if args.action == "positions":
        return _write_positions(args)
    if args.action == "recipes":
        return _show_recipes(args.name)
    if args.action == "match":
        return _match(args)
    from msdata.catalog.build.build import build_catalog
    from msdata.catalog.build.spec import read_spec

    if not args.no_figure:
        from msdata.catalog.build.report import check_figures

        check_figures()
    spec = read_spec(args.spec)
    _check_out(args.out)

    def say(line: str) -> None:
        if not args.quiet:
            print(f"catalog: {line}", file=sys.stderr, flush=True)

    catalog = build_catalog(spec, say)
    report = _write(catalog, spec, args)
    if args.json:
        print(json.dumps(report))
        return 0
    from msdata.catalog.build.disagreements import rate_rows
    from msdata.catalog.build.report import count_rows

    for line in table_lines(*count_rows(catalog.counts)):
        print(line)
    if catalog.disputed.rates:
        print(
            f"redshifts within {spec.disagreement_arcsec:g} arcsec that differ by more than "
            f"{spec.disagreement_above:g} (1 + z); which is wrong cannot be told:"
        )
        for line in table_lines(*rate_rows(catalog.disputed)):
            print(line)
    for note in catalog.notes:
        print(f"note: {note}")
    print(f"{catalog.table.num_rows:,} objects in {args.out / FILES[0]} and {FILES[1]}")
    return 0


def _match(args: argparse.Namespace) -> int:
    from msdata.catalog.match import MatchConfig, match_tables
    from msdata.core.output_file import check_output, write_table

    if args.out.suffix not in (".parquet", ".csv"):
        raise UsageError(f"OUT must end in .parquet or .csv, got {args.out}")
    config = MatchConfig(
        take=parse_renames("--take", args.take),
        on=None if args.on is None else parse_pair("--on", args.on),
        within_arcsec=args.within_arcsec,
        positions=None if args.positions is None else _position_columns(args.positions),
    )
    for given in (args.catalog, args.table):
        if given.exists() and args.out.exists() and given.samefile(args.out):
            raise UsageError(f"{args.out} is read by this command; give another name for OUT")
    check_output(args.out, _MATCH_MARK if args.out.suffix == ".parquet" else None)
    found = match_tables(args.catalog, args.table, config)
    write_table(args.out, found.table, _MATCH_MARK)
    counts = {n: getattr(found, f"num_{n}") for n in ("matched", "ambiguous", "unmatched")}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    text = f"{found.table.num_rows:,} objects in {args.out}: {told}"
    print_result({"out": str(args.out), **counts}, found.notes, text, as_json=args.json)
    return 0


def _position_columns(text: str) -> tuple[tuple[str, str], tuple[str, str]]:
    pairs = [
        tuple(word.strip() for word in side.split(",")) for side in parse_pair("--positions", text)
    ]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise UsageError(
            f"--positions must be RA,DEC=TABLE_RA,TABLE_DEC, got {text!r}; such as "
            "ra,dec=raMean,decMean"
        )
    return (pairs[0][0], pairs[0][1]), (pairs[1][0], pairs[1][1])


def _write_positions(args: argparse.Namespace) -> int:
    from msdata.catalog.build.spec import healpix_task
    from msdata.catalog.positions import read_positions, with_reddening
    from msdata.core.output_file import check_output, make_folder, write_table

    if args.out.suffix != ".parquet":
        raise UsageError(f"the table's name must end in .parquet, got {args.out}")
    check_output(args.out, _POSITIONS_MARK)
    tasks = [healpix_task(*word.partition("=")[::2]) for word in args.ebv]
    maps = {f"ebv_{task.name}": task for task in tasks}
    found = with_reddening(read_positions(args.table, id_column=args.id_column), maps)
    make_folder(args.out.absolute().parent)
    table = found.table
    write_table(args.out, table, _POSITIONS_MARK)
    result = {"positions": table.num_rows, "columns": table.column_names, "out": str(args.out)}
    text = f"{table.num_rows:,} positions with {', '.join(table.column_names)} in {args.out}"
    print_result(result, found.notes, text, as_json=args.json)
    return 0


def _show_recipes(name: str | None) -> int:
    from msdata.catalog.build.recipe import BUILT_IN, FOLDER, load_recipe

    if name is not None:
        if name not in QUERIES:
            load_recipe(Path(name))
        suffix = "sql" if name in QUERIES else "toml"
        print((FOLDER / f"{name}.{suffix}").read_text(encoding="utf-8"), end="")
        return 0
    recipes = [(key, load_recipe(Path(key))) for key in BUILT_IN]
    rows = [[key, r.name, r.title, r.files] for key, r in recipes]
    for line in table_lines(("recipe", "<survey", "<release", "<files"), rows):
        print(line.rstrip())
    print(f"queries of tables to match with: {', '.join(QUERIES)}")
    return 0


def _check_out(out: Path) -> None:
    from msdata.core.files import remove_leftovers, storage_error
    from msdata.core.output_file import check_output

    try:
        remove_leftovers(out)
        entries = sorted(p.name for p in out.iterdir()) if out.exists() else []
        out.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError):
        raise UsageError(f"{out} is a file; give a new or an empty folder") from None
    except OSError as error:
        raise storage_error("write", out, error) from error
    # Without catalog.json, which is written last, there are only the parts of an unfinished run.
    if FILES[-1] in entries or any(name not in FILES for name in entries):
        raise UsageError(f"{out} is not empty: it holds {entries[0]!r}; choose a new folder")
    # The first to be written; without it no other of these files is ours.
    check_output(out / next(iter(sorted(entries, key=FILES.index)), FILES[0]), _MARK)


def _write(catalog: BuiltCatalog, spec: CatalogSpec, args: argparse.Namespace) -> dict[str, Any]:
    """Writes all files, `catalog.json` last; returns its content."""
    from msdata.catalog.build.report import draw_redshifts, report_json, report_lines
    from msdata.core.files import whole_file, write_whole
    from msdata.core.output_file import write_table
    from msdata.dataset.index import file_sha256

    out: Path = args.out
    for name in FILES[:2]:
        write_table(out / name, catalog.table, _MARK)
    if not args.no_figure:
        names = [counts.name for counts in catalog.counts]
        with whole_file(out / FILES[3]) as file:
            draw_redshifts(catalog.table, names, (spec.redshift_above, spec.redshift_below), file)
    text = "\n".join(report_lines(catalog, spec)) + "\n"
    write_whole(out / FILES[2], text.encode())
    sizes = {str(path): path.stat().st_size for task in spec.surveys for path in task.files}
    report = report_json(catalog, spec, sizes, file_sha256(out / FILES[0]))
    write_table(out / FILES[4], catalog.disagreements, _MARK)
    write_whole(out / FILES[5], json.dumps(report, indent=1).encode() + b"\n")
    return report
