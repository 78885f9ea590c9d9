"""`msdata card`: options, and what is written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from msdata.catalog.build.report_file import read_catalog_report
from msdata.core.files import storage_error, write_whole
from msdata.core.output_file import check_output
from msdata.core.progress import ProgressLine
from msdata.dataset.index import IndexFile, file_sha256
from msdata.describe.card import CARD_NAME, SUMMED_FILES, CardText, card_lines
from msdata.describe.croissant import CROISSANT_NAME, croissant
from msdata.describe.info import DatasetInfo, describe
from msdata.errors import DataError

SUMS_NAME = "SHA256SUMS"
_MARKS = {
    CARD_NAME: b"| made by | msdata ",
    CROISSANT_NAME: b'"@id": "samples/sample_id"',
    SUMS_NAME: b"  dataset.json\n",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata card`."""
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--name", help="of the data set; default: the folder's name")
    parser.add_argument("--description", help="a sentence or two")
    parser.add_argument("--licence", "--license", help="name or address of the terms")
    parser.add_argument("--url", help="where the data set is to be had")
    parser.add_argument("--creator", help="a person or a group")
    parser.add_argument("--published", help="date, YYYY-MM-DD")
    parser.add_argument("--cite", help="how to cite it")
    parser.add_argument(
        "--catalog",
        type=Path,
        help="catalogue of msdata catalog build that was packed: its cuts, counts and citations",
    )
    parser.add_argument(
        "--sums", action="store_true", help=f"reads every shard and writes {SUMS_NAME} too"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    """Writes the card; returns the exit code."""
    text = CardText(
        name=args.name or args.data.absolute().name,
        description=args.description,
        licence=args.licence,
        url=args.url,
        creator=args.creator,
        published=args.published,
        cite=args.cite,
    )
    info = describe(args.data)
    report = None if args.catalog is None else read_catalog_report(args.catalog)
    sums = {name: _sum(args.data / name) for name in SUMMED_FILES if (args.data / name).is_file()}
    if sums.get("index.parquet") != info.manifest.index_sha256:
        raise DataError(
            f"{args.data / 'index.parquet'} is not what dataset.json says; run 'msdata verify "
            f"{args.data}' before a card is written"
        )
    for name, mark in _MARKS.items():
        if name != SUMS_NAME or args.sums:
            check_output(args.data / name, mark)
    written = [CARD_NAME, CROISSANT_NAME]
    if args.sums:
        lines = [f"{digest}  {name}" for name, digest in _all_sums(info, sums, args).items()]
        write_whole(args.data / SUMS_NAME, ("\n".join(lines) + "\n").encode())
        written.append(SUMS_NAME)
    columns = _columns(info)
    content = json.dumps(croissant(info, text, sums, columns), indent=1)
    write_whole(args.data / CROISSANT_NAME, content.encode() + b"\n")
    card = "\n".join(card_lines(info, text, sums, report)) + "\n"
    write_whole(args.data / CARD_NAME, card.encode())
    print(f"wrote {', '.join(written)} into {args.data}")
    unsaid = [n for n in ("licence", "creator", "url", "published") if getattr(args, n) is None]
    if unsaid:
        print(f"note: nobody has said --{', --'.join(unsaid)}; whoever uses the data will ask")
    return 0


def _columns(info: DatasetInfo) -> dict[str, str]:
    index = IndexFile(info.path, info.manifest)
    return {name: str(index.column_type(name)) for name in index.column_names}


def _sum(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise storage_error("read", path, error) from error


def _all_sums(info: DatasetInfo, sums: dict[str, str], args: argparse.Namespace) -> dict[str, str]:
    """SHA-256 of every file of the data set, as `sha256sum --check` reads them."""
    shards = info.manifest.shards
    progress = ProgressLine("sums", info.manifest.num_samples, is_quiet=args.quiet)
    done = nbytes = 0
    found = dict(sums)
    try:
        for shard in shards:
            found[shard.relative_path] = _sum(info.path / shard.relative_path)
            done, nbytes = done + shard.num_samples, nbytes + shard.nbytes
            progress.update(done, nbytes, "")
    finally:
        progress.close(done, nbytes, "")
    return found
