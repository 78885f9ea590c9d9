"""Formats tables, amounts of bytes and durations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msdata.core.terminal import shown_line


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Formats a table in aligned columns: the first to the left, numbers to the right.

    Args:
        head: names of the columns; a leading "<" aligns a column to the left.
        rows: the cells.
    """
    names = [name.lstrip("<") for name in head]
    rows = [[shown_line(cell) for cell in row] for row in rows]
    is_left = [i == 0 or name.startswith("<") for i, name in enumerate(head)]
    widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(names))]
    for row in (names, *rows):
        cells = (
            cell.ljust(w) if left else cell.rjust(w)
            for cell, w, left in zip(row, widths, is_left, strict=True)
        )
        yield "  ".join(cells)


def markdown_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Formats a Markdown table: the first column to the left, the others to the right."""
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def print_result(
    result: Mapping[str, Any], notes: Iterable[str], text: str, *, as_json: bool
) -> None:
    """Prints what a command did: JSON with its notes, or the notes, then a text.

    Args:
        result: fields of the JSON.
        notes: remarks, one per line.
        text: what was done, in a sentence.
        as_json: print JSON alone.
    """
    if as_json:
        print(json.dumps({**result, "notes": list(notes)}))
        return
    for note in notes:
        print(f"note: {note}")
    print(text)


def duration_text(seconds: float) -> str:
    """Formats seconds as `1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def bytes_text(nbytes: float) -> str:
    """Formats bytes with a binary prefix, such as `1.50 GiB`: the unit of all printed amounts.

    Options and settings are in GiB, so printed amounts and rates are too.
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} PiB"


def rate_text(nbytes_per_s: float) -> str:
    """Formats bytes per second with a binary prefix, such as `1.50 GiB/s`."""
    return f"{bytes_text(nbytes_per_s)}/s"
