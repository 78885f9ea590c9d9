"""The guard of regressions: which ratios of one result fell below those of an older one.

Ratios within a run are compared, never rates: machines drift. A ratio has fallen if its median lies
below the old interval and the old median above the new interval, so a fall that either run's own
scatter explains is none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.errors import UsageError

# What must agree, or the ratios mean different things.
SAME = ("benchmark", "workload", "sample_nbytes", "quick")


@dataclass(frozen=True, kw_only=True)
class Fall:
    """A ratio that fell, or is no longer there.

    Attributes:
        name: of the ratio.
        old: median, least, greatest.
        new: the same; None where it is missing.
    """

    name: str
    old: Mapping[str, float]
    new: Mapping[str, float] | None

    def __str__(self) -> str:
        if self.new is None:
            return f"{self.name}: {_text(self.old)} before, not measured now"
        return f"{self.name}: {_text(self.old)} before, {_text(self.new)} now"


def _text(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['greatest']:.3f})"


def find_falls(
    old: Mapping[str, Mapping[str, float]], new: Mapping[str, Mapping[str, float]]
) -> list[Fall]:
    """The ratios of `old` that fell by more than their intervals, or are missing in `new`.

    Args:
        old: for each name median, least and greatest of a ratio; higher is better.
        new: the same.

    Returns:
        In the order of `old`.
    """
    return [
        Fall(name=name, old=before, new=new.get(name))
        for name, before in old.items()
        if name not in new or _is_fall(before, new[name])
    ]


def _is_fall(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    return new["median"] < old["least"] and new["greatest"] < old["median"]


def read_result(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        UsageError: it is missing or no result of these benchmarks.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); name a result file") from error
    if not isinstance(content, dict) or "benchmark" not in content:
        raise UsageError(f"{path} is no result of `python -m benchmarks`; name a result file")
    return content


def compare_files(old_path: Path, new_path: Path) -> int:
    """Prints which ratios fell.

    Returns:
        1 if any did, else 0.

    Raises:
        UsageError: the results cannot be compared.
    """
    old, new = read_result(old_path), read_result(new_path)
    for path, result in ((old_path, old), (new_path, new)):
        if not result.get("ratios"):
            raise UsageError(f"{path} holds no ratios, so there is nothing to compare")
    for key in SAME:
        if old.get(key) != new.get(key):
            raise UsageError(
                f"{key} is {old.get(key)!r} in {old_path} and {new.get(key)!r} in {new_path}: "
                "the ratios mean different things; measure with the same settings"
            )
    if old["host"].get("processor") != new["host"].get("processor"):
        print("note: the two results are of different processors", file=sys.stderr)
    falls = find_falls(old["ratios"], new["ratios"])
    for fall in falls:
        print(f"fell: {fall}")
    print(f"{len(old['ratios'])} ratios compared, {len(falls)} fell")
    return 1 if falls else 0
