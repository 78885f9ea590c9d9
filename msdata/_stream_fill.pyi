"""Types of the optional C module; see stream_fill.c."""

from typing import Any

from numpy.typing import NDArray

INTERFACE: int

def fill(table: NDArray[Any], first: int, stop: int, /) -> int: ...
