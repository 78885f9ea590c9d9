"""Tables of text with one row per line: CSV, and names of columns in the first line."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from msdata.catalog.scalars import are_integers, as_integers, may_be_rounded, plain_table
from msdata.catalog.table_file import is_gzip, stream_of
from msdata.errors import UsageError

# Given the column names, which of them to read as text, if any.
ChooseText = Callable[[list[str]], str | None]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_csv_table(path: Path, choose_text: ChooseText) -> tuple[pa.Table, tuple[str, ...]]:
    """All columns of a catalog; see `msdata.catalog.table.read_table`."""

    def read(as_text: list[str], only: list[str], encoding: str) -> pa.Table:
        with stream_of(path) as stream:
            return pyarrow.csv.read_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(encoding=encoding),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(as_text, pa.string()),
                    include_columns=only,
                    strings_can_be_null=True,
                ),
            )

    def read_all(encoding: str) -> tuple[list[str], str | None, pa.Table]:
        names = _csv_names(path, encoding)
        text = choose_text(names)
        return names, text, read([] if text is None else [text], [], encoding)

    encoding = "utf8"
    notes: tuple[str, ...] = ()
    try:
        names, text, table = read_all(encoding)
        is_utf8 = not any(pa.types.is_binary(kind) for kind in table.schema.types)
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        if isinstance(error, pa.ArrowInvalid) and "UTF8" not in str(error):
            raise
        is_utf8 = False
    if not is_utf8:
        encoding = "latin-1"
        notes = (f"{path.name} is not UTF-8: its text was read as Latin-1",)
        names, text, table = read_all(encoding)
    exact = {} if text is None else {text: table.column(text)}
    # Arrow makes doubles of a column with an integer of 2^63 or more.
    rounded = [name for name in names if name != text and may_be_rounded(table.column(name))]
    if rounded:
        again = read(rounded, rounded, encoding)
        exact |= {n: again.column(n) for n in rounded if are_integers(again.column(n))}
    for name, digits in exact.items():
        column = as_integers(digits)
        table = table.set_column(names.index(name), name, column)
        if name != text and pa.types.is_string(column.type):
            notes += (f"column {name!r} holds integers beyond 64 bits: kept as text",)
    table, left_out = plain_table(table)
    return table, (*notes, *left_out)


def _csv_names(path: Path, encoding: str) -> list[str]:
    with stream_of(path) as stream:
        options = pyarrow.csv.ReadOptions(encoding=encoding)
        names: list[str] = pyarrow.csv.open_csv(stream, read_options=options).schema.names
    check_names(path, names)
    return names


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuses what cannot be told apart by name: a wrong label would be taken in silence."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(
            f"catalog {path} has {names.count(repeated[0])} columns named {repeated[0]!r}; "
            "rename all but one"
        )
    separator = next((s for s in ";\t|" if len(names) == 1 and s in names[0]), None)
    if separator is not None:
        raise UsageError(
            f"catalog {path} has {separator!r} between its columns; save it with commas, or as "
            "Parquet"
        )


def open_csv(path: Path, columns: Sequence[str] | None) -> Any:
    """A reader of a CSV file, also gzipped; lines of comment before the header are left out."""
    opener = gzip.open if is_gzip(path) else open
    num_comments = 0
    with opener(path, "rb") as file:
        header = file.readline(1 << 16).removeprefix(_BYTE_ORDER_MARK)
        while header.startswith(b"#"):
            num_comments += 1
            header = file.readline(1 << 16)
    # Values are decoded by `plain_column`.
    is_utf8 = header.decode(errors="ignore").encode() == header
    return pyarrow.csv.open_csv(
        stream_of(path),
        read_options=pyarrow.csv.ReadOptions(
            skip_rows=num_comments, block_size=1 << 24, encoding="utf8" if is_utf8 else "latin-1"
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=None if columns is None else list(columns),
            # Types are guessed from the first block; ids beyond 2^63 or with letters further down
            # would be an error, so everything is read as bytes and cast, UTF-8 or not.
            column_types={} if columns is None else dict.fromkeys(columns, pa.binary()),
            strings_can_be_null=True,
        ),
    )
