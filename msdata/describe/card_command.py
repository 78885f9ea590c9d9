"""`msdata card`: its options, and the files that it writes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from msdata.augment.statistics import FILE_NAME as STATISTICS_NAME
from msdata.augment.statistics import read_statistics
from msdata.catalog.build.report_file import read_catalog_report
from msdata.core.files import storage_error, write_whole
from msdata.core.output_file import check_output
from msdata.core.progress import ProgressLine
from msdata.dataset.added import REGISTRY_NAME, read_added
from msdata.dataset.index import IndexFile, file_sha256
from msdata.describe.card import CARD_NAME, SUMMED_FILES, CardText, card_lines
from msdata.describe.croissant import CROISSANT_NAME, croissant
from msdata.describe.info import DatasetInfo, describe
from msdata.describe.stats import depths
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
    parser.add_argument("--name", help="name of the data set (default: the folder's name)")
    parser.add_argument("--description", help="one or two sentences")
    parser.add_argument("--license", help="name or URL of the terms")
    # The spelling of earlier versions.
    parser.add_argument("--licence", dest="license", help=argparse.SUPPRESS)
    parser.add_argument("--url", help="URL of the data set")
    parser.add_argument("--creator", help="a person or a group")
    parser.add_argument("--published", help="date of publication, YYYY-MM-DD")
    parser.add_argument("--cite", help="the citation")
    parser.add_argument(
        "--catalog",
        type=Path,
        help="the packed catalog of msdata catalog build: show its cuts, counts and citations",
    )
    parser.add_argument(
        "--sums", action="store_true", help=f"read every shard and write {SUMS_NAME} too"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress line")


def run(args: argparse.Namespace) -> int:
    """Writes the card; returns the exit code."""
    text = CardText(
        name=args.name or args.data.absolute().name,
        description=args.description,
        license=args.license,
        url=args.url,
        creator=args.creator,
        published=args.published,
        cite=args.cite,
    )
    info = describe(args.data)
    report = None if args.catalog is None else read_catalog_report(args.catalog)
    added = [table.name for table in read_added(args.data, info.manifest)]
    names = (*SUMMED_FILES, *((REGISTRY_NAME, *added) if added else ()))
    sums = {name: _sum(args.data / name) for name in names if (args.data / name).is_file()}
    if sums.get("index.parquet") != info.manifest.index_sha256:
        raise DataError(
            f"cannot write a card: {args.data / 'index.parquet'} does not agree with dataset.json; "
            f"run 'msdata verify {args.data}'"
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
    deep = None
    if (args.data / STATISTICS_NAME).is_file():
        measured = read_statistics(args.data, fingerprint=info.manifest.fingerprint)
        deep = depths(measured, info.manifest.schema)
    card = "\n".join(card_lines(info, text, sums, report, deep)) + "\n"
    write_whole(args.data / CARD_NAME, card.encode())
    print(f"wrote {', '.join(written)} into {args.data}")
    unsaid = [n for n in ("license", "creator", "url", "published") if getattr(args, n) is None]
    if unsaid:
        print(f"note: the card lacks --{', --'.join(unsaid)}, which users of the data need")
    return 0


def _columns(info: DatasetInfo) -> dict[str, str]:
    index = IndexFile(info.path, info.manifest, has_added=False)
    return {name: str(index.column_type(name)) for name in index.column_names}


def _sum(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise storage_error("read", path, error) from error


def _all_sums(info: DatasetInfo, sums: dict[str, str], args: argparse.Namespace) -> dict[str, str]:
    """Computes the SHA-256 of every file of the data set, for `sha256sum --check`."""
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
