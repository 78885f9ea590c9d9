"""Types of the optional C module; see stream_fill.c."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

INTERFACE: int

def fill(table: NDArray[Any], first: int, stop: int, /) -> int: ...

# Only on CPUs that support it.
def copy_crc32c(source: Any, targets: Sequence[Any], /) -> int: ...
