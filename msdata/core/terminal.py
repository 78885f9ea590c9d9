"""Escapes control characters in all text that a terminal or a log shows.

Ids, bands, units, columns and file names come from untrusted files, and a terminal obeys control
characters. Programs print through `plain_streams`, so commands need not escape text themselves.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# C0 and C1 without tab and line feed, DEL; marks that reverse text, are invisible or end lines;
# halves of surrogate pairs, which file names that are not UTF-8 have and no stream can encode.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def shown(text: str) -> str:
    r"""Replaces each control character by its escape, such as `\u001b`.

    JSON has the same escapes, so the value of JSON text is unchanged. Line feeds and tabs stay.
    """
    return _ACTING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shown_line(text: str) -> str:
    """Escapes line feeds and tabs too, for text on one line: an error, a cell of a table."""
    return shown(text).replace("\n", "\\u000a").replace("\t", "\\u0009")


class PlainStream:
    """A text stream that escapes control characters and delegates everything else.

    Args:
        stream: the underlying stream.

    Attributes:
        stream: the underlying stream; see `raw`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes the text, escaped by `shown`."""
        return self.stream.write(shown(text))

    def writelines(self, lines: Any) -> None:
        """Writes each line, escaped by `shown`."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def raw(stream: TextIO) -> TextIO:
    """Returns the underlying stream, for our own control sequences; escape texts with `shown`."""
    return stream.stream if isinstance(stream, PlainStream) else stream


@contextmanager
def plain_streams() -> Iterator[None]:
    """Escapes control characters in everything written to stdout and stderr."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, PlainStream(s)) for s in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
