"""Checks that settings of all kinds share; a wrong one is named with what it must be."""

from __future__ import annotations

import math
from typing import Any

from msdata.errors import UsageError


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises UsageError unless a setting is one of the choices."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(map(str, choices))}, got {value}")


def check_range(name: str, value: float | None, least: float) -> None:
    """Raises UsageError where a setting is less than it may be, or no number; None is unset."""
    if value is not None and not least <= value < math.inf:
        raise UsageError(f"{name} must be >= {least}, got {value}")


def check_positive(name: str, value: float, most: float = math.inf) -> None:
    """Raises UsageError where a setting is not above zero, or above what it may be."""
    if not 0 < value < math.inf:
        raise UsageError(f"{name} must be > 0, got {value}")
    if value > most:
        raise UsageError(f"{name} must be <= {most}, got {value}")


def check_share(name: str, value: float) -> None:
    """Raises UsageError where a setting is not in [0, 1)."""
    if not 0 <= value < 1:
        raise UsageError(f"{name} must be >= 0 and < 1, got {value}")


def check_batch_size(batch_size: int) -> None:
    """Raises UsageError where the samples of a rank at a time are fewer than one."""
    if batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
