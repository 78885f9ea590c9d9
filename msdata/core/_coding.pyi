"""Types of the C module in coding.c."""

from typing import Any

INTERFACE: int

def measure(pixels: Any, steps: Any, quantize: float, /) -> int: ...
def quantize(
    pixels: Any, steps: Any, out: Any, decoded: Any, is_short: bool, is_zigzag: bool, /
) -> None: ...
def decode(
    table: Any, first: int, stop: int, specs: Any, scratch: Any, decompress: int, /
) -> int: ...
