"""What a terminal, or the reader of a log, is shown: text in which no character acts.

Ids, bands, units, columns and names of files come from strangers, and a terminal obeys control
characters. Programs print through `plain_streams`, so that no command has to think of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# C0 and C1 without tab and line feed, DEL; marks that reverse text, hide in it or end lines; halves
# of surrogate pairs, which names of files that are not UTF-8 have and no stream can encode.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def shown(text: str) -> str:
    r"""The text with each character that acts as its escape, such as `\u001b`.

    JSON has the same escapes, so that JSON stays what it was. Line feeds and tabs stay.
    """
    return _ACTING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shown_line(text: str) -> str:
    """The same for what has to stay one line: an error, a cell of a table."""
    return shown(text).replace("\n", "\\u000a").replace("\t", "\\u0009")


class PlainStream:
    """A text stream that shows what it is given; all else is the stream's own.

    Args:
        stream: where the text goes.

    Attributes:
        stream: the same; see `raw`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes the text as `shown` gives it."""
        return self.stream.write(shown(text))

    def writelines(self, lines: Any) -> None:
        """Writes each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def raw(stream: TextIO) -> TextIO:
    """The stream behind, for control sequences of our own; texts have to be `shown` before."""
    return stream.stream if isinstance(stream, PlainStream) else stream


@contextmanager
def plain_streams() -> Iterator[None]:
    """Within it, standard output and error show what they are given."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, PlainStream(s)) for s in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
