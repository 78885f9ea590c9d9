"""Tables of text with one row per line: commas, tabs, semicolons or bars between the columns.

Comments and blank lines may stand above the names of the columns, as CasJobs and TOPCAT write them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from msdata.catalog.scalars import are_integers, as_integers, may_be_rounded, plain_table
from msdata.catalog.table_file import is_gzip, open_unpacked
from msdata.errors import UsageError

# Given the column names, which of them to read as text, if any.
ChooseText = Callable[[list[str]], str | None]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_QUOTED = re.compile(r'"[^"]*"')
_NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)([eE][+-]?[0-9]+)?|nan|inf", re.I)
_WITH_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+([eE][+-]?[0-9]+)?")
_WITH_POINT = re.compile(r"[+-]?[0-9]*[.][0-9]+([eE][+-]?[0-9]+)?")
_MAX_LINE_NBYTES = 1 << 16
_NUM_LOOKED_AT = 50


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How a file is written.

    Attributes:
        num_skipped: bytes before the names of the columns, or before the rows.
        separator: between the columns.
        names: of the columns, where they stand in a comment.
        decimal_point: of its numbers.
        is_utf8: whether its first lines are.
        notes: what differs from a plain CSV file.
    """

    num_skipped: int
    separator: str
    names: list[str] | None
    decimal_point: str
    is_utf8: bool
    notes: tuple[str, ...]

    def read_options(self, encoding: str, **more: Any) -> dict[str, Any]:
        """Arguments of pyarrow's readers."""
        return {
            "read_options": pyarrow.csv.ReadOptions(
                encoding=encoding, column_names=self.names, **more
            ),
            "parse_options": pyarrow.csv.ParseOptions(delimiter=self.separator),
        }

    def open(self, path: Path) -> Any:
        """The file, past what is skipped."""
        stream = pa.input_stream(str(path), compression="gzip" if is_gzip(path) else None)
        stream.read(self.num_skipped)
        return stream


def _layout_of(path: Path) -> _Layout:
    """Finds out how a file is written."""
    comments: list[str] = []
    num_skipped = 0
    with open_unpacked(path) as file:
        line = file.readline(_MAX_LINE_NBYTES)
        while line:
            text = line.removeprefix(_BYTE_ORDER_MARK).strip()
            if text and not text.startswith(b"#"):
                break
            num_skipped += len(line)
            comments += [text.decode(errors="replace")] if text else []
            line = file.readline(_MAX_LINE_NBYTES)
        lines = [line, *(file.readline(_MAX_LINE_NBYTES) for _ in range(_NUM_LOOKED_AT))]
    content = b"".join(lines).removeprefix(_BYTE_ORDER_MARK)
    header, *rows = [text.decode(errors="replace").rstrip("\r\n") for text in lines]
    counts = {s: _QUOTED.sub("", header).count(s) for s in _SEPARATORS}
    separator = max(counts, key=lambda s: counts[s])
    notes: tuple[str, ...] = ()
    if separator != ",":
        notes = (f"columns are separated by {_SEPARATORS[separator]}",)
    names = None
    if all(_NUMBER.fullmatch(field) for field in _fields(header, separator)):
        names = _fields(comments[-1].lstrip("# "), separator) if comments else []
        if len(names) != counts[separator] + 1 or any(map(_NUMBER.fullmatch, names)):
            raise UsageError(
                f"catalog {path} has no line with names of columns: its first line is "
                f"{header[:60]!r}; write one above it"
            )
        notes += ("the names of columns are taken from the comment above the rows",)
        comments, rows = comments[:-1], [header, *rows]
    if comments:
        notes += (
            f"{len(comments)} lines above the names of columns are skipped, such as "
            f"{comments[0][:40]!r}",
        )
    decimal_point = _decimal_point(path, rows, separator)
    if decimal_point == ",":
        notes += ("numbers with a decimal comma are read as such",)
    # Half a character may end the last line.
    is_utf8 = len(content) == len(content.decode(errors="ignore").encode())
    return _Layout(
        num_skipped=num_skipped,
        separator=separator,
        names=names,
        decimal_point=decimal_point,
        is_utf8=is_utf8,
        notes=notes,
    )


def _fields(line: str, separator: str) -> list[str]:
    return [field.strip().strip('"').strip() for field in line.split(separator)]


def _decimal_point(path: Path, rows: Sequence[str], separator: str) -> str:
    if separator == ",":
        return "."
    fields = [field for row in rows for field in _fields(row, separator)]
    commas = [field for field in fields if _WITH_COMMA.fullmatch(field)]
    points = [field for field in fields if _WITH_POINT.fullmatch(field)]
    if commas and points:
        raise UsageError(
            f"catalog {path} has numbers with a decimal comma ({commas[0]}) and with a point "
            f"({points[0]}); write all with a point"
        )
    return "," if commas else "."


def read_csv_table(path: Path, choose_text: ChooseText) -> tuple[pa.Table, tuple[str, ...]]:
    """All columns of a catalog; see `msdata.catalog.table.read_table`."""
    layout = _layout_of(path)

    def read(as_text: list[str], only: list[str], encoding: str) -> pa.Table:
        with layout.open(path) as stream:
            return pyarrow.csv.read_csv(
                stream,
                **layout.read_options(encoding),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(as_text, pa.string()),
                    include_columns=only,
                    decimal_point=layout.decimal_point,
                    strings_can_be_null=True,
                ),
            )

    def read_all(encoding: str) -> tuple[list[str], str | None, pa.Table]:
        with layout.open(path) as stream:
            names = pyarrow.csv.open_csv(stream, **layout.read_options(encoding)).schema.names
        check_names(path, names)
        text = choose_text(names)
        return names, text, read([] if text is None else [text], [], encoding)

    encoding = "utf8"
    notes = layout.notes
    try:
        names, text, table = read_all(encoding)
        is_utf8 = not any(pa.types.is_binary(kind) for kind in table.schema.types)
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        if isinstance(error, pa.ArrowInvalid) and "UTF8" not in str(error):
            raise
        is_utf8 = False
    if not is_utf8:
        encoding = "latin-1"
        notes += (f"{path.name} is not UTF-8: its text was read as Latin-1",)
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


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuses what cannot be told apart by name: a wrong label would be taken in silence."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(
            f"catalog {path} has {names.count(repeated[0])} columns named {repeated[0]!r}; "
            "rename all but one"
        )
    if len(names) == 1 and len(names[0].split()) > 2:
        raise UsageError(
            f"catalog {path} has spaces between its columns ({names[0][:40]!r}); save it with "
            "commas or tabs"
        )


def open_csv(path: Path, columns: Sequence[str] | None) -> Any:
    """A reader of a file, also gzipped, that gives bytes or text.

    Raises:
        UsageError: its numbers have a decimal comma, or no line names its columns.
    """
    layout = _layout_of(path)
    if layout.decimal_point != ".":
        raise UsageError(f"table {path} has numbers with a decimal comma; write them with a point")
    return pyarrow.csv.open_csv(
        layout.open(path),
        # Values are decoded by `plain_column`.
        **layout.read_options("utf8" if layout.is_utf8 else "latin-1", block_size=1 << 24),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=None if columns is None else list(columns),
            # Types are guessed from the first block; ids beyond 2^63 or with letters further down
            # would be an error, so everything is read as bytes and cast, UTF-8 or not.
            column_types={} if columns is None else dict.fromkeys(columns, pa.binary()),
            strings_can_be_null=True,
        ),
    )
