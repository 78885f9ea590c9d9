"""Two results side by side: `python -m benchmarks compare`, the guard of regressions.

Ratios within a run are compared, never rates: machines drift. A ratio is below the older one if its
median lies below the old interval and the old median above the new interval, so a fall that either
run's own scatter explains is none.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import interval_text
from msdata.core.text import table_lines
from msdata.errors import UsageError

# What must agree, or the ratios mean different things.
SAME = ("benchmark", "workload", "sample_nbytes", "quick")
HISTORY = "history.csv"
# Ratios of a race that its history shows.
RACED = (
    *("hot, of the limit", "cold, of the limit"),
    *("utilization at 2000 samples/s", "utilization at 10000 samples/s"),
)


def read_result(path: Path | str) -> dict[str, Any]:
    """A result file, or what a commit had of it (`COMMIT:benchmarks/results/NAME.json`).

    Raises:
        UsageError: it is missing or not a result of these benchmarks.
    """
    place = Path(path)
    try:
        if not place.exists() and ":" in str(path):
            shown = subprocess.run(["git", "show", str(path)], capture_output=True, check=True)
            content = json.loads(shown.stdout)
        else:
            content = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise UsageError(f"cannot read {path}: {error.stderr.decode().strip()}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); name a result file") from error
    if not isinstance(content, dict) or "benchmark" not in content:
        raise UsageError(
            f"{path} is not a result of `python -m benchmarks`; name a file that one wrote"
        )
    return content


def ratios_of(result: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """The ratios of a result, by name: those that it names, else those of its contestants."""
    for name, ratio in result.get("ratios", {}).items():
        # As older results have them.
        yield re.sub(r"fore\w+ rate", "predicted rate", name.replace("utilis", "utiliz")), ratio
    if result.get("ratios"):
        return
    if {"limit", "contestants"} <= result.keys():
        for name, found in result["contestants"].items():
            yield f"{place}{name}, of {result['limit']}", found["of_limit"]
    for key, value in result.items():
        if isinstance(value, dict) and key != "contestants":
            yield from ratios_of(value, f"{place}{key}: ")


def add_to_history(path: Path) -> None:
    """Adds the ratios of a result to `history.csv` beside it: what one machine gave over time."""
    result = read_result(path)
    facts = [result[key] for key in ("finished", "commit", "benchmark")]
    facts += [result.get("quick"), result.get("workload")]
    history = path.with_name(HISTORY)
    is_new = not history.exists()
    with history.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            heads = ("finished", "commit", "benchmark", "quick", "workload", "ratio")
            writer.writerow([*heads, "median", "least", "greatest"])
        for name, ratio in ratios_of(result):
            ends = (ratio[key] for key in ("median", "least", "greatest"))
            writer.writerow([*facts, name, *ends])


def race_history(folder: Path) -> list[list[str | None]]:
    """Races of a folder's history, the newest first, for a table.

    Returns:
        When it ended, its commit, its workload, whether it was quick, then the best median of
        msdata's contestants that keep all bytes, with its interval, for each of `RACED`.
    """
    path = folder / HISTORY
    best: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                kind = row["ratio"].rpartition(": ")[2]
                if row["benchmark"].startswith("loaders") and "coded" not in row["ratio"]:
                    race = (row["finished"], row["commit"], row["workload"], row["quick"])
                    ratio = {key: float(row[key]) for key in ("median", "least", "greatest")}
                    found = best.setdefault(race, {})
                    found[kind] = max(found.get(kind, ratio), ratio, key=lambda r: r["median"])
    return [
        [*race, *(interval_text(found[kind]) if kind in found else None for kind in RACED)]
        for race, found in sorted(best.items(), reverse=True)
    ]


def is_below(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    """Whether a ratio fell by more than either run's own scatter explains."""
    return new["median"] < old["least"] and new["greatest"] < old["median"]


def compare_files(old_path: Path | str, new_path: Path | str) -> int:
    """Prints the ratios of two results side by side.

    Returns:
        1 if a ratio is below the older one, or missing, else 0.

    Raises:
        UsageError: the results cannot be compared.
    """
    old, new = read_result(old_path), read_result(new_path)
    before, after = dict(ratios_of(old)), dict(ratios_of(new))
    for path, ratios in ((old_path, before), (new_path, after)):
        if not ratios:
            raise UsageError(f"{path} holds no ratios, so there is nothing to compare")
    for key in SAME:
        if old.get(key) != new.get(key):
            raise UsageError(
                f"{key} is {old.get(key)!r} in {old_path} and {new.get(key)!r} in {new_path}: "
                "the ratios mean different things; measure with the same settings"
            )
    if old["host"].get("processor") != new["host"].get("processor"):
        print("note: the two results are of different processors", file=sys.stderr)
    rows, num_below = [], 0
    for name, ratio in before.items():
        other = after.get(name)
        is_bad = other is None or is_below(ratio, other)
        num_below += is_bad
        change = f"{other['median'] / ratio['median']:.3f}" if other and ratio["median"] else "–"
        verdict = "not measured now" if other is None else "BELOW" if is_bad else "not below"
        now = "–" if other is None else interval_text(other, ".3f")
        rows.append([name, interval_text(ratio, ".3f"), now, change, verdict])
    heads = ("ratio", f"{old['commit']}", f"{new['commit']}", "new/old", "<verdict")
    print("\n".join(table_lines(heads, rows)))
    print(f"{len(rows)} ratios compared, {num_below} below")
    return 1 if num_below else 0
