"""Formats tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
